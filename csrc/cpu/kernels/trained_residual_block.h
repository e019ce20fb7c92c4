// The torch-free interface of the trained_residual_block kernels: what of the block between two stages is not
// a relu_conv,
//
//   raw_a = W_a * relu(x), of stride 2, and the shortcut W_shortcut pool(x), their adjoints, and the passes
//   between two batch norms' statistics.
//
// conv_b and its adjoints are relu_conv's, of one edge that leaves a = scale raw_a + shift.
#pragma once

#include "block.h"
#include "isas.h"
#include "relu_conv.h"

namespace vpdarts::cpu {

struct TrainedResidualBlockForward {
  ResidualShape shape;
  const float* x;
  const float* weights;  // packed
  float* raw;            // raw_a
  float* shortcut;
  // Of this block: mean of raw_a [out_padded] and sum of (raw_a - mean)^2 [out_padded].
  float* statistics;
};

// From the gradients of raw_a (see RawGradient) and of the shortcut to those of x and of the weights.
struct TrainedResidualBlockBackward {
  ResidualShape shape;
  const float* x;
  RawGradient raw;
  const float* shortcut;
  const float* weights;  // packed, transposed
  float* x_gradient;     // null if nobody wants it
  float* weight_sums;    // [9 + 1][padded][out_padded], conv_a and the shortcut, added to; null likewise
};

// out = scale raw + shift + more, each vector [padded]. more: like out, may be out; null if there is none.
struct Affine {
  Block block;
  const float *raw, *scale, *shift, *more;
  float* out;
};

// Sums over the block's pixels of g and of g (raw - raw_mean), [2][padded].
struct NormSums {
  Block block;
  const float *g, *raw, *raw_mean;
  float* sums;
};

// g = [a > 0] rectified, the latter a border_map; g and the sums as NormSums has them.
struct RectifiedGradient {
  Block block;
  const float *a, *rectified, *raw, *raw_mean;
  float *g, *sums;
};

struct TrainedResidualBlockKernels {
  int64_t lanes;
  // Floats of packed weights.
  int64_t (*weight_floats)(int64_t padded, int64_t out_padded);
  // conv_a [C_out, C, 3, 3] and shortcut [C_out, C] to what `forward` or, transposed, `backward` takes.
  void (*pack)(int64_t channels, int64_t out_channels, int64_t padded, int64_t out_padded,
               const float* conv_a, const float* shortcut, bool transposed, float* packed);
  // Floats of scratch memory, 64-byte aligned.
  int64_t (*forward_scratch)(const ResidualShape& shape);
  void (*forward)(const TrainedResidualBlockForward& args, float* scratch);
  int64_t (*backward_scratch)(const ResidualShape& shape);
  void (*backward)(const TrainedResidualBlockBackward& args, float* scratch);
  void (*affine)(const Affine& args);
  void (*norm_sums)(const NormSums& args);
  void (*rectified_gradient)(const RectifiedGradient& args);
};

VPDARTS_IN_EVERY_ISA(const TrainedResidualBlockKernels& trained_residual_block_kernels();)

}  // namespace vpdarts::cpu
