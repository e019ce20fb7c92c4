// trained_residual_block: convolution a and the shortcut, forward and backward, all directly.
//
//   forward            raw(y, i) = sum over taps (r, k) of W_rk relu(x)(2y - 1 + r, 2i - 1 + k)
//   backward, data     dx = [x > 0] sum over taps of W_rk^T draw((Y + 1 - r) / 2, (I + 1 - k) / 2), those
//   with
//                      whole numbers: one for even rows Y (r = 1), two for odd ones (r = 0, 2), columns
//                      alike; plus W_shortcut^T g over the number of pixels in the pool's window
//   backward, weight   dW_rk = sum over (y, i) of relu(x)(2y - 1 + r, 2i - 1 + k) draw(y, i)^T
//
// Compiled once per instruction set; VPDARTS_ISA names the namespace.
#include "trained_residual_block.h"

#include "stride_two.h"

namespace {

using vpdarts::cpu::Affine;
using vpdarts::cpu::border_map;
using vpdarts::cpu::BorderMap;
using vpdarts::cpu::NormSums;
using vpdarts::cpu::RawGradient;
using vpdarts::cpu::RectifiedGradient;
using vpdarts::cpu::TrainedResidualBlockBackward;
using vpdarts::cpu::TrainedResidualBlockForward;

// Ten matrices, conv_a's taps and the shortcut.
int64_t packed_floats(int64_t padded, int64_t out_padded) { return (kTaps + 1) * padded * out_padded; }

void pack(int64_t channels, int64_t out_channels, int64_t padded, int64_t out_padded, const float* conv_a,
          const float* shortcut, bool transposed, float* packed) {
  zero(packed, packed_floats(padded, out_padded));
  for (int64_t tap = 0; tap <= kTaps; ++tap) {
    float* matrix = packed + tap * padded * out_padded;
    const auto weight = [&](int64_t out, int64_t in) {
      const int64_t pair = out * channels + in;
      return tap < kTaps ? conv_a[pair * kTaps + tap] : shortcut[pair];
    };
    if (transposed) {
      pack_rectangle(out_channels, channels, out_padded, padded, matrix,
                     [&](int64_t in, int64_t out) { return weight(out, in); });
    } else {
      pack_rectangle(channels, out_channels, padded, out_padded, matrix, weight);
    }
  }
}

int64_t forward_scratch(const ResidualShape& s) {
  return round_up(RectifiedMap(s).floats, 16) + round_up(s.out().height * s.out().width * s.padded, 16) +
         round_up(s.out_padded, 16);
}

// statistics = sums over a row's pixels of raw - pivot and of its square, added to.
template <int kVecs>
inline __attribute__((always_inline)) void add_row(const float* raw, const float* pivot, int64_t count,
                                                   int64_t padded, float* statistics) {
  for (int n = 0; n < kVecs; ++n) {
    const Vec origin = load(pivot + n * kLanes);
    Vec sum{}, square{};
    for (int64_t i = 0; i < count; ++i) {
      const Vec difference = load(raw + i * padded + n * kLanes) - origin;
      sum += difference;
      square += difference * difference;
    }
    float* to = statistics + n * kLanes;
    store(to, load(to) + sum);
    store(to + padded, load(to + padded) + square);
  }
}

// One block of kVecs vectors of output channels of image b.
template <int kVecs>
void forward_image(const TrainedResidualBlockForward& args, int64_t b, const float* map, const float* pooled,
                   int64_t c, float* pivot) {
  const ResidualShape& s = args.shape;
  const int64_t image = b * s.out().floats() / s.images;
  bool first = b == 0;
  convolve_stride_two<kVecs>(s, args.weights, map, c, args.raw + image, [&](const float* row) {
    for (int n = 0; n < kVecs && first; ++n) store(pivot + c + n * kLanes, load(row + n * kLanes));
    first = false;
    add_row<kVecs>(row, pivot + c, s.out().width, s.out_padded, args.statistics + c);
  });
  multiply_pooled<kVecs>(s, args.weights + kTaps * s.padded * s.out_padded, pooled, c, args.shortcut + image);
}

void forward(const TrainedResidualBlockForward& args, float* scratch) {
  const ResidualShape& s = args.shape;
  Arena arena(scratch);
  float* map = arena.take(RectifiedMap(s).floats);
  float* pooled = arena.take(s.out().height * s.out().width * s.padded);
  float* pivot = arena.take(s.out_padded);
  zero(map, RectifiedMap(s).floats);
  zero(args.statistics, 2 * s.out_padded);
  const int64_t row = s.width * s.padded;
  for (int64_t b = 0; b < s.images; ++b) {
    read_image(s, args.x + b * s.height * row, row, s.padded, map, pooled);
    for (int64_t c = 0; c < s.out_padded; c += kMostBlock) {
      if (c + kMostBlock <= s.out_padded) {
        forward_image<2>(args, b, map, pooled, c, pivot);
      } else {
        forward_image<1>(args, b, map, pooled, c, pivot);
      }
    }
  }
  const float share = 1.0f / static_cast<float>(s.out().pixels());
  for (int64_t c = 0; c < s.out_padded; c += kLanes) {
    float *mean = args.statistics + c, *square = mean + s.out_padded;
    const Vec sum = load(mean), offset = sum * share;
    store(mean, load(pivot + c) + offset);
    store(square, load(square) - offset * sum);
  }
}

// The gradient of raw of one image, a row of zeros below and a column of zeros to the right.
struct GradientMap {
  explicit GradientMap(const ResidualShape& s)
      : row((s.out().width + 1) * s.out_padded), floats((s.out().height + 1) * row) {}
  int64_t row, floats;
};

// map = node_scale node + raw_scale raw + shift of image b; its border is zero already.
void write_gradient(const ResidualShape& s, const RawGradient& gradient, int64_t b, float* map) {
  const Block block = s.out();
  for (int64_t c = 0; c < s.out_padded; c += kLanes) {
    const Vec node_scale = load(gradient.node_scale + c), raw_scale = load(gradient.raw_scale + c),
              shift = load(gradient.shift + c);
    int64_t at = b * block.height * block.width * s.out_padded + c;
    for (int64_t y = 0; y < block.height; ++y) {
      float* to = map + y * GradientMap(s).row + c;
      for (int64_t i = 0; i < block.width; ++i, at += s.out_padded) {
        const Vec inner = raw_scale * load(gradient.raw + at) + shift;
        store(to + i * s.out_padded, node_scale * load(gradient.node + at) + inner);
      }
    }
  }
}

// weight_sums += the sums over one image's pixels; shortcut: its gradient.
void add_weight_sums(const ResidualShape& s, const float* map, const float* pooled, const float* gradient,
                     const float* shortcut, float* weight_sums) {
  const Block out = s.out();
  const int64_t row = RectifiedMap(s).row, square = s.padded * s.out_padded;
  for (int64_t y = 0; y < out.height; ++y) {
    const float* from = gradient + y * GradientMap(s).row;
    for (int64_t tap = 0; tap < kTaps; ++tap) {
      outer(map + (2 * y + tap / 3) * row + tap % 3 * s.padded, 2 * s.padded, s.padded, from, s.out_padded,
            out.width, weight_sums + tap * square);
    }
    outer(pooled + y * out.width * s.padded, s.padded, s.padded, shortcut + y * out.width * s.out_padded,
          s.out_padded, out.width, weight_sums + kTaps * square);
  }
}

// Row Y = 2 * y + odd of the gradient of relu(x), one block of kVecs vectors of channels: its even pixels,
// then its odd ones.
template <int kVecs>
void write_row(const ResidualShape& s, const float* weights, const float* map, int64_t y, int64_t odd,
               int64_t c, float* row) {
  for (int64_t right = 0; right < 2; ++right) {
    const int64_t count = (s.width + 1 - right) / 2;
    Operand taps[4];
    int64_t tap_count = 0;
    for (int64_t r = 1 - odd; r < 3; r += 2) {
      for (int64_t k = 1 - right; k < 3; k += 2) {
        const float* from =
            map + (y + (odd + 1 - r) / 2) * GradientMap(s).row + (right + 1 - k) / 2 * s.out_padded;
        taps[tap_count++] = {from, weights + (3 * r + k) * s.padded * s.out_padded};
      }
    }
    products<kVecs>(taps, tap_count, count, 0, c * s.out_padded, s.out_padded, s.out_padded,
                    row + right * s.padded + c, 2 * s.padded);
  }
}

// row = [x > 0] row + the shortcut's share: `pooled` is the gradient of the pool's row, rows how many it has
// averaged.
void finish_row(const ResidualShape& s, const float* x, const float* pooled, int64_t rows, float* row) {
  for (int64_t i = 0; i < s.width; ++i) {
    const float share = 1.0f / static_cast<float>(rows * (i / 2 * 2 + 1 < s.width ? 2 : 1));
    for (int64_t c = 0; c < s.padded; c += kLanes) {
      const int64_t at = i * s.padded + c;
      const Vec inner = relu_gradient(load(x + at), load(row + at));
      store(row + at, inner + share * load(pooled + i / 2 * s.padded + c));
    }
  }
}

// The gradient of one image x; map: of raw, shortcut: of its shortcut, pooled: room for a row.
void write_x_gradient(const ResidualShape& s, const float* weights, const float* map, const float* shortcut,
                      const float* x, float* pooled, float* x_gradient) {
  const Block out = s.out();
  const float* weight_shortcut = weights + kTaps * s.padded * s.out_padded;
  for (int64_t y = 0; y < out.height; ++y) {
    const int64_t rows = 2 * y + 1 < s.height ? 2 : 1;
    const Operand operand{shortcut + y * out.width * s.out_padded, weight_shortcut};
    float* row = x_gradient + 2 * y * s.width * s.padded;
    for (int64_t c = 0; c < s.padded; c += kMostBlock) {
      const bool two = c + kMostBlock <= s.padded;
      const auto multiply = two ? products<2> : products<1>;
      multiply(&operand, 1, out.width, 0, c * s.out_padded, s.out_padded, s.out_padded, pooled + c, s.padded);
      for (int64_t odd = 0; odd < rows; ++odd) {
        const auto write = two ? write_row<2> : write_row<1>;
        write(s, weights, map, y, odd, c, row + odd * s.width * s.padded);
      }
    }
    for (int64_t odd = 0; odd < rows; ++odd)
      finish_row(s, x + (2 * y + odd) * s.width * s.padded, pooled, rows, row + odd * s.width * s.padded);
  }
}

int64_t backward_scratch(const ResidualShape& s) {
  return round_up(RectifiedMap(s).floats, 16) + round_up(s.out().height * s.out().width * s.padded, 16) +
         round_up(GradientMap(s).floats, 16);
}

void backward(const TrainedResidualBlockBackward& args, float* scratch) {
  const ResidualShape& s = args.shape;
  Arena arena(scratch);
  float* map = arena.take(RectifiedMap(s).floats);
  float* pooled = arena.take(s.out().height * s.out().width * s.padded);
  float* gradient = arena.take(GradientMap(s).floats);
  zero(map, RectifiedMap(s).floats);
  zero(gradient, GradientMap(s).floats);
  const int64_t row = s.width * s.padded, out_image = s.out().floats() / s.images;
  for (int64_t b = 0; b < s.images; ++b) {
    const float *x = args.x + b * s.height * row, *shortcut = args.shortcut + b * out_image;
    write_gradient(s, args.raw, b, gradient);
    if (args.weight_sums != nullptr) {
      read_image(s, x, row, s.padded, map, pooled);
      add_weight_sums(s, map, pooled, gradient, shortcut, args.weight_sums);
    }
    if (args.x_gradient != nullptr)
      write_x_gradient(s, args.weights, gradient, shortcut, x, pooled, args.x_gradient + b * s.height * row);
  }
}

void affine(const Affine& args) {
  const int64_t padded = args.block.padded, pixels = args.block.pixels();
  for (int64_t c = 0; c < padded; c += kLanes) {
    const Vec scale = load(args.scale + c), shift = load(args.shift + c);
    for (int64_t at = c; at < pixels * padded; at += padded) {
      const Vec value = scale * load(args.raw + at) + shift;
      store(args.out + at, args.more != nullptr ? value + load(args.more + at) : value);
    }
  }
}

void norm_sums(const NormSums& args) {
  const int64_t padded = args.block.padded, pixels = args.block.pixels(), most = chunk_pixels(padded);
  zero(args.sums, 2 * padded);
  for (int64_t p = 0; p < pixels; p += most) {
    const int64_t count = pixels - p < most ? pixels - p : most;
    for (int64_t c = 0; c < padded; c += kLanes) {
      const Vec mean = load(args.raw_mean + c);
      Vec sum{}, product{};  // from zero: summing in two levels loses less
      for (int64_t at = p * padded + c; at < (p + count) * padded; at += padded) {
        const Vec g = load(args.g + at);
        sum += g;
        product += g * (load(args.raw + at) - mean);
      }
      store(args.sums + c, load(args.sums + c) + sum);
      store(args.sums + padded + c, load(args.sums + padded + c) + product);
    }
  }
}

void rectified_gradient(const RectifiedGradient& args) {
  const Block& s = args.block;
  const BorderMap border = border_map(s);
  for (int64_t b = 0; b < s.images; ++b) {
    for (int64_t y = 0; y < s.height; ++y) {
      const float* from = args.rectified + b * border.image + border.first + y * border.row;
      const int64_t start = (b * s.height + y) * s.width * s.padded;
      for (int64_t i = 0; i < s.width * s.padded; i += kLanes) {
        const Vec g = relu_gradient(load(args.a + start + i), load(from + i));
        store(args.g + start + i, g);
      }
    }
  }
  norm_sums({s, args.g, args.raw, args.raw_mean, args.sums});
}

}  // namespace

namespace vpdarts::cpu::VPDARTS_ISA {

const TrainedResidualBlockKernels& trained_residual_block_kernels() {
  static const TrainedResidualBlockKernels kernels = {kLanes,    packed_floats,     pack,     forward_scratch,
                                                      forward,   backward_scratch,  backward, affine,
                                                      norm_sums, rectified_gradient};
  return kernels;
}

}  // namespace vpdarts::cpu::VPDARTS_ISA
