// mixed_cell: the node as a weighted sum and its adjoints. See mixed_cell.h for the formulas.
//
// Compiled once per instruction set; VPDARTS_ISA names the namespace.
#include "mixed_cell.h"

#include "images.h"
#include "pool.h"
#include "relu_conv.h"

namespace {

using vpdarts::cpu::border_map;
using vpdarts::cpu::BorderMap;
using vpdarts::cpu::Dropout;
using vpdarts::cpu::IncomingEdge;
using vpdarts::cpu::kMostIncoming;
using vpdarts::cpu::MixedCellBackward;
using vpdarts::cpu::MixedCellForward;
using vpdarts::cpu::MixedCellReduce;
using vpdarts::cpu::OutgoingEdge;
using vpdarts::cpu::ReducedEdge;

typedef uint32_t Bits __attribute__((vector_size(4 * VPDARTS_LANES)));

// 32 well-mixed bits of each element's place: multiply, shift, exclusive or. `contract.dropout.keep_bits`.
inline __attribute__((always_inline)) Bits keep_bits(const Dropout& keep, Bits place) {
  Bits bits = (place ^ keep.low) * 0x21f0aaadu;
  bits = (bits ^ (bits >> 15) ^ keep.high) * 0x735a2d97u;
  bits = (bits ^ (bits >> 16)) * 0x21f0aaadu;
  return bits ^ (bits >> 15);
}

// x where kept, else 0. `place` of the first lane's element.
inline __attribute__((always_inline)) Vec kept(const Dropout& keep, int64_t place, Vec x) {
  Bits places;
  for (int i = 0; i < kLanes; ++i) places[i] = static_cast<uint32_t>(i);
  const auto stays = keep_bits(keep, places + static_cast<uint32_t>(place)) < keep.threshold;
  return stays ? x : Vec{};
}

// out = relu(x) - origin of `count` pixels.
inline void rectify(const float* x, const float* origin, int64_t count, int64_t padded, float* out) {
  for (int64_t p = 0; p < count; ++p) {
    for (int64_t c = 0; c < padded; c += kLanes)
      store(out + p * padded + c, relu(load(x + p * padded + c)) - load(origin + c));
  }
}

struct Scratch {
  Scratch(const Block& block, int64_t edges, float* scratch)
      : chunk(round_up(chunk_pixels(block.padded) * block.padded, 16)) {
    Arena arena(scratch);
    sums = arena.take((block.height + 2) * block.width * block.padded);
    product = arena.take(chunk);
    rectified = arena.take((edges + 1) * chunk);
  }
  int64_t chunk;
  float *sums, *product, *rectified;
};

int64_t scratch_floats(const Block& block, int64_t edges) {
  return round_up((block.height + 2) * block.width * block.padded, 16) +
         (edges + 2) * round_up(chunk_pixels(block.padded) * block.padded, 16);
}

// The edges that have a raw output, and those that have a skip connection.
struct Terms {
  explicit Terms(const MixedCellForward& args) {
    for (int64_t e = 0; e < args.edges; ++e) {
      if (args.edge[e].raw != nullptr) raw[raws++] = &args.edge[e];
      if (args.edge[e].skip != 0) skip[skips++] = &args.edge[e];
    }
  }
  const IncomingEdge *raw[kMostIncoming], *skip[kMostIncoming];
  int64_t raws = 0, skips = 0;
};

template <bool kPool>
void forward_chunk(const MixedCellForward& args, const Terms& terms, int64_t image, int64_t first,
                   int64_t count, const float* product, const float* sums) {
  const Block& s = args.block;
  const int64_t row = s.width * s.padded, start = (image * s.height * s.width + first) * s.padded;
  int64_t y = first / s.width, i = first % s.width;
  for (int64_t p = 0; p < count; ++p) {
    const float share = kPool ? box_share(y, s.height) * box_share(i, s.width) : 0;
    const int64_t place = (args.first_pixel + image * s.height * s.width + first + p) * args.channels;
    for (int64_t c = 0; c < s.padded; c += kLanes) {
      const int64_t at = start + p * s.padded + c;
      Vec value = load(args.shift + c);
      if (product != nullptr) value += load(product + p * s.padded + c);
      for (int64_t e = 0; e < terms.raws; ++e)
        value += load(terms.raw[e]->scale + c) * load(terms.raw[e]->raw + at);
      for (int64_t e = 0; e < terms.skips; ++e) {
        const IncomingEdge& edge = *terms.skip[e];
        Vec x = load(edge.x + at);
        if (edge.keep.drops) x = kept(edge.keep, place + c, x);
        value += edge.skip * x;
      }
      if (kPool) value += share * pooled(sums, (first + p) * s.padded + c, row);
      store(args.node + at, value);
    }
    if (++i == s.width) i = 0, ++y;
  }
}

void forward(const MixedCellForward& args, float* memory) {
  const Block& s = args.block;
  const Scratch scratch(s, args.edges, memory);
  const Terms terms(args);
  const int64_t image_floats = s.height * s.width * s.padded;
  for (int64_t b = 0; b < s.images; ++b) {
    Pooled pooled[kMostIncoming];
    int64_t pools = 0;
    for (int64_t e = 0; e < args.edges; ++e) {
      if (args.edge[e].pool != 0) pooled[pools++] = {args.edge[e].x + b * image_floats, args.edge[e].pool};
    }
    if (pools > 0) pool_rows(s, pooled, pools, false, scratch.sums);
    for_each_chunk(s, [&](int64_t first, int64_t count) {
      Operand operands[kMostIncoming];
      int64_t products = 0;
      for (int64_t e = 0; e < args.edges; ++e) {
        if (args.edge[e].conv == nullptr) continue;
        float* rectified = scratch.rectified + products * scratch.chunk;
        rectify(args.edge[e].x + b * image_floats + first * s.padded, count * s.padded, rectified);
        operands[products++] = {rectified, args.edge[e].conv};
      }
      const float* product = products > 0 ? scratch.product : nullptr;
      if (products > 0) multiply(operands, products, count, s.padded, scratch.product);
      if (pools > 0) {
        forward_chunk<true>(args, terms, b, first, count, product, scratch.sums);
      } else {
        forward_chunk<false>(args, terms, b, first, count, product, scratch.sums);
      }
    });
  }
}

// Adds the sums over a chunk's pixels of what alpha's gradient needs.
void reduce_alpha(const MixedCellReduce& args, const ReducedEdge& edge, int64_t image, int64_t first,
                  int64_t count, const float* sums) {
  const Block& s = args.block;
  const int64_t row = s.width * s.padded, start = (image * s.height * s.width + first) * s.padded;
  const int64_t place = (args.first_pixel + image * s.height * s.width + first) * args.channels;
  for (int64_t c = 0; c < s.padded; c += kLanes) {
    const float *x = edge.x + start + c, *g = args.gradient + start + c;
    const Vec skip = sum_of(count, [&](int64_t p) {
      const Vec value = load(x + p * s.padded);
      return load(g + p * s.padded) *
             (edge.keep.drops ? kept(edge.keep, place + p * args.channels + c, value) : value);
    });
    const Vec pool = sum_of(count, [&](int64_t p) {
      return pooled(sums, (first + p) * s.padded + c, row) * load(x + p * s.padded);
    });
    store(edge.skip + c, load(edge.skip + c) + skip);
    store(edge.pool + c, load(edge.pool + c) + pool);
  }
}

void reduce(const MixedCellReduce& args, float* memory) {
  const Block& s = args.block;
  const Scratch scratch(s, args.edges, memory);
  const int64_t image_floats = s.height * s.width * s.padded;
  const bool with_alpha = args.edge[0].skip != nullptr;
  zero(args.sum, s.padded);
  for (int64_t e = 0; e < args.edges; ++e) {
    if (args.edge[e].raw_sum != nullptr) zero(args.edge[e].raw_sum, s.padded);
    if (args.edge[e].cross != nullptr) zero(args.edge[e].cross, s.padded * s.padded);
    if (with_alpha) zero(args.edge[e].skip, s.padded), zero(args.edge[e].pool, s.padded);
  }
  for (int64_t b = 0; b < s.images; ++b) {
    const Pooled term{args.gradient + b * image_floats, 1.0f};
    if (with_alpha) pool_rows(s, &term, 1, true, scratch.sums);
    for_each_chunk(s, [&](int64_t first, int64_t count) {
      const int64_t start = b * image_floats + first * s.padded;
      const float* g = args.gradient + start;
      for (int64_t c = 0; c < s.padded; c += kLanes) {
        const Vec sum = sum_of(count, [&](int64_t p) { return load(g + p * s.padded + c); });
        store(args.sum + c, load(args.sum + c) + sum);
      }
      for (int64_t e = 0; e < args.edges; ++e) {
        const ReducedEdge& edge = args.edge[e];
        for (int64_t c = 0; edge.raw_sum != nullptr && c < s.padded; c += kLanes) {
          const Vec mean = load(edge.raw_mean + c);
          const Vec sum = sum_of(count, [&](int64_t p) {
            return load(g + p * s.padded + c) * (load(edge.raw + start + p * s.padded + c) - mean);
          });
          store(edge.raw_sum + c, load(edge.raw_sum + c) + sum);
        }
        if (edge.cross != nullptr) {
          rectify(edge.x + start, edge.mean, count, s.padded, scratch.rectified);
          outer(g, scratch.rectified, count, s.padded, edge.cross);
        }
        if (with_alpha) reduce_alpha(args, edge, b, first, count, scratch.sums);
      }
    });
  }
}

template <bool kPool>
void backward_chunk(const MixedCellBackward& args, int64_t image, int64_t first, int64_t count,
                    const float* product, const float* sums) {
  const Block& s = args.block;
  const BorderMap border = border_map(s);
  const int64_t row = s.width * s.padded, start = (image * s.height * s.width + first) * s.padded;
  int64_t y = first / s.width, i = first % s.width;
  for (int64_t p = 0; p < count; ++p) {
    const int64_t border_at = image * border.image + border.first + y * border.row + i * s.padded;
    const int64_t place = (args.first_pixel + image * s.height * s.width + first + p) * args.channels;
    for (int64_t c = 0; c < s.padded; c += kLanes) {
      const int64_t at = start + p * s.padded + c;
      Vec value{};
      if (product != nullptr || args.rectified != nullptr) {
        Vec inner = load(args.shift + c);
        if (product != nullptr) inner += load(product + p * s.padded + c);
        if (args.rectified != nullptr) inner += load(args.rectified + border_at + c);
        value = relu_gradient(load(args.x + at), inner);
      }
      for (int64_t e = 0; e < args.edges; ++e) {
        const OutgoingEdge& edge = args.edge[e];
        if (edge.skip == 0) continue;
        Vec g = load(edge.gradient + at);
        if (edge.keep.drops) g = kept(edge.keep, place + c, g);
        value += edge.skip * g;
      }
      if (kPool) value += pooled(sums, (first + p) * s.padded + c, row);
      store(args.x_gradient + at, value);
    }
    if (++i == s.width) i = 0, ++y;
  }
}

void backward(const MixedCellBackward& args, float* memory) {
  const Block& s = args.block;
  const Scratch scratch(s, args.edges, memory);
  const int64_t image_floats = s.height * s.width * s.padded;
  for (int64_t b = 0; b < s.images; ++b) {
    Pooled terms[kMostIncoming];
    int64_t pools = 0;
    for (int64_t e = 0; e < args.edges; ++e) {
      if (args.edge[e].pool != 0)
        terms[pools++] = {args.edge[e].gradient + b * image_floats, args.edge[e].pool};
    }
    if (pools > 0) pool_rows(s, terms, pools, true, scratch.sums);
    for_each_chunk(s, [&](int64_t first, int64_t count) {
      const int64_t start = b * image_floats + first * s.padded;
      Operand operands[kMostIncoming + 1];
      int64_t products = 0;
      for (int64_t e = 0; e < args.edges; ++e) {
        if (args.edge[e].conv != nullptr)
          operands[products++] = {args.edge[e].gradient + start, args.edge[e].conv};
      }
      if (args.own != nullptr) {
        rectify(args.x + start, count * s.padded, scratch.rectified);
        operands[products++] = {scratch.rectified, args.own};
      }
      const float* product = products > 0 ? scratch.product : nullptr;
      if (products > 0) multiply(operands, products, count, s.padded, scratch.product);
      if (pools > 0) {
        backward_chunk<true>(args, b, first, count, product, scratch.sums);
      } else {
        backward_chunk<false>(args, b, first, count, product, scratch.sums);
      }
    });
  }
}

}  // namespace

namespace vpdarts::cpu::VPDARTS_ISA {

const MixedCellKernels& mixed_cell_kernels() {
  static const MixedCellKernels kernels = {scratch_floats, forward, reduce, backward};
  return kernels;
}

}  // namespace vpdarts::cpu::VPDARTS_ISA
