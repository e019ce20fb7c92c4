// mixed_op: the parts of one edge's candidate operations.
//
//   separable           d = depthwise(map), raw(p) = W d(p)
//   separable_backward  draw = node_scale g + raw_scale raw + shift, dd(p) = W^T draw(p),
//                       dW = sum over p of draw(p) d(p)^T, dw_rk = sum over p of dd(p) map(p + (r, k)),
//                       dmap = depthwise^T(dd)
//
// A few rows at a time, so that what lies between the two products stays in the first-level cache.
// Compiled once per instruction set; VPDARTS_ISA names the namespace.
#include "mixed_op.h"

#include "pool_3x3.h"
#include "separable.h"

namespace {

using vpdarts::cpu::MixedOpKernels;
using vpdarts::cpu::Pool;
using vpdarts::cpu::RawGradient;
using vpdarts::cpu::RectifiedMapOf;
using vpdarts::cpu::Reduction;
using vpdarts::cpu::Separable;
using vpdarts::cpu::SeparableBackward;
using vpdarts::cpu::Term;
using vpdarts::cpu::WeightedSum;

void pack(int64_t channels, int64_t padded, int64_t kernel, const float* depthwise, const float* pointwise,
          float* packed) {
  const int64_t taps = kernel * kernel, square = padded * padded;
  zero(packed, taps * padded + 2 * square);
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t tap = 0; tap < taps; ++tap) packed[tap * padded + c] = depthwise[c * taps + tap];
  }
  packed += taps * padded;
  const auto weight = [&](int64_t out, int64_t in) { return pointwise[out * channels + in]; };
  pack_rectangle(channels, channels, padded, padded, packed, weight);
  pack_rectangle(channels, channels, padded, padded, packed + square,
                 [&](int64_t in, int64_t out) { return weight(out, in); });
}

void rectify_map(const RectifiedMapOf& args) {
  const StageShape& s = args.shape;
  const int64_t row = s.width * s.padded, side = s.border * s.padded;
  zero(args.map, s.border * s.map_row() + side);
  float* to = args.map + s.border * s.map_row() + side;
  for (int64_t y = 0; y < s.height; ++y, to += s.map_row()) {
    const float* from = args.x + y * row;
    for (int64_t c = 0; c < s.padded; c += kLanes) {
      const bool affine = args.scale != nullptr;
      const Vec scale = affine ? load(args.scale + c) : Vec{} + 1.0f,
                shift = affine ? load(args.shift + c) : Vec{};
      for (int64_t i = c; i < row; i += s.padded) {
        const Vec value = load(from + i);
        store(to + i, relu(affine ? scale * value + shift : value));
      }
    }
    zero(to + row, 2 * side);
  }
  zero(to, s.border * s.map_row() - side);
}

// Rows that are worked on together: a whole number of the products' blocks if rows are multiples of eight.
int64_t rows_together(const StageShape& s) {
  const int64_t rows = 1536 / s.padded / s.out_width();
  return rows < 1 ? 1 : rows < s.out_height() ? rows : s.out_height();
}

// Calls visit(first row, rows).
template <typename Visit>
inline void for_each_rows(const StageShape& s, const Visit& visit) {
  const int64_t most = rows_together(s), height = s.out_height();
  for (int64_t y = 0; y < height; y += most) visit(y, height - y < most ? height - y : most);
}

int64_t chunk_floats(const StageShape& s) {
  return round_up(rows_together(s) * s.out_width() * s.padded, 16);
}

// Two chunks and a map of the output's gradient, or what a pool needs.
int64_t scratch_floats(const StageShape& s) {
  const int64_t separable = 2 * chunk_floats(s) + round_up(s.next().map_floats(), 16), pool = pool_floats(s);
  return separable > pool ? separable : pool;
}

void separable(const Separable& args, float* scratch) {
  const StageShape& s = args.shape;
  const int64_t row = s.out_width() * s.padded;
  const Taps taps = forward_taps(s, args.weights);
  for_each_rows(s, [&](int64_t y, int64_t rows) {
    for (int64_t r = 0; r < rows; ++r) depthwise(s, taps, args.map, y + r, scratch + r * row);
    const Operand operand{scratch, args.weights.pointwise};
    multiply(&operand, 1, rows * s.out_width(), s.padded, args.raw + y * row);
  });
}

// out = node_scale node + raw_scale raw + shift, `pixels` of them from `at` on.
void write_gradient(const RawGradient& args, int64_t at, int64_t pixels, int64_t padded, float* out) {
  for (int64_t c = 0; c < padded; c += kLanes) {
    const Vec node_scale = load(args.node_scale + c), raw_scale = load(args.raw_scale + c),
              shift = load(args.shift + c);
    for (int64_t i = c; i < pixels * padded; i += padded)
      store(out + i, node_scale * load(args.node + at + i) + (raw_scale * load(args.raw + at + i) + shift));
  }
}

// What `write_gradient` will read next comes while the last of it is worked on.
void prefetch_gradient(const RawGradient& args, int64_t at, int64_t floats) {
  for (int64_t i = 0; i < floats; i += 16) {
    __builtin_prefetch(args.node + at + i);
    __builtin_prefetch(args.raw + at + i);
  }
}

void raw_gradient(const Block& block, const RawGradient& gradient, float* out) {
  write_gradient(gradient, 0, block.pixels(), block.padded, out);
}

// A map of zeros but for its interior.
void clear_border(const StageShape& s, float* map) {
  const int64_t side = s.border * s.padded;
  zero(map, s.border * s.map_row() + side);
  for (int64_t y = 1; y < s.height; ++y) zero(map + (s.border + y) * s.map_row() - side, 2 * side);
  zero(map + (s.border + s.height) * s.map_row() - side, s.border * s.map_row() + side);
}

void add_depthwise_sums(const SeparableBackward& args, const float* gradient) {
  switch (args.weights.kernel) {
    case 3:
      return depthwise_sums<3>(args.shape, args.weights, args.map, gradient, args.depthwise_sums);
    case 5:
      return depthwise_sums<5>(args.shape, args.weights, args.map, gradient, args.depthwise_sums);
    default:
      return depthwise_sums<7>(args.shape, args.weights, args.map, gradient, args.depthwise_sums);
  }
}

void separable_backward(const SeparableBackward& args, float* scratch) {
  const StageShape &s = args.shape, out = s.next();
  const int64_t row = s.out_width() * s.padded;
  Arena arena(scratch);
  float *raw = arena.take(chunk_floats(s)), *inner = arena.take(chunk_floats(s)),
        *map = arena.take(out.map_floats());
  clear_border(out, map);
  const Taps taps = forward_taps(s, args.weights);
  for_each_rows(s, [&](int64_t y, int64_t rows) {
    write_gradient(args.raw, y * row, rows * s.out_width(), s.padded, raw);
    prefetch_gradient(args.raw, (y + rows) * row, rows * row);
    for (int64_t r = 0; r < rows; ++r) {
      const Operand operand{raw + r * row, args.weights.transposed};
      multiply(&operand, 1, s.out_width(), s.padded,
               map + (out.border + y + r) * out.map_row() + out.border * s.padded);
      if (args.pointwise_sums != nullptr) depthwise(s, taps, args.map, y + r, inner + r * row);
    }
    if (args.pointwise_sums != nullptr)
      outer(inner, raw, rows * s.out_width(), s.padded, args.pointwise_sums);
  });
  if (args.depthwise_sums != nullptr) add_depthwise_sums(args, map);
  if (args.gradient != nullptr) depthwise_adjoint(s, args.weights, map, args.gradient);
}

void pool(const Pool& args, float* out, float* scratch) {
  args.maximum ? maximum_pool(args.shape, args.x, out, scratch)
               : average_pool(args.shape, args.x, out, scratch);
}

void pool_backward(const Pool& args, const float* gradient, float* x_gradient, float* scratch) {
  args.maximum ? maximum_pool_backward(args.shape, args.x, gradient, x_gradient, scratch)
               : average_pool_backward(args.shape, gradient, x_gradient, scratch);
}

// kPixels pixels, `from` floats into the images, one vector of channels.
template <int kPixels>
inline __attribute__((always_inline)) void weighted_block(const WeightedSum& args, int64_t from, int64_t c) {
  const int64_t padded = args.block.padded;
  Vec sum[kPixels];
#pragma GCC unroll 4
  for (int p = 0; p < kPixels; ++p) sum[p] = load(args.shift + c);
  for (int64_t t = 0; t < args.count; ++t) {
    const Vec scale = load(args.terms[t].channel + c);
    const float* image = args.terms[t].image + from + c;
#pragma GCC unroll 4
    for (int p = 0; p < kPixels; ++p) sum[p] += scale * load(image + p * padded);
  }
#pragma GCC unroll 4
  for (int p = 0; p < kPixels; ++p) store(args.out + from + p * padded + c, sum[p]);
}

void weighted_sum(const WeightedSum& args) {
  const int64_t padded = args.block.padded, pixels = args.block.pixels();
  for (int64_t p = 0; p < pixels;) {
    const bool four = p + 4 <= pixels;
    for (int64_t c = 0; c < padded; c += kLanes)
      four ? weighted_block<4>(args, p * padded, c) : weighted_block<1>(args, p * padded, c);
    p += four ? 4 : 1;
  }
}

// sum over pixels of g * (image - mean), one vector of channels; without an image, of g.
inline __attribute__((always_inline)) Vec reduced(const float* g, const float* image, const float* mean,
                                                  int64_t pixels, int64_t padded) {
  const Vec origin = image != nullptr ? load(mean) : Vec{};
  Vec sum[4] = {};  // hide the latency
  const auto add = [&](int64_t p, Vec& to) {
    const Vec value = load(g + p * padded);
    to += image != nullptr ? value * (load(image + p * padded) - origin) : value;
  };
  int64_t p = 0;
  for (; p + 4 <= pixels; p += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) add(p + i, sum[i]);
  }
  for (; p < pixels; ++p) add(p, sum[0]);
  return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// A few pixels at a time: g is read from the first-level cache, and summing in two levels loses less.
void reduce(const Reduction& args) {
  const int64_t padded = args.block.padded, pixels = args.block.pixels(), most = chunk_pixels(padded);
  zero(args.sums, (1 + args.count) * padded);
  for (int64_t p = 0; p < pixels; p += most) {
    const int64_t count = pixels - p < most ? pixels - p : most;
    for (int64_t c = 0; c < padded; c += kLanes) {
      const float* g = args.g + p * padded + c;
      float* to = args.sums + c;
      store(to, load(to) + reduced(g, nullptr, nullptr, count, padded));
      for (int64_t t = 0; t < args.count; ++t) {
        const Term& term = args.terms[t];
        to += padded;
        store(to, load(to) + reduced(g, term.image + p * padded + c, term.channel + c, count, padded));
      }
    }
  }
}

// From the first pixel on, so that little is lost where the mean is large.
void statistics(const Block& block, const float* raw, float* out) {
  const int64_t padded = block.padded, pixels = block.pixels(), most = chunk_pixels(padded);
  const float share = 1.0f / static_cast<float>(pixels);
  for (int64_t c = 0; c < padded; c += kLanes) {
    const Vec pivot = load(raw + c);
    Vec sum{}, square{};
    for (int64_t p = 0; p < pixels; p += most) {
      const int64_t end = p + most < pixels ? p + most : pixels;
      Vec sums[4] = {}, squares[4] = {};  // from zero: summing in two levels loses less
      const auto add = [&](int64_t at, int i) {
        const Vec difference = load(raw + at * padded + c) - pivot;
        sums[i] += difference;
        squares[i] += difference * difference;
      };
      int64_t at = p;
      for (; at + 4 <= end; at += 4) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) add(at + i, i);
      }
      for (; at < end; ++at) add(at, 0);
      sum += (sums[0] + sums[1]) + (sums[2] + sums[3]);
      square += (squares[0] + squares[1]) + (squares[2] + squares[3]);
    }
    const Vec offset = sum * share;
    store(out + c, pivot + offset);
    store(out + padded + c, square - offset * sum);
  }
}

void mask(const StageShape& s, const float* map, float* gradient) {
  const int64_t row = s.width * s.padded;
  for (int64_t y = 0; y < s.height; ++y) {
    const float* from = map + (s.border + y) * s.map_row() + s.border * s.padded;
    for (int64_t i = 0; i < row; i += kLanes) {
      float* to = gradient + y * row + i;
      store(to, relu_gradient(load(from + i), load(to)));
    }
  }
}

}  // namespace

namespace vpdarts::cpu::VPDARTS_ISA {

const MixedOpKernels& mixed_op_kernels() {
  static const MixedOpKernels kernels = {
      kLanes,       pack,   rectify_map, scratch_floats, separable, separable_backward, pool, pool_backward,
      weighted_sum, reduce, statistics,  raw_gradient,   mask};
  return kernels;
}

}  // namespace vpdarts::cpu::VPDARTS_ISA
