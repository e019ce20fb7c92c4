// The torch-free interface of the gather kernel: images of any strides, laid out as the other kernels take
// them.
#pragma once

#include "block.h"
#include "isas.h"

namespace vpdarts::cpu {

struct GatherKernels {
  // out = the block's images, NHWC without gaps, the padding of their channels 0.
  void (*images)(const Block& block, int64_t channels, ConstImageView x, float* out);
};

VPDARTS_IN_EVERY_ISA(const GatherKernels& gather_kernels();)

}  // namespace vpdarts::cpu
