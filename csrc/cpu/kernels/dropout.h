// The draws of the skip connections' dropout: a function of a seed and an element's place, so that nothing
// is stored and every implementation draws the same.
#pragma once

#include <cstdint>

namespace vpdarts::cpu {

// Element i, counted in NHWC order over the whole batch, is kept if keep_bits(seed, i) < threshold.
struct Dropout {
  uint32_t low, high;  // the seed
  uint32_t threshold;
  bool drops;  // false: all are kept, whatever the threshold
};

}  // namespace vpdarts::cpu
