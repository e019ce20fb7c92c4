// gather: images of any strides to NHWC. NCHW in squares of pixels and channels, each turned in registers.
//
// Compiled once per instruction set; VPDARTS_ISA names the namespace.
#include "gather.h"

#include "images.h"

namespace {

using vpdarts::cpu::ConstImageView;

typedef int32_t Lanes __attribute__((vector_size(4 * VPDARTS_LANES)));

// Swaps rows and columns of a square: pairs of rows exchange halves of every size in turn.
inline __attribute__((always_inline)) void transpose(Vec* rows) {
#pragma GCC unroll 4
  for (int64_t step = 1; step < kLanes; step *= 2) {
    Lanes low, high;
    for (int64_t j = 0; j < kLanes; ++j) {
      const bool odd = (j & step) != 0;
      low[j] = static_cast<int32_t>(odd ? kLanes + j - step : j);
      high[j] = static_cast<int32_t>(odd ? kLanes + j : j + step);
    }
#pragma GCC unroll 16
    for (int64_t i = 0; i < kLanes; ++i) {
      if ((i & step) != 0) continue;
      const Vec a = rows[i], b = rows[i + step];
      rows[i] = __builtin_shuffle(a, b, low);
      rows[i + step] = __builtin_shuffle(a, b, high);
    }
  }
}

// to [pixels][padded] = pixels that lie side by side in planes `plane` floats apart.
void gather_planes(const float* from, int64_t plane, int64_t channels, int64_t pixels, int64_t padded,
                   float* to) {
  // In the order in which it lies: the planes side by side are too many, and too short, streams.
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t p = 0; p < pixels; p += 16) __builtin_prefetch(from + c * plane + p);
  }
  const int64_t squares = pixels / kLanes * kLanes, whole = channels / kLanes * kLanes;
  for (int64_t p = 0; p < squares; p += kLanes) {
    for (int64_t c = 0; c < whole; c += kLanes) {
      Vec rows[kLanes];
#pragma GCC unroll 16
      for (int64_t j = 0; j < kLanes; ++j) rows[j] = load(from + (c + j) * plane + p);
      transpose(rows);
#pragma GCC unroll 16
      for (int64_t j = 0; j < kLanes; ++j) store(to + (p + j) * padded + c, rows[j]);
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t p = c < whole ? squares : 0; p < pixels; ++p) to[p * padded + c] = from[c * plane + p];
  }
}

void images(const Block& s, int64_t channels, ConstImageView x, float* out) {
  if (channels < s.padded) zero(out, s.floats());
  const bool joined = x.row == s.width * x.pixel;  // the rows of an image are one
  const int64_t rows = joined ? 1 : s.height, pixels = joined ? s.height * s.width : s.width;
  for (int64_t b = 0; b < s.images; ++b) {
    for (int64_t y = 0; y < rows; ++y) {
      const float* from = x.data + b * x.image + y * x.row;
      float* to = out + (b * s.height * s.width + y * pixels) * s.padded;
      if (x.pixel == 1 && x.channel != 1) {
        gather_planes(from, x.channel, channels, pixels, s.padded, to);
      } else {
        for (int64_t p = 0; p < pixels; ++p) {
          for (int64_t c = 0; c < channels; ++c) to[p * s.padded + c] = from[p * x.pixel + c * x.channel];
        }
      }
    }
  }
}

}  // namespace

namespace vpdarts::cpu::VPDARTS_ISA {

const GatherKernels& gather_kernels() {
  static const GatherKernels kernels = {images};
  return kernels;
}

}  // namespace vpdarts::cpu::VPDARTS_ISA
