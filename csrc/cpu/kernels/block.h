// Images as the kernels take them.
#pragma once

#include <cstdint>

namespace vpdarts::cpu {

// A unit of work: consecutive images, NHWC without gaps, channels padded to a multiple of the lane count
// with zeros.
struct Block {
  int64_t images, height, width, padded;
  int64_t pixels() const { return images * height * width; }
  int64_t floats() const { return pixels() * padded; }
};

// Where images lie: pixel (b, y, x), channel c at data[b*image + y*row + x*pixel + c*channel].
struct ImageView {
  float* data;
  int64_t image, row, pixel, channel;
};

struct ConstImageView {
  const float* data;
  int64_t image, row, pixel, channel;
};

}  // namespace vpdarts::cpu
