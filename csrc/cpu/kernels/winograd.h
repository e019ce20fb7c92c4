// Winograd F(4x4, 3x3) over channel vectors: Y = A^T [ (G W G^T) . (B^T X B) ] A for 6x6 tiles X that
// overlap by two pixels and 4x4 tiles Y (Lavin and Gray, 2016).
#pragma once

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

// G W G^T for one pair of channels: w [3][3] -> u [36].
inline void transform_weight_3x3(const float w[9], float u[36]) {
  float rows[6][3];
  for (int c = 0; c < 3; ++c) {
    const float w0 = w[c], w1 = w[3 + c], w2 = w[6 + c];
    rows[0][c] = w0 / 4;
    rows[1][c] = -(w0 + w1 + w2) / 6;
    rows[2][c] = -(w0 - w1 + w2) / 6;
    rows[3][c] = w0 / 24 + w1 / 12 + w2 / 6;
    rows[4][c] = w0 / 24 - w1 / 12 + w2 / 6;
    rows[5][c] = w2;
  }
  for (int r = 0; r < 6; ++r) {
    const float w0 = rows[r][0], w1 = rows[r][1], w2 = rows[r][2];
    u[6 * r] = w0 / 4;
    u[6 * r + 1] = -(w0 + w1 + w2) / 6;
    u[6 * r + 2] = -(w0 - w1 + w2) / 6;
    u[6 * r + 3] = w0 / 24 + w1 / 12 + w2 / 6;
    u[6 * r + 4] = w0 / 24 - w1 / 12 + w2 / 6;
    u[6 * r + 5] = w2;
  }
}

// One source of the summed matrix products: its transformed node and its transformed weight.
struct Operand {
  const float* tiles;   // [36][tiles][padded], points `point_stride` apart
  const float* weight;  // [36][padded / block][padded][block]
};

// m[r][n] = sum over operands and k of tiles[r][k] * weight[k][n], for kRows tiles and kVecs vectors.
template <int kRows, int kVecs>
inline __attribute__((always_inline)) void product(const Operand* operands, int64_t count,
                                                   int64_t tile_offset, int64_t weight_offset, int64_t padded,
                                                   float* m, int64_t m_stride) {
  Vec sum[kRows][kVecs] = {};
  for (int64_t e = 0; e < count; ++e) {
    const float* __restrict a = operands[e].tiles + tile_offset;
    const float* __restrict w = operands[e].weight + weight_offset;
    for (int64_t k = 0; k < padded; ++k) {
      Vec weight[kVecs];
#pragma GCC unroll 2
      for (int n = 0; n < kVecs; ++n) weight[n] = load(w + (k * kVecs + n) * kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int n = 0; n < kVecs; ++n) sum[r][n] += a[r * padded + k] * weight[n];
      }
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int n = 0; n < kVecs; ++n) store(m + r * m_stride + n * kLanes, sum[r][n]);
  }
}

// All tiles of one point and one block of output channels. m [tiles][kVecs * lanes].
template <int kVecs>
inline void products(const Operand* operands, int64_t count, int64_t tiles, int64_t point_offset,
                     int64_t weight_offset, int64_t padded, float* m) {
  constexpr int64_t kBlock = kVecs * kLanes;
  constexpr int kMost = kVecs == 2 ? 6 : 12;  // twelve sums hide the latency of the multiply-add
  int64_t t = 0;
#define VPDARTS_ROWS(ROWS)                                                                                  \
  for (; t + ROWS <= tiles; t += ROWS)                                                                      \
    product<ROWS, kVecs>(operands, count, point_offset + t * padded, weight_offset, padded, m + t * kBlock, \
                         kBlock);
  VPDARTS_ROWS(kMost)
  VPDARTS_ROWS(4)
  VPDARTS_ROWS(2)
  VPDARTS_ROWS(1)
#undef VPDARTS_ROWS
}

}  // namespace
