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

// The block between two stages, of stride 2: images of the input, and of the output ceil(height / 2) rows of
// ceil(width / 2) pixels, all channels padded.
struct ResidualShape {
  int64_t images, height, width, channels, padded;
  int64_t out_padded;
  Block in() const { return {images, height, width, padded}; }
  Block out() const { return {images, (height + 1) / 2, (width + 1) / 2, out_padded}; }
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
