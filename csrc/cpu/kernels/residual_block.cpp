// residual_block:  b + W_shortcut * pool(x),  b = W_b * relu(a) + shift_b,  a = W_a * relu(x) + shift_a
//
// with a 2x2 average pool, and W_a of stride 2. Everything between x and the output stays in scratch memory,
// block of images by block of images.
//
// Compiled once per instruction set; VPDARTS_ISA names the namespace.
#include "residual_block.h"

#include "stride_two.h"
#include "tiles.h"

namespace {

using vpdarts::cpu::ConstImageView;
using vpdarts::cpu::ResidualBlockWeights;

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

void fold(int64_t channels, int64_t out_channels, int64_t padded, int64_t out_padded,
          const ResidualBlockWeights& weights, float* folded) {
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
  Vec shift[kVecs];
  for (int n = 0; n < kVecs; ++n) shift[n] = load(weights.shift + c + n * kLanes);
  convolve_stride_two<kVecs>(s, weights.conv_a, map, c, a, [&](float* row) {
    for (int64_t i = 0; i < s.out().width; ++i) {
      for (int n = 0; n < kVecs; ++n) {
        float* pixel = row + i * s.out_padded + n * kLanes;
        store(pixel, load(pixel) + shift[n]);
      }
    }
  });
  multiply_pooled<kVecs>(s, weights.shortcut, pooled, c, shortcut);
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
