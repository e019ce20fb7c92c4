// The torch-free interface of the gather kernel: images of any strides, laid out as the other kernels take
// them.
#pragma once

#include "block.h"

namespace vpdarts::cpu {

struct GatherKernels {
  // out = the block's images, NHWC without gaps, the padding of their channels 0.
  void (*images)(const Block& block, int64_t channels, ConstImageView x, float* out);
};

namespace baseline {
const GatherKernels& gather_kernels();
}
namespace avx2 {
const GatherKernels& gather_kernels();
}
namespace avx512 {
const GatherKernels& gather_kernels();
}

}  // namespace vpdarts::cpu
