// Depthwise convolutions over channel vectors, and their adjoints.
//
// A row of pixels of the output is a sum over taps: each a row of pixels of the input, a constant step apart,
// times one weight per channel. So is a row of the gradient of the input, of those pixels that the same taps
// reach: all of them at stride 1, every second one at stride 2.
#pragma once

#include "images.h"
#include "mixed_op.h"

namespace {

using vpdarts::cpu::SeparableWeights;
using vpdarts::cpu::StageShape;

// Taps of a row of pixels: where each reads, counted from where the row's first pixel would, and its weight.
struct Taps {
  static constexpr int64_t kMost = 49;
  int64_t count = 0;
  int64_t offset[kMost];
  const float* weight[kMost];  // [padded]
};

// One vector of channels of kPixels pixels.
template <int kPixels>
inline __attribute__((always_inline)) void depthwise_block(const Taps& taps, const float* from, int64_t c,
                                                           int64_t step, float* out, int64_t out_step,
                                                           bool add) {
  Vec sum[kPixels];
#pragma GCC unroll 8
  for (int p = 0; p < kPixels; ++p) sum[p] = add ? load(out + p * out_step) : Vec{};
  for (int64_t t = 0; t < taps.count; ++t) {
    const Vec weight = load(taps.weight[t] + c);
    const float* pixel = from + taps.offset[t];
#pragma GCC unroll 8
    for (int p = 0; p < kPixels; ++p) sum[p] += weight * load(pixel + p * step);
  }
#pragma GCC unroll 8
  for (int p = 0; p < kPixels; ++p) store(out + p * out_step, sum[p]);
}

// out = sum over taps of weight * from, or that added to it, for a row of pixels; they lie `step` floats
// apart in `from`, and `out_step` in out.
template <bool kAdd>
void depthwise_row(const Taps& taps, const float* from, int64_t pixels, int64_t padded, int64_t step,
                   float* out, int64_t out_step) {
  for (int64_t c = 0; c < padded; c += kLanes) {
    int64_t p = 0;
    for (; p + 8 <= pixels; p += 8)
      depthwise_block<8>(taps, from + p * step + c, c, step, out + p * out_step + c, out_step, kAdd);
    for (; p + 4 <= pixels; p += 4)
      depthwise_block<4>(taps, from + p * step + c, c, step, out + p * out_step + c, out_step, kAdd);
    for (; p < pixels; ++p)
      depthwise_block<1>(taps, from + p * step + c, c, step, out + p * out_step + c, out_step, kAdd);
  }
}

Taps forward_taps(const StageShape& s, const SeparableWeights& w) {
  Taps taps;
  const int64_t start = s.border - w.padding();
  for (; taps.count < w.kernel * w.kernel; ++taps.count) {
    const int64_t row = taps.count / w.kernel, column = taps.count % w.kernel;
    taps.offset[taps.count] =
        (start + w.dilation * row) * s.map_row() + (start + w.dilation * column) * s.padded;
    taps.weight[taps.count] = w.depthwise + taps.count * s.padded;
  }
  return taps;
}

// Row y of the output, from a map of the input.
inline void depthwise(const StageShape& s, const Taps& taps, const float* map, int64_t y, float* out) {
  depthwise_row<false>(taps, map + y * s.stride * s.map_row(), s.out_width(), s.padded, s.stride * s.padded,
                       out, s.padded);
}

// Of a row and its every stride-th column from `right` on, `down` the row modulo the stride:
//   sum over taps (r, k) of w_rk g((y + padding - dilation r) / stride, ...), those with whole numbers.
Taps adjoint_taps(const StageShape& s, const SeparableWeights& w, int64_t down, int64_t right) {
  Taps taps;
  for (int64_t tap = 0; tap < w.kernel * w.kernel; ++tap) {
    // Borders are multiples of the stride away: no negative numbers are divided.
    const int64_t row = down + w.padding() - w.dilation * (tap / w.kernel) + s.stride * s.border,
                  column = right + w.padding() - w.dilation * (tap % w.kernel) + s.stride * s.border;
    if (row % s.stride != 0 || column % s.stride != 0) continue;
    taps.offset[taps.count] = row / s.stride * s.next().map_row() + column / s.stride * s.padded;
    taps.weight[taps.count++] = w.depthwise + tap * s.padded;
  }
  return taps;
}

// gradient [height][width][padded] of the input += from a map of that of the output.
void depthwise_adjoint(const StageShape& s, const SeparableWeights& w, const float* map, float* gradient) {
  for (int64_t down = 0; down < s.stride; ++down) {
    for (int64_t right = 0; right < s.stride; ++right) {
      const Taps taps = adjoint_taps(s, w, down, right);
      const int64_t pixels = (s.width - right + s.stride - 1) / s.stride;
      for (int64_t y = down; y < s.height && taps.count > 0; y += s.stride)
        depthwise_row<true>(taps, map + y / s.stride * s.next().map_row(), pixels, s.padded, s.padded,
                            gradient + (y * s.width + right) * s.padded, s.stride * s.padded);
    }
  }
}

// sums [kRows * kColumns][padded] += for kRows rows of taps, `tap_row` floats apart in the map, the sum over
// the pixels of an image of gradient * map; one vector of channels.
template <int kRows, int kColumns>
inline __attribute__((always_inline)) void depthwise_sums_block(const StageShape& s, const float* map,
                                                                int64_t tap_row, int64_t tap_step,
                                                                const float* gradient, float* sums) {
  Vec sum[kRows][kColumns] = {};
  const int64_t step = s.stride * s.padded, width = s.out_width();
  for (int64_t y = 0; y < s.out_height(); ++y) {
    const float* from = map + y * s.stride * s.map_row();
    const float* g = gradient + y * s.next().map_row();
    for (int64_t i = 0; i < width; ++i) {
      const Vec right = load(g + i * s.padded);
#pragma GCC unroll 5
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 7
        for (int k = 0; k < kColumns; ++k)
          sum[r][k] += right * load(from + i * step + r * tap_row + k * tap_step);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int k = 0; k < kColumns; ++k) {
      float* to = sums + (r * kColumns + k) * s.padded;
      store(to, load(to) + sum[r][k]);
    }
  }
}

// The gradient of the depthwise weights of one image, added to sums; `gradient`: a map of that of the output.
template <int kKernel>
void depthwise_sums(const StageShape& s, const SeparableWeights& w, const float* map, const float* gradient,
                    float* sums) {
  // As many rows of taps as leave registers free.
  constexpr int kRows = kKernel == 3 ? 3 : kLanes < 16 ? 1 : kKernel == 5 ? 5 : 3;
  const int64_t tap_row = w.dilation * s.map_row(), tap_step = w.dilation * s.padded;
  const float* first = map + (s.border - w.padding()) * (s.map_row() + s.padded);
  const float* g = gradient + s.border * (s.next().map_row() + s.padded);
  for (int64_t c = 0; c < s.padded; c += kLanes) {
    int r = 0;
    for (; r + kRows <= kKernel; r += kRows)
      depthwise_sums_block<kRows, kKernel>(s, first + r * tap_row + c, tap_row, tap_step, g + c,
                                           sums + r * kKernel * s.padded + c);
    for (; r < kKernel; ++r)
      depthwise_sums_block<1, kKernel>(s, first + r * tap_row + c, tap_row, tap_step, g + c,
                                       sums + r * kKernel * s.padded + c);
  }
}

}  // namespace
