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

constexpr int64_t kMostTaps = 49;

struct Tap {
  const float *from, *weight;
};

// One vector of channels of kPixels pixels.
template <int kPixels>
inline __attribute__((always_inline)) void depthwise_block(const Tap* taps, int64_t count, int64_t first,
                                                           int64_t c, int64_t step, float* out,
                                                           int64_t out_step, bool add) {
  Vec sum[kPixels];
#pragma GCC unroll 8
  for (int p = 0; p < kPixels; ++p) sum[p] = add ? load(out + p * out_step) : Vec{};
  for (int64_t t = 0; t < count; ++t) {
    const Vec weight = load(taps[t].weight + c);
    const float* from = taps[t].from + first + c;
#pragma GCC unroll 8
    for (int p = 0; p < kPixels; ++p) sum[p] += weight * load(from + p * step);
  }
#pragma GCC unroll 8
  for (int p = 0; p < kPixels; ++p) store(out + p * out_step, sum[p]);
}

// out = sum over taps of weight * from, or that added to it, for a row of pixels; they lie `step` floats
// apart in `from`, and `out_step` in out.
void depthwise_row(const Tap* taps, int64_t count, int64_t pixels, int64_t padded, int64_t step, float* out,
                   int64_t out_step, bool add) {
  for (int64_t c = 0; c < padded; c += kLanes) {
    int64_t p = 0;
    for (; p + 8 <= pixels; p += 8)
      depthwise_block<8>(taps, count, p * step, c, step, out + p * out_step + c, out_step, add);
    for (; p + 4 <= pixels; p += 4)
      depthwise_block<4>(taps, count, p * step, c, step, out + p * out_step + c, out_step, add);
    for (; p < pixels; ++p)
      depthwise_block<1>(taps, count, p * step, c, step, out + p * out_step + c, out_step, add);
  }
}

// Row y of the output, from a map of the input.
void depthwise(const StageShape& s, const SeparableWeights& w, const float* map, int64_t y, float* out) {
  Tap taps[kMostTaps];
  const int64_t start = s.border - w.padding();
  for (int64_t tap = 0; tap < w.kernel * w.kernel; ++tap) {
    const int64_t row = y * s.stride + start + w.dilation * (tap / w.kernel),
                  column = start + w.dilation * (tap % w.kernel);
    taps[tap] = {map + row * s.map_row() + column * s.padded, w.depthwise + tap * s.padded};
  }
  depthwise_row(taps, w.kernel * w.kernel, s.out_width(), s.padded, s.stride * s.padded, out, s.padded,
                false);
}

// Row y of the gradient of the input += from a map of that of the output:
//   sum over taps (r, k) of w_rk g((y + padding - dilation r) / stride, ...), those with whole numbers.
void depthwise_adjoint(const StageShape& s, const SeparableWeights& w, const float* map, int64_t y,
                       float* gradient) {
  const StageShape out = s.next();
  for (int64_t parity = 0; parity < s.stride; ++parity) {
    Tap taps[kMostTaps];
    int64_t count = 0;
    for (int64_t tap = 0; tap < w.kernel * w.kernel; ++tap) {
      // Borders are multiples of the stride away: no negative numbers are divided.
      const int64_t row = y + w.padding() - w.dilation * (tap / w.kernel) + s.stride * s.border,
                    column = parity + w.padding() - w.dilation * (tap % w.kernel) + s.stride * s.border;
      if (row % s.stride != 0 || column % s.stride != 0) continue;
      taps[count++] = {map + row / s.stride * out.map_row() + column / s.stride * s.padded,
                       w.depthwise + tap * s.padded};
    }
    const int64_t pixels = (s.width - parity + s.stride - 1) / s.stride;
    depthwise_row(taps, count, pixels, s.padded, s.padded, gradient + parity * s.padded, s.stride * s.padded,
                  true);
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
