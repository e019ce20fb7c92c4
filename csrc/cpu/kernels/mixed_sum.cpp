// mixed_sum: the node from given raw outputs, and its adjoints. See mixed_sum.h for the formulas.
//
// All are bound by memory: each pass reads a tensor once, chunk of pixels by chunk, so that what several
// edges read or write stays in the first-level cache.
//
// Compiled once per instruction set; VPDARTS_ISA names the namespace.
#include "mixed_sum.h"

#include "images.h"
#include "pool.h"

namespace {

using vpdarts::cpu::MixedSumEdge;
using vpdarts::cpu::MixedSumForward;
using vpdarts::cpu::MixedSumReduce;
using vpdarts::cpu::MixedSumReducedEdge;
using vpdarts::cpu::RawGradient;

constexpr int64_t kSums = 4;  // side by side, so that no addition waits for the one before

// Calls take(pixel, sum) for `count` pixels, which adds to sum [kTerms]; then to[term * stride] += sum.
template <int kTerms, typename Take>
inline __attribute__((always_inline)) void add_up(int64_t count, float* to, int64_t stride,
                                                  const Take& take) {
  Vec sum[kSums][kTerms] = {};
  int64_t p = 0;
  for (; p + kSums <= count; p += kSums) {
#pragma GCC unroll 4
    for (int64_t i = 0; i < kSums; ++i) take(p + i, sum[i]);
  }
  for (; p < count; ++p) take(p, sum[0]);
  for (int term = 0; term < kTerms; ++term) {
    const Vec total = (sum[0][term] + sum[1][term]) + (sum[2][term] + sum[3][term]);
    store(to + term * stride, load(to + term * stride) + total);
  }
}

void statistics(const Block& s, const float* raw, float* statistics) {
  const int64_t pixels = s.pixels(), most = chunk_pixels(s.padded);
  zero(statistics, 2 * s.padded);
  for (int64_t p = 0; p < pixels; p += most) {
    const int64_t count = pixels - p < most ? pixels - p : most;
    for (int64_t c = 0; c < s.padded; c += kLanes) {
      const Vec pivot = load(raw + c);
      const float* from = raw + p * s.padded + c;
      add_up<2>(count, statistics + c, s.padded, [&](int64_t q, Vec* sum) {
        const Vec difference = load(from + q * s.padded) - pivot;
        sum[0] += difference;
        sum[1] += difference * difference;
      });
    }
  }
  const float share = 1.0f / static_cast<float>(pixels);
  for (int64_t c = 0; c < s.padded; c += kLanes) {
    const Vec sum = load(statistics + c), mean = sum * share;
    store(statistics + c, load(raw + c) + mean);
    store(statistics + s.padded + c, load(statistics + s.padded + c) - mean * sum);
  }
}

// Pooled takes a pointer and a float: four floats.
int64_t scratch_floats(const Block& block, int64_t edges) {
  return round_up((block.height + 2) * block.width * block.padded, 16) +
         2 * round_up(chunk_pixels(block.padded) * block.padded, 16) + round_up(4 * edges, 16);
}

// node = shift + pool(terms) of a chunk of an image.
void start_chunk(const Block& s, int64_t first, int64_t count, const float* shift, const float* sums,
                 float* node) {
  const int64_t row = s.width * s.padded;
  int64_t y = first / s.width, i = first % s.width;
  for (int64_t p = 0; p < count; ++p) {
    const float share = box_share(y, s.height) * box_share(i, s.width);
    for (int64_t c = 0; c < s.padded; c += kLanes) {
      Vec value = load(shift + c);
      if (sums != nullptr) value += share * pooled(sums, (first + p) * s.padded + c, row);
      store(node + p * s.padded + c, value);
    }
    if (++i == s.width) i = 0, ++y;
  }
}

// node += skip keep x + scale_1x1 raw_1x1 + scale_3x3 raw_3x3 of the pixels from `start` floats on.
template <bool kKeep>
void add_edge(const MixedSumEdge& edge, int64_t start, int64_t count, int64_t padded, float* node) {
  const float *x = edge.x + start, *keep = kKeep ? edge.keep + start : nullptr,
              *raw_1x1 = edge.raw[0] + start, *raw_3x3 = edge.raw[1] + start;
  for (int64_t c = 0; c < padded; c += kLanes) {
    const Vec scale_1x1 = load(edge.scale[0] + c), scale_3x3 = load(edge.scale[1] + c);
    for (int64_t p = 0; p < count; ++p) {
      const int64_t at = p * padded + c;
      Vec skipped = edge.skip * load(x + at);
      if (kKeep) skipped *= load(keep + at);
      store(node + at,
            load(node + at) + skipped + (scale_1x1 * load(raw_1x1 + at) + scale_3x3 * load(raw_3x3 + at)));
    }
  }
}

void forward(const MixedSumForward& args, float* scratch) {
  const Block& s = args.block;
  const int64_t image_floats = s.height * s.width * s.padded;
  Arena arena(scratch);
  Pooled* terms = reinterpret_cast<Pooled*>(arena.take(4 * args.edges));
  float* sums = arena.take((s.height + 2) * s.width * s.padded);
  for (int64_t b = 0; b < s.images; ++b) {
    int64_t pools = 0;
    for (int64_t e = 0; e < args.edges; ++e) {
      if (args.edge[e].pool != 0) terms[pools++] = {args.edge[e].x + b * image_floats, args.edge[e].pool};
    }
    if (pools > 0) pool_rows(s, terms, pools, false, sums);
    for_each_chunk(s, [&](int64_t first, int64_t count) {
      const int64_t start = b * image_floats + first * s.padded;
      float* node = args.node + start;
      start_chunk(s, first, count, args.shift, pools > 0 ? sums : nullptr, node);
      for (int64_t e = 0; e < args.edges; ++e) {
        if (args.edge[e].keep != nullptr) {
          add_edge<true>(args.edge[e], start, count, s.padded, node);
        } else {
          add_edge<false>(args.edge[e], start, count, s.padded, node);
        }
      }
    });
  }
}

// sum += sum over `count` pixels of a (b - origin).
void add_products(const float* a, const float* b, const float* origin, int64_t count, int64_t padded,
                  float* sum) {
  for (int64_t c = 0; c < padded; c += kLanes) {
    const Vec from = origin != nullptr ? load(origin + c) : Vec{};
    add_up<1>(count, sum + c, padded, [&](int64_t p, Vec* part) {
      part[0] += load(a + p * padded + c) * (load(b + p * padded + c) - from);
    });
  }
}

// out = a b, floats by floats.
void multiply_floats(const float* a, const float* b, float factor, int64_t count, float* out) {
  for (int64_t i = 0; i < count; i += kLanes) store(out + i, factor * (load(a + i) * load(b + i)));
}

// A chunk of one edge: g its gradient, pooled its pool^T(g), kept room for keep g.
void reduce_edge(const MixedSumReducedEdge& edge, int64_t start, int64_t count, int64_t padded,
                 const float* g, const float* pooled_gradient, float* kept) {
  const int64_t floats = count * padded;
  for (int o = 0; o < 2; ++o) {
    if (edge.raw_sum[o] != nullptr)
      add_products(g, edge.raw[o] + start, edge.raw_mean[o], count, padded, edge.raw_sum[o]);
  }
  const float* skipped = g;
  if (edge.keep != nullptr && (edge.skip_sum != nullptr || edge.x_gradient != nullptr)) {
    multiply_floats(g, edge.keep + start, 1, floats, kept);
    skipped = kept;
  }
  if (edge.skip_sum != nullptr) {
    add_products(skipped, edge.x + start, nullptr, count, padded, edge.skip_sum);
    add_products(pooled_gradient, edge.x + start, nullptr, count, padded, edge.pool_sum);
  }
  if (edge.x_gradient != nullptr) {
    float* out = edge.x_gradient + start;
    if (edge.pool != 0) {
      for (int64_t i = 0; i < floats; i += kLanes)
        store(out + i, edge.skip * load(skipped + i) + edge.pool * load(pooled_gradient + i));
    } else {
      for (int64_t i = 0; i < floats; i += kLanes) store(out + i, edge.skip * load(skipped + i));
    }
  }
  if (edge.keep_gradient != nullptr)
    multiply_floats(g, edge.x + start, edge.skip, floats, edge.keep_gradient + start);
}

void zero_sums(const MixedSumReduce& args) {
  const int64_t padded = args.block.padded;
  zero(args.sum, padded);
  for (int64_t e = 0; e < args.edges; ++e) {
    const MixedSumReducedEdge& edge = args.edge[e];
    float* const sums[] = {edge.raw_sum[0], edge.raw_sum[1], edge.skip_sum, edge.pool_sum};
    for (float* sum : sums) {
      if (sum != nullptr) zero(sum, padded);
    }
  }
}

void reduce(const MixedSumReduce& args, float* scratch) {
  const Block& s = args.block;
  const int64_t row = s.width * s.padded, image_floats = s.height * row;
  Arena arena(scratch);
  float* sums = arena.take((s.height + 2) * s.width * s.padded);
  float* pooled_gradient = arena.take(chunk_pixels(s.padded) * s.padded);
  float* kept = arena.take(chunk_pixels(s.padded) * s.padded);
  bool pools = false;
  for (int64_t e = 0; e < args.edges; ++e) {
    const MixedSumReducedEdge& edge = args.edge[e];
    pools = pools || edge.pool_sum != nullptr || (edge.x_gradient != nullptr && edge.pool != 0);
  }
  zero_sums(args);
  for (int64_t b = 0; b < s.images; ++b) {
    const Pooled term{args.gradient + b * image_floats, 1.0f};
    if (pools) pool_rows(s, &term, 1, true, sums);
    for_each_chunk(s, [&](int64_t first, int64_t count) {
      const int64_t start = b * image_floats + first * s.padded;
      const float* g = args.gradient + start;
      for (int64_t i = 0; pools && i < count * s.padded; i += kLanes)
        store(pooled_gradient + i, pooled(sums, first * s.padded + i, row));
      for (int64_t c = 0; c < s.padded; c += kLanes)
        add_up<1>(count, args.sum + c, s.padded,
                  [&](int64_t p, Vec* sum) { sum[0] += load(g + p * s.padded + c); });
      for (int64_t e = 0; e < args.edges; ++e)
        reduce_edge(args.edge[e], start, count, s.padded, g, pooled_gradient, kept);
    });
  }
}

void raw_gradients(const Block& s, int64_t tensors, const RawGradient* gradients, float* const* out) {
  const int64_t pixels = s.pixels(), most = chunk_pixels(s.padded);
  for (int64_t p = 0; p < pixels; p += most) {
    const int64_t count = pixels - p < most ? pixels - p : most;
    for (int64_t t = 0; t < tensors; ++t) {
      const RawGradient& gradient = gradients[t];
      for (int64_t c = 0; c < s.padded; c += kLanes) {
        const Vec node_scale = load(gradient.node_scale + c), raw_scale = load(gradient.raw_scale + c),
                  shift = load(gradient.shift + c);
        for (int64_t q = p; q < p + count; ++q) {
          const int64_t at = q * s.padded + c;
          store(out[t] + at,
                node_scale * load(gradient.node + at) + (raw_scale * load(gradient.raw + at) + shift));
        }
      }
    }
  }
}

}  // namespace

namespace vpdarts::cpu::VPDARTS_ISA {

const MixedSumKernels& mixed_sum_kernels() {
  static const MixedSumKernels kernels = {statistics, scratch_floats, forward, reduce, raw_gradients};
  return kernels;
}

}  // namespace vpdarts::cpu::VPDARTS_ISA
