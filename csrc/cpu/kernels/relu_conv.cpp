// relu_conv:  raw_e = W_e * relu(x)  and its adjoints, all edges of a node in one pass over x.
//
//   forward          raw_e = A^T [ U_e . (B^T relu(x) B) ] A                 U_e = G W_e G^T
//   backward, data   dr    = B [ sum_e U_e^T . (A draw_e A^T) ] B^T          tiles overlap: added up
//   backward, weight dW_e  = G^T [ sum_tiles (B^T r B) (A draw_e A^T)^T ] G
//
// Compiled once per instruction set; VPDARTS_ISA names the namespace.
#include "relu_conv.h"

#include "images.h"
#include "tiles.h"

namespace {

using vpdarts::cpu::border_map;
using vpdarts::cpu::BorderMap;
using vpdarts::cpu::RawGradient;
using vpdarts::cpu::ReluConv1x1Backward;
using vpdarts::cpu::ReluConv1x1Forward;
using vpdarts::cpu::ReluConvBackward;
using vpdarts::cpu::ReluConvForward;

// raw = A^T m A of one block of channels from c on; statistics = mean and sum of squares about it.
template <int kVecs>
void write_raw(const Block& s, const Tiles& tiles, const float* m, int64_t c, float* raw, float* statistics) {
  const int64_t row = s.width * s.padded, point = tiles.product_stride(kVecs);
  Vec pivot[kVecs] = {}, sum[kVecs] = {}, square[kVecs] = {};
  for_each_tile(s, tiles, [&](int64_t tile, int64_t b, int64_t y, int64_t i) {
    const int64_t rows = s.height - y < 4 ? s.height - y : 4, columns = s.width - i < 4 ? s.width - i : 4;
    float* corner = raw + b * s.height * row + y * row + i * s.padded + c;
    Vec half[kVecs][24];
#pragma GCC unroll 2
    for (int n = 0; n < kVecs; ++n) {
      const float* from = m + (tile * kVecs + n) * kLanes;
      for (int k = 0; k < 6; ++k) {
        const float* column = from + k * point;
        transform_output_4(load(column), load(column + 6 * point), load(column + 12 * point),
                           load(column + 18 * point), load(column + 24 * point), load(column + 30 * point),
                           half[n] + k, 6);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      Vec done[kVecs][4];
#pragma GCC unroll 2
      for (int n = 0; n < kVecs; ++n) {
        const Vec* h = half[n] + 6 * r;
        transform_output_4(h[0], h[1], h[2], h[3], h[4], h[5], done[n], 1);
        if (tile == 0 && r == 0) pivot[n] = done[n][0];
      }
      float* to = corner + r * row;
      if (columns == 4) {
        for (int k = 0; k < 4; ++k) {
#pragma GCC unroll 2
          for (int n = 0; n < kVecs; ++n) stream(to + k * s.padded + n * kLanes, done[n][k]);
        }
#pragma GCC unroll 2
        for (int n = 0; n < kVecs; ++n) {
          Vec d[4];
          for (int k = 0; k < 4; ++k) d[k] = done[n][k] - pivot[n];
          // In pairs: the sums over all tiles are one long chain.
          sum[n] += (d[0] + d[1]) + (d[2] + d[3]);
          square[n] += (d[0] * d[0] + d[1] * d[1]) + (d[2] * d[2] + d[3] * d[3]);
        }
        continue;
      }
      for (int64_t k = 0; k < columns; ++k) {
        for (int n = 0; n < kVecs; ++n) {
          const Vec difference = done[n][k] - pivot[n];
          store(to + k * s.padded + n * kLanes, done[n][k]);
          sum[n] += difference;
          square[n] += difference * difference;
        }
      }
    }
  });
  finish_stream();
  const float share = 1.0f / static_cast<float>(s.pixels());
  for (int n = 0; n < kVecs; ++n) {
    const Vec mean = sum[n] * share;
    store(statistics + c + n * kLanes, pivot[n] + mean);
    store(statistics + s.padded + c + n * kLanes, square[n] - mean * sum[n]);
  }
}

// raw = A^T m A of one block of channels from c on; statistics too unless null.
template <int kVecs>
void write_block(const Block& s, const Tiles& tiles, const float* m, int64_t c, float* raw,
                 float* statistics) {
  if (statistics != nullptr) return write_raw<kVecs>(s, tiles, m, c, raw, statistics);
  inverse_transform<kVecs>(s, tiles, m, [&](int n, int64_t pixel, Vec value) {
    store(raw + pixel * s.padded + c + n * kLanes, value);
  });
}

// moments = mean of r and sum of (r - mean)(r - mean)^T over the block's pixels.
void compute_moments(const Block& s, const float* x, float* chunk, float* pivot, float* moments) {
  const int64_t pixels = s.pixels(), most = chunk_pixels(s.padded), square = s.padded * s.padded;
  float *mean = moments, *products = moments + s.padded;
  zero(moments, s.padded + square);
  for (int64_t c = 0; c < s.padded; c += kLanes) store(pivot + c, relu(load(x + c)));
  for (int64_t p = 0; p < pixels; p += most) {
    const int64_t count = pixels - p < most ? pixels - p : most;
    for (int64_t c = 0; c < s.padded; c += kLanes) {
      const Vec origin = load(pivot + c);
      const Vec sum = sum_of(count, [&](int64_t q) {
        const Vec value = relu(load(x + (p + q) * s.padded + c)) - origin;
        store(chunk + q * s.padded + c, value);
        return value;
      });
      store(mean + c, load(mean + c) + sum);
    }
    outer(chunk, chunk, count, s.padded, products);
  }
  const float share = 1.0f / static_cast<float>(pixels);
  for (int64_t i = 0; i < s.padded; ++i) {
    for (int64_t j = 0; j < s.padded; ++j) products[i * s.padded + j] -= mean[i] * mean[j] * share;
  }
  for (int64_t c = 0; c < s.padded; ++c) mean[c] = pivot[c] + mean[c] * share;
}

int64_t forward_scratch(const Block& block, int64_t) {
  const Tiles tiles(block);
  return round_up(tiles.floats, 16) + round_up(tiles.product_floats, 16) +
         round_up(chunk_pixels(block.padded) * block.padded, 16) + round_up(block.padded, 16);
}

void forward(const ReluConvForward& args, float* scratch) {
  const Block& s = args.block;
  const Tiles tiles(s);
  Arena arena(scratch);
  float* transformed = arena.take(tiles.floats);
  float* m = arena.take(tiles.product_floats);
  float* chunk = arena.take(chunk_pixels(s.padded) * s.padded);
  if (args.moments != nullptr) compute_moments(s, args.x, chunk, arena.take(s.padded), args.moments);
  if (args.edges == 0) return;
  transform_input(s, tiles, args.x, transformed);
  for (int64_t e = 0; e < args.edges; ++e) {
    const Operand operand{transformed, args.weight[e]};
    float* statistics = args.statistics != nullptr ? args.statistics + e * 2 * s.padded : nullptr;
    for (int64_t c = 0; c < s.padded; c += kMostBlock) {
      if (c + kMostBlock <= s.padded) {
        multiply_tiles<2>(s, tiles, &operand, 1, c, m);
        write_block<2>(s, tiles, m, c, args.raw[e], statistics);
      } else {
        multiply_tiles<1>(s, tiles, &operand, 1, c, m);
        write_block<1>(s, tiles, m, c, args.raw[e], statistics);
      }
    }
  }
}

// transformed = A draw A^T of every tile, draw = node_scale * node + raw_scale * raw + shift inside the
// image.
void transform_gradient(const Block& s, const Tiles& tiles, const RawGradient& gradient, float* transformed) {
  const int64_t row = s.width * s.padded;
  for_each_tile(s, tiles, [&](int64_t tile, int64_t b, int64_t y, int64_t i) {
    const int64_t rows = s.height - y < 4 ? s.height - y : 4, columns = s.width - i < 4 ? s.width - i : 4;
    const int64_t corner = b * s.height * row + y * row + i * s.padded;
    for (int64_t c = 0; c < s.padded; c += kLanes) {
      Vec half[24];
      const Vec node_scale = load(gradient.node_scale + c), raw_scale = load(gradient.raw_scale + c),
                shift = load(gradient.shift + c);
      const auto draw = [&](int64_t r, int64_t k) {
        const int64_t at = corner + r * row + k * s.padded + c;
        return node_scale * load(gradient.node + at) + (raw_scale * load(gradient.raw + at) + shift);
      };
      if (rows == 4 && columns == 4) {
        for (int k = 0; k < 4; ++k) {
          Vec column[4];
          for (int r = 0; r < 4; ++r) column[r] = draw(r, k);
          adjoint_output_4(column, 1, half + k, 4);
        }
      } else {
        Vec tile_values[16] = {};
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t k = 0; k < columns; ++k) tile_values[4 * r + k] = draw(r, k);
        }
        for (int k = 0; k < 4; ++k) adjoint_output_4(tile_values + k, 4, half + k, 4);
      }
      float* out = transformed + tile * s.padded + c;
      for (int r = 0; r < 6; ++r) {
        Vec done[6];
        adjoint_output_4(half + 4 * r, 1, done, 1);
        for (int k = 0; k < 6; ++k) store(out + (6 * r + k) * tiles.point_stride, done[k]);
      }
    }
  });
}

// map += B m B^T of one block of channels from c on.
template <int kVecs>
void add_adjoint(const Block& s, const Tiles& tiles, const float* m, int64_t c, float* map) {
  const BorderMap border = border_map(s);
  const int64_t point = tiles.product_stride(kVecs);
  for_each_tile(s, tiles, [&](int64_t tile, int64_t b, int64_t y, int64_t i) {
    for (int n = 0; n < kVecs; ++n) {
      Vec half[36];
      const float* from = m + (tile * kVecs + n) * kLanes;
      for (int k = 0; k < 6; ++k) {
        Vec column[6];
        for (int r = 0; r < 6; ++r) column[r] = load(from + (6 * r + k) * point);
        adjoint_input_6(column, 1, half + k, 6);
      }
      float* corner = map + b * border.image + y * border.row + i * s.padded + c + n * kLanes;
      for (int r = 0; r < 6; ++r) {
        Vec done[6];
        adjoint_input_6(half + 6 * r, 1, done, 1);
        for (int k = 0; k < 6; ++k) {
          float* to = corner + r * border.row + k * s.padded;
          store(to, load(to) + done[k]);
        }
      }
    }
  });
}

int64_t backward_scratch(const Block& block, int64_t edges) {
  const Tiles tiles(block);
  // An Operand takes two pointers: four floats.
  return (edges + 1) * round_up(tiles.floats, 16) + round_up(tiles.product_floats, 16) +
         round_up(4 * edges, 16);
}

void backward(const ReluConvBackward& args, float* scratch) {
  const Block& s = args.block;
  const Tiles tiles(s);
  Arena arena(scratch);
  Operand* operands = reinterpret_cast<Operand*>(arena.take(4 * args.edges));
  float* m = arena.take(tiles.product_floats);
  float* input = arena.take(tiles.floats);
  for (int64_t e = 0; e < args.edges; ++e) {
    float* transformed = arena.take(tiles.floats);
    transform_gradient(s, tiles, args.gradient[e], transformed);
    operands[e] = {transformed, args.weight[e]};
  }
  if (args.rectified != nullptr) {
    zero(args.rectified, border_map(s).floats);
    for (int64_t c = 0; c < s.padded; c += kMostBlock) {
      if (c + kMostBlock <= s.padded) {
        multiply_tiles<2>(s, tiles, operands, args.edges, c, m);
        add_adjoint<2>(s, tiles, m, c, args.rectified);
      } else {
        multiply_tiles<1>(s, tiles, operands, args.edges, c, m);
        add_adjoint<1>(s, tiles, m, c, args.rectified);
      }
    }
  }
  if (args.weight_sums != nullptr) {
    transform_input(s, tiles, args.x, input);
    const int64_t square = s.padded * s.padded;
    for (int64_t e = 0; e < args.edges; ++e) {
      for (int64_t point = 0; point < kPoints; ++point) {
        const int64_t at = point * tiles.point_stride;
        outer(input + at, operands[e].tiles + at, tiles.count, s.padded,
              args.weight_sums + (e * kPoints + point) * square);
      }
    }
  }
}

void transform_conv(int64_t channels, int64_t padded, const float* conv, bool transposed, float* weight) {
  pack_weight(channels, padded, weight, [&](int64_t from, int64_t to, float* w) {
    const float* pair = conv + 9 * (transposed ? from * channels + to : to * channels + from);
    for (int i = 0; i < 9; ++i) w[i] = pair[i];
  });
}

// gradient = G^T sums G for every pair of channels; sums [36][in][out].
void weight_gradient(int64_t channels, int64_t padded, const float* sums, float* gradient) {
  for (int64_t from = 0; from < channels; ++from) {
    for (int64_t to = 0; to < channels; to += kLanes) {
      Vec u[36], half[18], w[9];
      for (int k = 0; k < 36; ++k) u[k] = load(sums + (k * padded + from) * padded + to);
      for (int k = 0; k < 6; ++k) adjoint_weight_3(u + k, 6, half + k, 6);
      for (int r = 0; r < 3; ++r) adjoint_weight_3(half + 6 * r, 1, w + 3 * r, 1);
      for (int64_t lane = 0; lane < kLanes && to + lane < channels; ++lane) {
        float* out = gradient + ((to + lane) * channels + from) * 9;
        for (int i = 0; i < 9; ++i) out[i] = w[i][lane];
      }
    }
  }
}

void pack_1x1(int64_t padded, const float* matrix, float* conv) {
  pack_rectangle(padded, padded, padded, padded, conv,
                 [&](int64_t to, int64_t from) { return matrix[to * padded + from]; });
}

int64_t scratch_1x1(const Block& block, int64_t edges) {
  // An Operand takes two pointers: four floats.
  return 2 * round_up(chunk_pixels(block.padded) * block.padded, 16) + round_up(4 * edges, 16);
}

void forward_1x1(const ReluConv1x1Forward& args, float* rectified) {
  const Block& s = args.block;
  const int64_t pixels = s.pixels(), most = chunk_pixels(s.padded);
  for (int64_t p = 0; p < pixels; p += most) {
    const int64_t count = pixels - p < most ? pixels - p : most, at = p * s.padded;
    rectify(args.x + at, count * s.padded, rectified);
    for (int64_t e = 0; e < args.edges; ++e) {
      const Operand operand{rectified, args.conv[e]};
      multiply(&operand, 1, count, s.padded, args.raw[e] + at);
    }
  }
}

// dx = [x > 0] (product + rectified) of `count` pixels from `first` on, across images.
void write_x_gradient(const ReluConv1x1Backward& args, int64_t first, int64_t count, const float* product) {
  const Block& s = args.block;
  const BorderMap border = border_map(s);
  int64_t image = first / (s.height * s.width), y = first / s.width % s.height, i = first % s.width;
  for (int64_t p = 0; p < count; ++p) {
    const float* rectified =
        args.rectified + image * border.image + border.first + y * border.row + i * s.padded;
    for (int64_t c = 0; c < s.padded; c += kLanes) {
      const int64_t at = (first + p) * s.padded + c;
      const Vec inner = load(product + p * s.padded + c) + load(rectified + c);
      store(args.x_gradient + at, relu_gradient(load(args.x + at), inner));
    }
    if (++i == s.width) i = 0, ++y;
    if (y == s.height) y = 0, ++image;
  }
}

void backward_1x1(const ReluConv1x1Backward& args, float* scratch) {
  const Block& s = args.block;
  const int64_t pixels = s.pixels(), most = chunk_pixels(s.padded), square = s.padded * s.padded;
  Arena arena(scratch);
  Operand* operands = reinterpret_cast<Operand*>(arena.take(4 * args.edges));
  float* rectified = arena.take(most * s.padded);
  float* product = arena.take(most * s.padded);
  for (int64_t p = 0; p < pixels; p += most) {
    const int64_t count = pixels - p < most ? pixels - p : most, at = p * s.padded;
    if (args.x_gradient != nullptr) {
      for (int64_t e = 0; e < args.edges; ++e) operands[e] = {args.gradient[e] + at, args.conv[e]};
      multiply(operands, args.edges, count, s.padded, product);
      write_x_gradient(args, p, count, product);
    }
    if (args.weight_sums != nullptr) {
      rectify(args.x + at, count * s.padded, rectified);
      for (int64_t e = 0; e < args.edges; ++e)
        outer(args.gradient[e] + at, rectified, count, s.padded, args.weight_sums + e * square);
    }
  }
}

}  // namespace

namespace vpdarts::cpu::VPDARTS_ISA {

const ReluConvKernels& relu_conv_kernels() {
  static const ReluConvKernels kernels = {kLanes,   weight_floats,    transform_conv, forward_scratch,
                                          forward,  backward_scratch, backward,       weight_gradient,
                                          pack_1x1, scratch_1x1,      forward_1x1,    backward_1x1};
  return kernels;
}

}  // namespace vpdarts::cpu::VPDARTS_ISA
