// residual_block:  b + W_shortcut * pool(x),  b = W_b * relu(a) + shift_b,  a = W_a * relu(x) + shift_a
//
// with a 2x2 average pool, and W_a of stride 2. Everything between x and the output stays in scratch memory,
// block of images by block of images.
//
// Compiled once per instruction set; VPDARTS_ISA names the namespace.
#include "residual_block.h"

#include "tiles.h"

namespace {

using vpdarts::cpu::ConstImageView;
using vpdarts::cpu::ResidualShape;
using vpdarts::cpu::ResidualWeights;

constexpr int64_t kTaps = 9;

// Folded weights, in one piece of memory.
struct Folded {
  // Matrices [out_padded / block][padded][block], as `products` takes them; the Winograd form of conv_b.
  static int64_t floats(int64_t padded, int64_t out_padded) {
    return (kTaps + 1) * padded * out_padded + weight_floats(out_padded) + 2 * out_padded;
  }
  Folded(float* memory, int64_t padded, int64_t out_padded)
      : conv_a(memory),
        shortcut(conv_a + kTaps * padded * out_padded),
        conv_b(shortcut + padded * out_padded),
        shift(conv_b + weight_floats(out_padded)) {}
  float* conv_a;    // [9] matrices
  float* shortcut;  // a matrix
  float* conv_b;    // [36] matrices
  float* shift;     // [2][out_padded]
};

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

void fold(int64_t channels, int64_t out_channels, int64_t padded, int64_t out_padded,
          const ResidualWeights& weights, float* folded) {
  zero(folded, Folded::floats(padded, out_padded));
  const Folded to(folded, padded, out_padded);
  for (int64_t tap = 0; tap < kTaps; ++tap) {
    pack_rectangle(channels, out_channels, padded, out_padded, to.conv_a + tap * padded * out_padded,
                   [&](int64_t o, int64_t i) {
                     return weights.conv_a[(o * channels + i) * kTaps + tap] * weights.scale[o];
                   });
  }
  pack_rectangle(channels, out_channels, padded, out_padded, to.shortcut,
                 [&](int64_t o, int64_t i) { return weights.shortcut[o * channels + i]; });
  pack_weight(out_channels, out_padded, to.conv_b, [&](int64_t i, int64_t o, float* w) {
    for (int64_t tap = 0; tap < kTaps; ++tap)
      w[tap] = weights.conv_b[(o * out_channels + i) * kTaps + tap] * weights.scale[out_channels + o];
  });
  for (int64_t c = 0; c < out_channels; ++c) {
    to.shift[c] = weights.shift[c];
    to.shift[out_padded + c] = weights.shift[out_channels + c];
  }
}

// relu(x) of one image with zeros around it, a row above and a column to the left first.
struct RectifiedMap {
  explicit RectifiedMap(const ResidualShape& s)
      : row((2 * s.out().width + 1) * s.padded), floats((2 * s.out().height + 1) * row) {}
  int64_t row, floats;
};

// The pixels of one output pixel's 2x2 window, kRows x kColumns of them inside the image:
// to = relu(x) of each, average = their mean.
template <int kRows, int kColumns>
inline __attribute__((always_inline)) void read_window(const float* from, int64_t from_row,
                                                       int64_t from_pixel, int64_t padded, float* to,
                                                       int64_t to_row, float* average) {
  for (int64_t c = 0; c < padded; c += kLanes) {
    Vec sum{};
    for (int y = 0; y < kRows; ++y) {
      for (int i = 0; i < kColumns; ++i) {
        const Vec value = load(from + y * from_row + i * from_pixel + c);
        store(to + y * to_row + i * padded + c, relu(value));
        sum += value;
      }
    }
    store(average + c, sum * (1.0f / (kRows * kColumns)));
  }
}

// map = relu(x) inside its border, pooled [pixels of the output][padded] = the 2x2 averages of x, which lies
// with its channels together.
void read_image(const ResidualShape& s, const float* x, int64_t row, int64_t pixel, float* map,
                float* pooled) {
  const int64_t map_row = RectifiedMap(s).row;
  for (int64_t y = 0; y < s.height; y += 2) {
    const bool two = y + 2 <= s.height;
    for (int64_t i = 0; i < s.width; i += 2, pooled += s.padded) {
      const float* from = x + y * row + i * pixel;
      float* to = map + (y + 1) * map_row + (i + 1) * s.padded;
      if (i + 2 <= s.width) {
        two ? read_window<2, 2>(from, row, pixel, s.padded, to, map_row, pooled)
            : read_window<1, 2>(from, row, pixel, s.padded, to, map_row, pooled);
      } else {
        two ? read_window<2, 1>(from, row, pixel, s.padded, to, map_row, pooled)
            : read_window<1, 1>(from, row, pixel, s.padded, to, map_row, pooled);
      }
    }
  }
}

// dense [height][width][padded] = an image of any strides; the padding is zero already.
void gather_image(const ResidualShape& s, ConstImageView x, int64_t image, float* dense) {
  for (int64_t y = 0; y < s.height; ++y) {
    const float* from = x.data + image * x.image + y * x.row;
    float* to = dense + y * s.width * s.padded;
    for (int64_t c = 0; c < s.channels; ++c) {
      for (int64_t i = 0; i < s.width; ++i) to[i * s.padded + c] = from[i * x.pixel + c * x.channel];
    }
  }
}

// One block of kVecs vectors of output channels of one image: a = conv_a + shift, and the shortcut.
template <int kVecs>
void reduce_image(const ResidualShape& s, const Folded& weights, const float* map, const float* pooled,
                  int64_t c, float* a, float* shortcut) {
  const int64_t row = RectifiedMap(s).row, pixels = s.out().height * s.out().width;
  Vec shift[kVecs];
  for (int n = 0; n < kVecs; ++n) shift[n] = load(weights.shift + c + n * kLanes);
  for (int64_t y = 0; y < s.out().height; ++y) {
    Operand taps[kTaps];
    for (int64_t tap = 0; tap < kTaps; ++tap)
      taps[tap] = {map + (2 * y + tap / 3) * row + tap % 3 * s.padded,
                   weights.conv_a + tap * s.padded * s.out_padded};
    float* to = a + y * s.out().width * s.out_padded + c;
    products<kVecs>(taps, kTaps, s.out().width, 0, c * s.padded, s.padded, 2 * s.padded, to, s.out_padded);
    for (int64_t i = 0; i < s.out().width; ++i) {
      for (int n = 0; n < kVecs; ++n) {
        float* pixel = to + i * s.out_padded + n * kLanes;
        store(pixel, load(pixel) + shift[n]);
      }
    }
  }
  const Operand operand{pooled, weights.shortcut};
  products<kVecs>(&operand, 1, pixels, 0, c * s.padded, s.padded, s.padded, shortcut + c, s.out_padded);
}

// One block of kVecs vectors of output channels: out = conv_b + shift + shortcut.
template <int kVecs>
void write_output(const ResidualShape& s, const Tiles& tiles, const Folded& weights, const float* transformed,
                  const float* shortcut, int64_t c, float* m, float* out) {
  const Block block = s.out();
  const Operand operand{transformed, weights.conv_b};
  multiply_tiles<kVecs>(block, tiles, &operand, 1, c, m);
  Vec shift[kVecs];
  for (int n = 0; n < kVecs; ++n) shift[n] = load(weights.shift + s.out_padded + c + n * kLanes);
  inverse_transform<kVecs>(block, tiles, m, [&](int n, int64_t pixel, Vec value) {
    const int64_t at = pixel * s.out_padded + c + n * kLanes;
    store(out + at, value + shift[n] + load(shortcut + at));
  });
}

int64_t scratch(const ResidualShape& s) {
  const Block block = s.out();
  const Tiles tiles(block);
  return round_up(RectifiedMap(s).floats, 16) + round_up(s.height * s.width * s.padded, 16) +
         round_up(block.height * block.width * s.padded, 16) + 2 * round_up(block.floats(), 16) +
         round_up(tiles.floats, 16) + round_up(tiles.product_floats, 16);
}

void forward(const ResidualShape& s, const float* folded, ConstImageView x, float* out, float* memory) {
  const Block block = s.out();
  const Tiles tiles(block);
  const Folded weights(const_cast<float*>(folded), s.padded, s.out_padded);
  Arena arena(memory);
  float* map = arena.take(RectifiedMap(s).floats);
  float* dense = arena.take(s.height * s.width * s.padded);
  float* pooled = arena.take(block.height * block.width * s.padded);
  float* a = arena.take(block.floats());
  float* shortcut = arena.take(block.floats());
  float* transformed = arena.take(tiles.floats);
  float* m = arena.take(tiles.product_floats);
  const int64_t image = block.floats() / s.images;
  const bool together = x.channel == 1 && s.channels == s.padded;
  zero(map, RectifiedMap(s).floats);
  if (!together) zero(dense, s.height * s.width * s.padded);
  for (int64_t b = 0; b < s.images; ++b) {
    if (together) {
      read_image(s, x.data + b * x.image, x.row, x.pixel, map, pooled);
    } else {
      gather_image(s, x, b, dense);
      read_image(s, dense, s.width * s.padded, s.padded, map, pooled);
    }
    for (int64_t c = 0; c < s.out_padded; c += kMostBlock) {
      if (c + kMostBlock <= s.out_padded) {
        reduce_image<2>(s, weights, map, pooled, c, a + b * image, shortcut + b * image);
      } else {
        reduce_image<1>(s, weights, map, pooled, c, a + b * image, shortcut + b * image);
      }
    }
  }
  transform_input(block, tiles, a, transformed);
  for (int64_t c = 0; c < s.out_padded; c += kMostBlock) {
    if (c + kMostBlock <= s.out_padded) {
      write_output<2>(s, tiles, weights, transformed, shortcut, c, m, out);
    } else {
      write_output<1>(s, tiles, weights, transformed, shortcut, c, m, out);
    }
  }
}

}  // namespace

namespace vpdarts::cpu::VPDARTS_ISA {

const ResidualBlockKernels& residual_block_kernels() {
  static const ResidualBlockKernels kernels = {kLanes, Folded::floats, fold, scratch, forward};
  return kernels;
}

}  // namespace vpdarts::cpu::VPDARTS_ISA
