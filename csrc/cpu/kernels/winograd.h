// Winograd F(4x4, 3x3) over channel vectors: Y = A^T [ (G W G^T) . (B^T X B) ] A for 6x6 tiles X that
// overlap by two pixels and 4x4 tiles Y (Lavin and Gray, 2016).
#pragma once

#include <cstddef>

#include "vec.h"

namespace {

// B^T times a column of six.
inline __attribute__((always_inline)) void transform_input_6(const Vec* x, int64_t stride, Vec* out,
                                                             int64_t out_stride) {
  const Vec x0 = x[0], x1 = x[stride], x2 = x[2 * stride], x3 = x[3 * stride], x4 = x[4 * stride],
            x5 = x[5 * stride];
  const Vec even = x4 - 4.0f * x2, odd = x3 - 4.0f * x1;
  const Vec even2 = x4 - x2, odd2 = 2.0f * (x3 - x1);
  out[0] = 4.0f * x0 - 5.0f * x2 + x4;
  out[out_stride] = even + odd;
  out[2 * out_stride] = even - odd;
  out[3 * out_stride] = even2 + odd2;
  out[4 * out_stride] = even2 - odd2;
  out[5 * out_stride] = 4.0f * x1 - 5.0f * x3 + x5;
}

// A^T times a column of six.
inline __attribute__((always_inline)) void transform_output_4(Vec m0, Vec m1, Vec m2, Vec m3, Vec m4, Vec m5,
                                                              Vec* out, int64_t out_stride) {
  const Vec sum12 = m1 + m2, difference12 = m1 - m2, sum34 = m3 + m4, difference34 = m3 - m4;
  out[0] = m0 + sum12 + sum34;
  out[out_stride] = difference12 + 2.0f * difference34;
  out[2 * out_stride] = sum12 + 4.0f * sum34;
  out[3 * out_stride] = difference12 + 8.0f * difference34 + m5;
}

// A times a column of four: the adjoint of transform_output_4.
inline __attribute__((always_inline)) void adjoint_output_4(const Vec* y, int64_t stride, Vec* out,
                                                            int64_t out_stride) {
  const Vec y0 = y[0], y1 = y[stride], y2 = y[2 * stride], y3 = y[3 * stride];
  const Vec even = y0 + y2, odd = y1 + y3, even4 = y0 + 4.0f * y2, odd4 = 2.0f * y1 + 8.0f * y3;
  out[0] = y0;
  out[out_stride] = even + odd;
  out[2 * out_stride] = even - odd;
  out[3 * out_stride] = even4 + odd4;
  out[4 * out_stride] = even4 - odd4;
  out[5 * out_stride] = y3;
}

// B times a column of six: the adjoint of transform_input_6.
inline __attribute__((always_inline)) void adjoint_input_6(const Vec* o, int64_t stride, Vec* out,
                                                           int64_t out_stride) {
  const Vec o0 = o[0], o5 = o[5 * stride];
  const Vec sum12 = o[stride] + o[2 * stride], difference12 = o[stride] - o[2 * stride];
  const Vec sum34 = o[3 * stride] + o[4 * stride], difference34 = o[3 * stride] - o[4 * stride];
  out[0] = 4.0f * o0;
  out[out_stride] = 4.0f * (o5 - difference12) - 2.0f * difference34;
  out[2 * out_stride] = -5.0f * o0 - 4.0f * sum12 - sum34;
  out[3 * out_stride] = difference12 + 2.0f * difference34 - 5.0f * o5;
  out[4 * out_stride] = o0 + sum12 + sum34;
  out[5 * out_stride] = o5;
}

// G times a column of three.
inline __attribute__((always_inline)) void transform_weight_3(Vec w0, Vec w1, Vec w2, Vec* out,
                                                              int64_t out_stride) {
  const Vec even = (w0 + w2) * (-1.0f / 6), odd = w1 * (1.0f / 6);
  const Vec even4 = w0 * (1.0f / 24) + w2 * (1.0f / 6), odd4 = w1 * (1.0f / 12);
  out[0] = w0 * 0.25f;
  out[out_stride] = even - odd;
  out[2 * out_stride] = even + odd;
  out[3 * out_stride] = even4 + odd4;
  out[4 * out_stride] = even4 - odd4;
  out[5 * out_stride] = w2;
}

// G^T times a column of six: the adjoint of transform_weight_3.
inline __attribute__((always_inline)) void adjoint_weight_3(const Vec* u, int64_t stride, Vec* out,
                                                            int64_t out_stride) {
  const Vec sum12 = u[stride] + u[2 * stride], difference12 = u[stride] - u[2 * stride];
  const Vec sum34 = u[3 * stride] + u[4 * stride], difference34 = u[3 * stride] - u[4 * stride];
  out[0] = u[0] * 0.25f - sum12 * (1.0f / 6) + sum34 * (1.0f / 24);
  out[out_stride] = difference34 * (1.0f / 12) - difference12 * (1.0f / 6);
  out[2 * out_stride] = (sum34 - sum12) * (1.0f / 6) + u[5 * stride];
}

// u = G W G^T for one input channel and a vector of output channels; w, u: 9 and 36 vectors.
inline __attribute__((always_inline)) void transform_weight_3x3(const Vec* w, Vec* u) {
  Vec rows[18];
  for (int c = 0; c < 3; ++c) transform_weight_3(w[c], w[3 + c], w[6 + c], rows + c, 3);
  for (int r = 0; r < 6; ++r) transform_weight_3(rows[3 * r], rows[3 * r + 1], rows[3 * r + 2], u + 6 * r, 1);
}

constexpr int64_t kPoints = 36;  // of a 6x6 tile

// Floats that points lie further apart than they must, so that they do not fall into the same cache sets.
constexpr int64_t kCacheLine = 16;

// Columns of a matrix lie in blocks of two vectors; the last block may have one.
constexpr int64_t kMostBlock = 2 * kLanes;

inline int64_t weight_floats(int64_t padded) { return kPoints * padded * padded; }

// Transformed weights [36][padded / block][padded][block]: the products' rows are input channels, the
// columns in a block output channels. tap(from, to, w) gives the 9 taps of a pair of channels.
template <typename Taps>
void pack_weight(int64_t channels, int64_t padded, float* weight, const Taps& taps) {
  const int64_t stride = padded * padded;
  __builtin_memset(weight, 0, sizeof(float) * static_cast<std::size_t>(weight_floats(padded)));
  for (int64_t to = 0; to < channels; to += kLanes) {
    const int64_t first = to / kMostBlock * kMostBlock;
    const int64_t block = first + kMostBlock <= padded ? kMostBlock : kLanes;
    for (int64_t from = 0; from < channels; ++from) {
      float columns[9][kLanes] = {}, w[9];
      for (int64_t lane = 0; lane < kLanes && to + lane < channels; ++lane) {
        taps(from, to + lane, w);
        for (int i = 0; i < 9; ++i) columns[i][lane] = w[i];
      }
      Vec in[9], u[36];
      for (int i = 0; i < 9; ++i) in[i] = load(columns[i]);
      transform_weight_3x3(in, u);
      float* out = weight + first * padded + from * block + (to - first);
      for (int64_t point = 0; point < kPoints; ++point) store(out + point * stride, u[point]);
    }
  }
}

// One source of the summed matrix products: its transformed node and its transformed weight.
struct Operand {
  const float* tiles;   // [36][tiles][padded], points `point_stride` apart
  const float* weight;  // [36][padded / block][padded][block]
};

// m[r][n] = sum over operands and k < depth of tiles[r][k] * weight[k][n], for kRows tiles and kVecs
// vectors; tiles lie `tile_stride` floats apart.
template <int kRows, int kVecs>
inline __attribute__((always_inline)) void product(const Operand* operands, int64_t count,
                                                   int64_t tile_offset, int64_t weight_offset, int64_t depth,
                                                   int64_t tile_stride, float* m, int64_t m_stride) {
  Vec sum[kRows][kVecs] = {};
  for (int64_t e = 0; e < count; ++e) {
    const float* __restrict a = operands[e].tiles + tile_offset;
    const float* __restrict w = operands[e].weight + weight_offset;
    for (int64_t k = 0; k < depth; ++k) {
      Vec weight[kVecs];
#pragma GCC unroll 2
      for (int n = 0; n < kVecs; ++n) weight[n] = load(w + (k * kVecs + n) * kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int n = 0; n < kVecs; ++n) sum[r][n] += a[r * tile_stride + k] * weight[n];
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int n = 0; n < kVecs; ++n) store(m + r * m_stride + n * kLanes, sum[r][n]);
  }
}

// All tiles of one point and one block of output channels; rows of m are m_stride floats apart.
template <int kVecs>
inline void products(const Operand* operands, int64_t count, int64_t tiles, int64_t point_offset,
                     int64_t weight_offset, int64_t depth, int64_t tile_stride, float* m, int64_t m_stride) {
  constexpr int kMost = kVecs == 2 ? 6 : 12;  // twelve sums hide the latency of the multiply-add
  int64_t t = 0;
#define VPDARTS_ROWS(ROWS)                                                                                 \
  product<ROWS, kVecs>(operands, count, point_offset + t * tile_stride, weight_offset, depth, tile_stride, \
                       m + t * m_stride, m_stride);                                                        \
  t += ROWS;
  while (tiles - t >= kMost && tiles - t != 8) {  // eight are better cut into four and four
    VPDARTS_ROWS(kMost)
  }
  while (tiles - t >= 4) {
    VPDARTS_ROWS(4)
  }
  while (tiles - t >= 2) {
    VPDARTS_ROWS(2)
  }
  if (tiles - t >= 1) {
    VPDARTS_ROWS(1)
  }
#undef VPDARTS_ROWS
}

}  // namespace
