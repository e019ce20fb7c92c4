// 3x3 pools with a padding of 1, of any stride, and their adjoints.
#pragma once

#include "images.h"
#include "mixed_op.h"

namespace {

using vpdarts::cpu::StageShape;

typedef int32_t Places __attribute__((vector_size(4 * VPDARTS_LANES)));

// The rows and columns of an output pixel's window that lie inside the image.
struct Window {
  int64_t top, bottom, left, right;
  int64_t pixels() const { return (bottom - top) * (right - left); }
};

inline Window window(const StageShape& s, int64_t y, int64_t i) {
  const int64_t row = y * s.stride, column = i * s.stride;
  return {row > 0 ? row - 1 : 0, row + 2 < s.height ? row + 2 : s.height, column > 0 ? column - 1 : 0,
          column + 2 < s.width ? column + 2 : s.width};
}

// Calls visit(window, place of the output pixel) for every output pixel.
template <typename Visit>
inline __attribute__((always_inline)) void for_each_window(const StageShape& s, const Visit& visit) {
  for (int64_t y = 0; y < s.out_height(); ++y) {
    for (int64_t i = 0; i < s.out_width(); ++i) visit(window(s, y, i), (y * s.out_width() + i) * s.padded);
  }
}

// Calls visit(place of the pixel) for every pixel of a window.
template <typename Visit>
inline __attribute__((always_inline)) void for_each_pixel(const StageShape& s, const Window& w,
                                                          const Visit& visit) {
  for (int64_t y = w.top; y < w.bottom; ++y) {
    for (int64_t i = w.left; i < w.right; ++i) visit((y * s.width + i) * s.padded);
  }
}

void average_pool(const StageShape& s, const float* x, float* out) {
  for_each_window(s, [&](const Window& w, int64_t at) {
    const float share = 1.0f / static_cast<float>(w.pixels());
    for (int64_t c = 0; c < s.padded; c += kLanes) {
      Vec sum{};
      for_each_pixel(s, w, [&](int64_t pixel) { sum += load(x + pixel + c); });
      store(out + at + c, sum * share);
    }
  });
}

void average_pool_backward(const StageShape& s, const float* gradient, float* x_gradient) {
  for_each_window(s, [&](const Window& w, int64_t at) {
    const float share = 1.0f / static_cast<float>(w.pixels());
    for (int64_t c = 0; c < s.padded; c += kLanes) {
      const Vec g = load(gradient + at + c) * share;
      for_each_pixel(s, w, [&](int64_t pixel) {
        float* to = x_gradient + pixel + c;
        store(to, load(to) + g);
      });
    }
  });
}

// The first maximum of a window in the order in which it lies, as PyTorch takes it, which NaN is too.
struct Maximum {
  Vec value;
  Places pixel;  // its place in the image
};

inline __attribute__((always_inline)) Maximum maximum(const StageShape& s, const Window& w, const float* x) {
  const int64_t first = w.top * s.width + w.left;
  Maximum best{load(x + first * s.padded), Places{} + static_cast<int32_t>(first)};
  for_each_pixel(s, w, [&](int64_t pixel) {
    const Vec value = load(x + pixel);
    const Places better = (value > best.value) | (value != value);
    best.value = better ? value : best.value;
    best.pixel = better ? Places{} + static_cast<int32_t>(pixel / s.padded) : best.pixel;
  });
  return best;
}

void maximum_pool(const StageShape& s, const float* x, float* out) {
  for_each_window(s, [&](const Window& w, int64_t at) {
    for (int64_t c = 0; c < s.padded; c += kLanes) {
      Vec best = load(x + (w.top * s.width + w.left) * s.padded + c);
      for_each_pixel(s, w, [&](int64_t pixel) {
        const Vec value = load(x + pixel + c);
        best = (value > best) | (value != value) ? value : best;
      });
      store(out + at + c, best);
    }
  });
}

void maximum_pool_backward(const StageShape& s, const float* x, const float* gradient, float* x_gradient) {
  for_each_window(s, [&](const Window& w, int64_t at) {
    for (int64_t c = 0; c < s.padded; c += kLanes) {
      const Maximum best = maximum(s, w, x + c);
      const Vec g = load(gradient + at + c), zeros{};
      for_each_pixel(s, w, [&](int64_t pixel) {
        float* to = x_gradient + pixel + c;
        const Places here = best.pixel == Places{} + static_cast<int32_t>(pixel / s.padded);
        store(to, load(to) + (here ? g : zeros));
      });
    }
  });
}

}  // namespace
