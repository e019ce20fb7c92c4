// What the kernels of a cell in training share: blocks of images and products over their pixels.
#pragma once

#include <cstddef>

#include "block.h"
#include "winograd.h"

namespace {

using vpdarts::cpu::Block;

inline int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

inline void zero(float* p, int64_t count) {
  __builtin_memset(p, 0, sizeof(float) * static_cast<std::size_t>(count));
}

// Pixels that are worked on together: a buffer of them stays in the first-level cache.
inline int64_t chunk_pixels(int64_t padded) { return padded >= 256 ? 6 : 2048 / padded / 6 * 6; }

// Calls visit(first, count) for chunks of an image's pixels.
template <typename Visit>
inline void for_each_chunk(const Block& s, const Visit& visit) {
  const int64_t pixels = s.height * s.width, most = chunk_pixels(s.padded);
  for (int64_t p = 0; p < pixels; p += most) visit(p, pixels - p < most ? pixels - p : most);
}

// Takes pieces off the scratch memory, each aligned to a cache line.
class Arena {
 public:
  explicit Arena(float* scratch) : next_(scratch) {}
  float* take(int64_t floats) {
    float* piece = next_;
    next_ += round_up(floats, 16);
    return piece;
  }

 private:
  float* next_;
};

// out = relu(x).
inline void rectify(const float* x, int64_t floats, float* out) {
  for (int64_t i = 0; i < floats; i += kLanes) store(out + i, relu(load(x + i)));
}

// The sum of value(p) for p < count, as four sums: they hide the latency of an addition.
template <typename Value>
inline __attribute__((always_inline)) Vec sum_of(int64_t count, const Value& value) {
  Vec sum[4] = {};
  int64_t p = 0;
  for (; p + 4 <= count; p += 4) {
#pragma GCC unroll 4
    for (int64_t k = 0; k < 4; ++k) sum[k] += value(p + k);
  }
  for (; p < count; ++p) sum[0] += value(p);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// sum[i][j] += sum over pixels p of a[p][i] * b[p][j], for kRows i and kVecs vectors of j; rows of a, b and
// sum lie so many floats apart.
template <int kRows, int kVecs>
inline __attribute__((always_inline)) void outer_block(const float* __restrict a, int64_t a_stride,
                                                       const float* __restrict b, int64_t b_stride,
                                                       int64_t count, float* sum, int64_t sum_stride) {
  Vec block[kRows][kVecs] = {};  // from zero: summing in two levels loses less
  for (int64_t p = 0; p < count; ++p) {
    Vec right[kVecs];
#pragma GCC unroll 2
    for (int n = 0; n < kVecs; ++n) right[n] = load(b + p * b_stride + n * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
      for (int n = 0; n < kVecs; ++n) block[i][n] += a[p * a_stride + i] * right[n];
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int n = 0; n < kVecs; ++n) {
      float* to = sum + i * sum_stride + n * kLanes;
      store(to, load(to) + block[i][n]);
    }
  }
}

// sum [rows][columns] += a^T b of a [count][rows], its rows a_stride floats apart, and b [count][columns].
inline void outer(const float* a, int64_t a_stride, int64_t rows, const float* b, int64_t columns,
                  int64_t count, float* sum) {
  for (int64_t j = 0; j < columns; j += kMostBlock) {
    const bool one = j + kMostBlock > columns;
    for (int64_t i = 0; i < rows;) {
      float* to = sum + i * columns + j;
      if (one && i + 8 <= rows) {  // eight sums hide the latency of the multiply-add
        outer_block<8, 1>(a + i, a_stride, b + j, columns, count, to, columns);
        i += 8;
        continue;
      }
      if (one) {
        outer_block<4, 1>(a + i, a_stride, b + j, columns, count, to, columns);
      } else {
        outer_block<4, 2>(a + i, a_stride, b + j, columns, count, to, columns);
      }
      i += 4;
    }
  }
}

// sum [padded][padded] += a^T b of a, b [count][padded].
inline void outer(const float* a, const float* b, int64_t count, int64_t padded, float* sum) {
  outer(a, padded, padded, b, padded, count, sum);
}

// matrix = w(to, from) in blocks of columns `to`; the padding is zero already.
template <typename Weight>
void pack_rectangle(int64_t channels, int64_t out_channels, int64_t padded, int64_t out_padded, float* matrix,
                    const Weight& w) {
  for (int64_t to = 0; to < out_channels; ++to) {
    const int64_t first = to / kMostBlock * kMostBlock;
    const int64_t block = first + kMostBlock <= out_padded ? kMostBlock : kLanes;
    float* column = matrix + first * padded + (to - first);
    for (int64_t from = 0; from < channels; ++from) column[from * block] = w(to, from);
  }
}

// out [count][padded] = sum over operands of tiles [count][padded] times weight [padded][padded] in blocks.
inline void multiply(const Operand* operands, int64_t operand_count, int64_t count, int64_t padded,
                     float* out) {
  for (int64_t c = 0; c < padded; c += kMostBlock) {
    if (c + kMostBlock <= padded) {
      products<2>(operands, operand_count, count, 0, c * padded, padded, padded, out + c, padded);
    } else {
      products<1>(operands, operand_count, count, 0, c * padded, padded, padded, out + c, padded);
    }
  }
}

}  // namespace
