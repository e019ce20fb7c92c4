// relu_pointwise: one or two 1x1 convolutions of relu(x), side by side.
//
//   forward   raw(p) = W_i relu(x(stride p + i))
//   backward  dx(stride p + i) = [x > 0] W_i^T draw_i(p),   dW_i += sum over p of draw_i(p) relu(...)^T
//
// A few rows at a time, so that relu(x) stays in the first-level cache between its making and the product.
// Compiled once per instruction set; VPDARTS_ISA names the namespace.
#include "relu_pointwise.h"

#include "images.h"

namespace {

using vpdarts::cpu::PointwiseShape;
using vpdarts::cpu::ReluPointwiseBackward;
using vpdarts::cpu::ReluPointwiseForward;

constexpr int64_t kMostConvolutions = 2;

// A block of columns of the output and the convolutions, from `begin` to end - 1, that have a share in it.
struct Columns {
  int64_t first, vecs, begin, end;
};

// The convolutions of one vector of columns.
inline Columns one_vector(const PointwiseShape& s, int64_t first) {
  Columns columns{first, 1, 0, s.count};
  while (columns.begin + 1 < s.count && s.first[columns.begin + 1] <= first) ++columns.begin;
  while (columns.end - 1 > columns.begin && s.first[columns.end - 1] >= first + kLanes) --columns.end;
  return columns;
}

// Calls visit(columns) for all blocks; two vectors are a block where they have the same convolutions.
template <typename Visit>
inline void for_each_columns(const PointwiseShape& s, const Visit& visit) {
  for (int64_t c = 0; c < s.out_padded;) {
    Columns columns = one_vector(s, c);
    if (c + kMostBlock <= s.out_padded) {
      const Columns next = one_vector(s, c + kLanes);
      if (next.begin == columns.begin && next.end == columns.end) columns.vecs = 2;
    }
    visit(columns);
    c += columns.vecs * kLanes;
  }
}

void pack(const PointwiseShape& s, const float* const* weights, float* packed) {
  zero(packed, s.count * s.padded * s.out_padded);
  for (int64_t i = 0; i < s.count; ++i, packed += s.padded * s.out_padded) {
    for_each_columns(s, [&](const Columns& columns) {
      const int64_t width = columns.vecs * kLanes;
      float* block = packed + columns.first * s.padded;
      for (int64_t j = 0; j < width; ++j) {
        const int64_t out = columns.first + j;
        if (out < s.first[i] || out >= s.first[i + 1]) continue;
        const float* row = weights[i] + (out - s.first[i]) * s.channels;
        for (int64_t in = 0; in < s.channels; ++in) block[in * width + j] = row[in];
      }
    });
  }
}

void pack_transposed(const PointwiseShape& s, const float* const* weights, float* transposed) {
  zero(transposed, s.first[s.count] * s.padded);
  for (int64_t i = 0; i < s.count; ++i) {
    const int64_t depth = s.first[i + 1] - s.first[i];
    pack_rectangle(depth, s.channels, depth, s.padded, transposed,
                   [&](int64_t in, int64_t out) { return weights[i][out * s.channels + in]; });
    transposed += depth * s.padded;
  }
}

int64_t rows_together(const PointwiseShape& s) {
  const int64_t rows = 2048 / s.padded / s.out_width();
  return rows < 1 ? 1 : rows < s.out_height() ? rows : s.out_height();
}

// Calls visit(first row, rows) of the output.
template <typename Visit>
inline void for_each_rows(const PointwiseShape& s, const Visit& visit) {
  const int64_t most = rows_together(s), height = s.out_height();
  for (int64_t y = 0; y < height; y += most) visit(y, height - y < most ? height - y : most);
}

int64_t chunk_floats(const PointwiseShape& s) {
  return round_up(rows_together(s) * s.out_width() * s.padded, 16);
}

int64_t scratch_floats(const PointwiseShape& s) { return kMostConvolutions * chunk_floats(s); }

// Calls visit(float of x, float of the chunk) for the pixels of rows y to y + rows - 1 of the output that
// convolution i reads inside of the image, and outside(float of the chunk, floats) for the rest of a row.
template <typename Visit, typename Outside>
inline __attribute__((always_inline)) void for_each_pixel(const PointwiseShape& s, int64_t y, int64_t rows,
                                                          int64_t i, const Visit& visit,
                                                          const Outside& outside) {
  const int64_t row = s.out_width() * s.padded, inside = (s.width - i + s.stride - 1) / s.stride;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t from = s.stride * (y + r) + i, to = r * row;
    const int64_t pixels = from < s.height ? inside : 0;
    for (int64_t p = 0; p < pixels; ++p)
      visit((from * s.width + s.stride * p + i) * s.padded, to + p * s.padded);
    outside(to + pixels * s.padded, row - pixels * s.padded);
  }
}

// chunk = relu(x) where convolution i reads it, zero outside.
void rectify_pixels(const PointwiseShape& s, const float* x, int64_t y, int64_t rows, int64_t i,
                    float* chunk) {
  if (s.stride == 1) return rectify(x + y * s.width * s.padded, rows * s.width * s.padded, chunk);
  for_each_pixel(
      s, y, rows, i, [&](int64_t from, int64_t to) { rectify(x + from, s.padded, chunk + to); },
      [&](int64_t to, int64_t floats) { zero(chunk + to, floats); });
}

void forward(const ReluPointwiseForward& args, float* scratch) {
  const PointwiseShape& s = args.shape;
  const int64_t chunk = chunk_floats(s);
  for_each_rows(s, [&](int64_t y, int64_t rows) {
    Operand operands[kMostConvolutions];
    for (int64_t i = 0; i < s.count; ++i) {
      rectify_pixels(s, args.x, y, rows, i, scratch + i * chunk);
      operands[i] = {scratch + i * chunk, args.packed + i * s.padded * s.out_padded};
    }
    float* to = args.raw + y * s.out_width() * s.out_padded;
    for_each_columns(s, [&](const Columns& columns) {
      const auto multiply_columns = columns.vecs == 2 ? products<2> : products<1>;
      multiply_columns(operands + columns.begin, columns.end - columns.begin, rows * s.out_width(), 0,
                       columns.first * s.padded, s.padded, s.padded, to + columns.first, s.out_padded);
    });
  });
}

// out [pixels][padded] = W_i^T draw_i of so many pixels; `gradient`: of all channels.
void multiply_transposed(const PointwiseShape& s, int64_t i, const float* gradient, const float* transposed,
                         int64_t pixels, float* out) {
  const int64_t depth = s.first[i + 1] - s.first[i];
  const Operand operand{gradient + s.first[i], transposed + s.first[i] * s.padded};
  for (int64_t c = 0; c < s.padded; c += kMostBlock) {
    const auto multiply_columns = c + kMostBlock <= s.padded ? products<2> : products<1>;
    multiply_columns(&operand, 1, pixels, 0, c * depth, depth, s.out_padded, out + c, s.padded);
  }
}

// to = [x > 0] gradient.
inline void mask(const float* x, const float* gradient, int64_t floats, float* to) {
  for (int64_t i = 0; i < floats; i += kLanes) store(to + i, relu_gradient(load(x + i), load(gradient + i)));
}

// What no convolution reads has the gradient 0.
void clear_rows(const PointwiseShape& s, int64_t y, int64_t rows, float* x_gradient) {
  const int64_t row = s.width * s.padded, begin = s.stride * y, end = s.stride * (y + rows);
  zero(x_gradient + begin * row, ((end < s.height ? end : s.height) - begin) * row);
}

void add_weight_sums(const PointwiseShape& s, int64_t i, const float* gradient, const float* chunk,
                     int64_t pixels, float* sums) {
  const int64_t begin = s.first[i] / 4 * 4, rows = round_up(s.first[i + 1], 4) - begin;  // as `outer` has it
  outer(gradient + begin, s.out_padded, rows, chunk, s.padded, pixels,
        sums + (i * s.out_padded + begin) * s.padded);
}

void backward(const ReluPointwiseBackward& args, float* scratch) {
  const PointwiseShape& s = args.shape;
  for_each_rows(s, [&](int64_t y, int64_t rows) {
    const int64_t pixels = rows * s.out_width();
    const float* gradient = args.gradient + y * s.out_width() * s.out_padded;
    if (args.x_gradient != nullptr && s.stride > 1) clear_rows(s, y, rows, args.x_gradient);
    for (int64_t i = 0; i < s.count; ++i) {
      if (args.weight_sums != nullptr) {
        rectify_pixels(s, args.x, y, rows, i, scratch);
        add_weight_sums(s, i, gradient, scratch, pixels, args.weight_sums);
      }
      if (args.x_gradient == nullptr) continue;
      multiply_transposed(s, i, gradient, args.transposed, pixels, scratch);
      if (s.stride == 1) {
        const int64_t at = y * s.width * s.padded;
        mask(args.x + at, scratch, pixels * s.padded, args.x_gradient + at);
      } else {
        for_each_pixel(
            s, y, rows, i,
            [&](int64_t at, int64_t from) {
              mask(args.x + at, scratch + from, s.padded, args.x_gradient + at);
            },
            [](int64_t, int64_t) {});
      }
    }
  });
}

}  // namespace

namespace vpdarts::cpu::VPDARTS_ISA {

const ReluPointwiseKernels& relu_pointwise_kernels() {
  static const ReluPointwiseKernels kernels = {kLanes,         pack,    pack_transposed,
                                               scratch_floats, forward, backward};
  return kernels;
}

}  // namespace vpdarts::cpu::VPDARTS_ISA
