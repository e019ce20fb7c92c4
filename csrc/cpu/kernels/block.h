// A unit of work of the kernels of a cell in training.
#pragma once

#include <cstdint>

namespace vpdarts::cpu {

// Consecutive images, NHWC without gaps, channels padded to a multiple of the lane count with zeros.
struct Block {
  int64_t images, height, width, padded;
  int64_t pixels() const { return images * height * width; }
  int64_t floats() const { return pixels() * padded; }
};

}  // namespace vpdarts::cpu
