// The 3x3 average pool of a weighted sum of images, the padding not counted, and its adjoint.
//
// The pool is linear, so the terms are added up first and pooled once: sums of three columns are kept for a
// whole image, sums of three of their rows are formed where they are used.
#pragma once

#include "images.h"

namespace {

// Of pixels i-1, i, i+1, one over how many are inside 0..size-1.
inline float box_share(int64_t i, int64_t size) {
  return 1.0f / static_cast<float>(1 + (i > 0) + (i < size - 1));
}

// A term of a sum of images that is to be pooled.
struct Pooled {
  const float* image;
  float factor;
};

// sums [H + 2][W][padded] = for every pixel the sum over its row's pixels i-1, i, i+1 of the terms, a row of
// zeros at either end. Adjoint: every pixel is first divided by how many pixels its own box has.
void pool_rows(const Block& s, const Pooled* terms, int64_t count, bool adjoint, float* sums) {
  const int64_t row = s.width * s.padded;
  zero(sums, row);
  zero(sums + (s.height + 1) * row, row);
  for (int64_t y = 0; y < s.height; ++y) {
    float* out = sums + (y + 1) * row;
    const float share = adjoint ? box_share(y, s.height) : 1.0f;
    for (int64_t c = 0; c < s.padded; c += kLanes) {
      Vec left{}, middle{}, right{};
      for (int64_t i = 0; i <= s.width; ++i) {  // `right` is pixel i
        right = Vec{};
        if (i < s.width) {
          for (int64_t k = 0; k < count; ++k)
            right += terms[k].factor * load(terms[k].image + y * row + i * s.padded + c);
          if (adjoint) right *= share * box_share(i, s.width);
        }
        if (i > 0) store(out + (i - 1) * s.padded + c, left + middle + right);
        left = middle;
        middle = right;
      }
    }
  }
}

// The pooled value of a pixel, by the sums of three columns; `at` the pixel's place in its image.
inline __attribute__((always_inline)) Vec pooled(const float* sums, int64_t at, int64_t row) {
  return load(sums + at) + load(sums + at + row) + load(sums + at + 2 * row);
}

}  // namespace
