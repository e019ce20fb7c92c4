// A 3x3 convolution of stride 2 and a 2x2 average pool, image by image: what the residual blocks share.
#pragma once

#include "images.h"

namespace {

using vpdarts::cpu::ResidualShape;

constexpr int64_t kTaps = 9;

// relu(x) of one image with zeros around it, a row above and a column to the left first.
struct RectifiedMap {
  explicit RectifiedMap(const ResidualShape& s)
      : row((2 * s.out().width + 1) * s.padded), floats((2 * s.out().height + 1) * row) {}
  int64_t row, floats;
};

// The pixels of one output pixel's 2x2 window, kRows x kColumns of them inside the image:
// to = relu(x) of each, average = their mean.
template <int kRows, int kColumns>
inline __attribute__((always_inline)) void read_window(const float* from, int64_t from_row,
                                                       int64_t from_pixel, int64_t padded, float* to,
                                                       int64_t to_row, float* average) {
  for (int64_t c = 0; c < padded; c += kLanes) {
    Vec sum{};
    for (int y = 0; y < kRows; ++y) {
      for (int i = 0; i < kColumns; ++i) {
        const Vec value = load(from + y * from_row + i * from_pixel + c);
        store(to + y * to_row + i * padded + c, relu(value));
        sum += value;
      }
    }
    store(average + c, sum * (1.0f / (kRows * kColumns)));
  }
}

// map = relu(x) inside its border, pooled [pixels of the output][padded] = the 2x2 averages of x, which lies
// with its channels together.
void read_image(const ResidualShape& s, const float* x, int64_t row, int64_t pixel, float* map,
                float* pooled) {
  const int64_t map_row = RectifiedMap(s).row;
  for (int64_t y = 0; y < s.height; y += 2) {
    const bool two = y + 2 <= s.height;
    for (int64_t i = 0; i < s.width; i += 2, pooled += s.padded) {
      const float* from = x + y * row + i * pixel;
      float* to = map + (y + 1) * map_row + (i + 1) * s.padded;
      if (i + 2 <= s.width) {
        two ? read_window<2, 2>(from, row, pixel, s.padded, to, map_row, pooled)
            : read_window<1, 2>(from, row, pixel, s.padded, to, map_row, pooled);
      } else {
        two ? read_window<2, 1>(from, row, pixel, s.padded, to, map_row, pooled)
            : read_window<1, 1>(from, row, pixel, s.padded, to, map_row, pooled);
      }
    }
  }
}

// One block of kVecs vectors of output channels of one image: out = the nine taps' products with the map,
// weights [9] matrices. Calls finish(its row of out) after each row.
template <int kVecs, typename Finish>
inline __attribute__((always_inline)) void convolve_stride_two(const ResidualShape& s, const float* weights,
                                                               const float* map, int64_t c, float* out,
                                                               const Finish& finish) {
  const int64_t row = RectifiedMap(s).row;
  for (int64_t y = 0; y < s.out().height; ++y) {
    Operand taps[kTaps];
    for (int64_t tap = 0; tap < kTaps; ++tap)
      taps[tap] = {map + (2 * y + tap / 3) * row + tap % 3 * s.padded,
                   weights + tap * s.padded * s.out_padded};
    float* to = out + y * s.out().width * s.out_padded + c;
    products<kVecs>(taps, kTaps, s.out().width, 0, c * s.padded, s.padded, 2 * s.padded, to, s.out_padded);
    finish(to);
  }
}

// One block of kVecs vectors of output channels of one image: out = weight times the pooled pixels.
template <int kVecs>
inline void multiply_pooled(const ResidualShape& s, const float* weight, const float* pooled, int64_t c,
                            float* out) {
  const Operand operand{pooled, weight};
  products<kVecs>(&operand, 1, s.out().height * s.out().width, 0, c * s.padded, s.padded, s.padded, out + c,
                  s.out_padded);
}

}  // namespace
