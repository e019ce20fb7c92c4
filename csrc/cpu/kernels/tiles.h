// Winograd convolutions over blocks of images: tiles, their transforms and products.
#pragma once

#include "images.h"

namespace {

// The 4x4 tiles of a block's images and their 6x6 transforms, [36][tiles][padded].
struct Tiles {
  explicit Tiles(const Block& block)
      : rows((block.height + 3) / 4),
        columns((block.width + 3) / 4),
        count(block.images * rows * columns),
        point_stride(count * block.padded + kCacheLine),
        floats(kPoints * point_stride),
        product_floats(kPoints * product_stride(2)) {}
  // Floats between the points of products of a block of `vecs` vectors.
  int64_t product_stride(int64_t vecs) const { return count * vecs * kLanes + kCacheLine; }
  int64_t rows, columns, count, point_stride, floats, product_floats;
};

struct Range {
  int64_t begin, end;
};

// Which of `count` pixels from `start` on are inside 0..size-1, counted from `start`.
inline Range inside(int64_t start, int64_t count, int64_t size) {
  return {start < 0 ? -start : 0, start + count > size ? size - start : count};
}

// Calls visit(tile, image, first row, first column) for every 4x4 tile.
template <typename Visit>
inline __attribute__((always_inline)) void for_each_tile(const Block& block, const Tiles& tiles,
                                                         const Visit& visit) {
  int64_t tile = 0;
  for (int64_t b = 0; b < block.images; ++b) {
    for (int64_t ty = 0; ty < tiles.rows; ++ty) {
      for (int64_t tx = 0; tx < tiles.columns; ++tx, ++tile) visit(tile, b, 4 * ty, 4 * tx);
    }
  }
}

// transformed = B^T relu(x) B of every tile.
void transform_input(const Block& s, const Tiles& tiles, const float* x, float* transformed) {
  const int64_t row = s.width * s.padded;
  for_each_tile(s, tiles, [&](int64_t tile, int64_t b, int64_t y, int64_t i) {
    const Range rows = inside(y - 1, 6, s.height), columns = inside(i - 1, 6, s.width);
    const bool whole = rows.end - rows.begin == 6 && columns.end - columns.begin == 6;
    const float* corner = x + b * s.height * row + (y - 1) * row + (i - 1) * s.padded;
    for (int64_t c = 0; c < s.padded; c += kLanes) {
      Vec half[36];
      const float* from = corner + c;
      if (whole) {
        for (int k = 0; k < 6; ++k) {
          Vec column[6];
          for (int r = 0; r < 6; ++r) column[r] = relu(load(from + r * row + k * s.padded));
          transform_input_6(column, 1, half + k, 6);
        }
      } else {
        Vec raw[36] = {};
        for (int64_t r = rows.begin; r < rows.end; ++r) {
          for (int64_t k = columns.begin; k < columns.end; ++k)
            raw[6 * r + k] = relu(load(from + r * row + k * s.padded));
        }
        for (int k = 0; k < 6; ++k) transform_input_6(raw + k, 6, half + k, 6);
      }
      float* out = transformed + tile * s.padded + c;
      for (int r = 0; r < 6; ++r) {
        Vec done[6];
        transform_input_6(half + 6 * r, 1, done, 1);
        for (int k = 0; k < 6; ++k) store(out + (6 * r + k) * tiles.point_stride, done[k]);
      }
    }
  });
}

// m [36][tiles][block] = sum over operands of their products, for the block of kVecs vectors from c on.
template <int kVecs>
void multiply_tiles(const Block& s, const Tiles& tiles, const Operand* operands, int64_t count, int64_t c,
                    float* m) {
  for (int64_t point = 0; point < kPoints; ++point) {
    products<kVecs>(operands, count, tiles.count, point * tiles.point_stride,
                    (point * s.padded + c) * s.padded, s.padded, s.padded,
                    m + point * tiles.product_stride(kVecs), kVecs * kLanes);
  }
}

// Calls put(vector, pixel of the block, value) for every pixel of A^T m A, a block of kVecs vectors.
template <int kVecs, typename Put>
inline __attribute__((always_inline)) void inverse_transform(const Block& s, const Tiles& tiles,
                                                             const float* m, const Put& put) {
  const int64_t point = tiles.product_stride(kVecs);
  for_each_tile(s, tiles, [&](int64_t tile, int64_t b, int64_t y, int64_t i) {
    const int64_t rows = s.height - y < 4 ? s.height - y : 4, columns = s.width - i < 4 ? s.width - i : 4;
#pragma GCC unroll 2
    for (int n = 0; n < kVecs; ++n) {
      Vec half[24];
      const float* from = m + (tile * kVecs + n) * kLanes;
      for (int k = 0; k < 6; ++k) {
        const float* column = from + k * point;
        transform_output_4(load(column), load(column + 6 * point), load(column + 12 * point),
                           load(column + 18 * point), load(column + 24 * point), load(column + 30 * point),
                           half + k, 6);
      }
      for (int64_t r = 0; r < rows; ++r) {
        const Vec* h = half + 6 * r;
        Vec done[4];
        transform_output_4(h[0], h[1], h[2], h[3], h[4], h[5], done, 1);
        const int64_t pixel = (b * s.height + y + r) * s.width + i;
        if (columns == 4) {
          for (int k = 0; k < 4; ++k) put(n, pixel + k, done[k]);
        } else {
          for (int64_t k = 0; k < columns; ++k) put(n, pixel + k, done[k]);
        }
      }
    }
  });
}

}  // namespace
