// The torch-free interface of the residual_block kernels: the network between two stages, with the batch
// norms folded into the convolutions. conv_a, of stride 2, is direct; conv_b is Winograd F(4x4, 3x3).
#pragma once

#include <cstdint>

#include "block.h"
#include "isas.h"

namespace vpdarts::cpu {

// conv_a [C_out, C, 3, 3], conv_b [C_out, C_out, 3, 3], shortcut [C_out, C, 1, 1]; scale and shift
// [2, C_out], of conv_a and conv_b.
struct ResidualBlockWeights {
  const float *conv_a, *conv_b, *shortcut, *scale, *shift;
};

struct ResidualBlockKernels {
  int64_t lanes;
  // Floats of folded weights.
  int64_t (*weight_floats)(int64_t padded, int64_t out_padded);
  void (*fold)(int64_t channels, int64_t out_channels, int64_t padded, int64_t out_padded,
               const ResidualBlockWeights& weights, float* folded);
  // Floats of scratch memory, 64-byte aligned.
  int64_t (*scratch)(const ResidualShape& shape);
  // out: as shape.out() says, NHWC without gaps.
  void (*forward)(const ResidualShape& shape, const float* folded, ConstImageView x, float* out,
                  float* scratch);
};

VPDARTS_IN_EVERY_ISA(const ResidualBlockKernels& residual_block_kernels();)

}  // namespace vpdarts::cpu
