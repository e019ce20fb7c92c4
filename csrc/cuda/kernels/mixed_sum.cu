// mixed_sum, forward: the statistics of every raw output in two stages, then the node in one pass.
#include <algorithm>

#include "block.h"

namespace vpdarts::cuda {
namespace {

// Pixels whose statistics one block takes; a function of the shape alone, so that the sums are too.
int chunk_pixels(const NodeShape& s) {
  const int64_t enough = std::max(64, 16384 / s.channels);
  return static_cast<int>(std::max(enough, (s.pixels() + 1023) / 1024));
}

int chunks(const NodeShape& s) { return ceil_div(s.pixels(), chunk_pixels(s)); }

// Count, mean and sum of squared deviations of two sets -> of both (Chan, Golub and LeVeque 1979).
__device__ __forceinline__ void join(float count, float& mean, float& spread, float other_count,
                                     float other_mean, float other_spread) {
  const float difference = other_mean - mean, share = other_count / (count + other_count);
  mean += difference * share;
  spread += other_spread + difference * difference * count * share;
}

// First stage. partial [V k 2][chunks][2][C] = mean and sum of squared deviations over a chunk of pixels.
// Grid: chunks, V k 2, channel blocks.
template <typename T, int kPack>
__global__ __launch_bounds__(kThreads) void statistics_kernel(NodeShape s, NodeTerms terms, int chunk,
                                                              float* partial) {
  const Lanes lanes(s.channels, kPack);
  const Place at = place(lanes, s.channels, kPack);
  const int which = static_cast<int>(blockIdx.y), raws = 2 * s.edges;
  const int64_t pixels = s.pixels(), first = static_cast<int64_t>(blockIdx.x) * chunk;
  const int64_t last = first + chunk < pixels ? first + chunk : pixels;
  // Differences from the thread's first value lose no digits to a large mean.
  float values[1 + 2 * kPack] = {}, pivot[kPack] = {};
  if (at.inside) {
    const T* raw = static_cast<const T*>(terms.raw[which % raws / 2][which % 2]) + which / raws * s.values() +
                   at.channel;
    if (first + at.row < last) load<T, kPack>(raw + (first + at.row) * s.channels, pivot);
#pragma unroll 4
    for (int64_t p = first + at.row; p < last; p += lanes.rows) {
      float value[kPack];
      load<T, kPack>(raw + p * s.channels, value);
      values[0] += 1;
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        const float difference = value[i] - pivot[i];
        values[1 + i] += difference;
        values[1 + kPack + i] += difference * difference;
      }
    }
    const float count = values[0] > 0 ? values[0] : 1;
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      const float mean = values[1 + i] / count;
      values[1 + kPack + i] -= mean * values[1 + i];
      values[1 + i] = pivot[i] + mean;
    }
  }
  combine_rows(lanes, at, values, [](float (&mine)[1 + 2 * kPack], const float (&other)[1 + 2 * kPack]) {
    if (other[0] == 0) return;
#pragma unroll
    for (int i = 0; i < kPack; ++i)
      join(mine[0], mine[1 + i], mine[1 + kPack + i], other[0], other[1 + i], other[1 + kPack + i]);
    mine[0] += other[0];
  });
  if (!at.inside || at.row != 0) return;
  float* out = partial + (static_cast<int64_t>(which) * gridDim.x + blockIdx.x) * 2 * s.channels + at.channel;
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    out[i] = values[1 + i];
    out[s.channels + i] = values[1 + kPack + i];
  }
}

// Second stage: mean, variance and scale [V, k, 2, C], shift [V, C].
// Block: 32 channels x the 2 k raw outputs of a variant. Grid: channels / 32, V.
__global__ void fold_kernel(NodeShape s, NodeTerms terms, int chunk, int chunks, const float* partial,
                            float* mean, float* variance, float* scale, float* shift) {
  const int lane = static_cast<int>(threadIdx.x), raw = static_cast<int>(threadIdx.y), raws = 2 * s.edges;
  const int c = static_cast<int>(blockIdx.x) * 32 + lane, v = static_cast<int>(blockIdx.y);
  float* shifts = shared_memory<float>();  // [2 k][32]
  if (c < s.channels) {
    const float* from = partial + (static_cast<int64_t>(v) * raws + raw) * chunks * 2 * s.channels + c;
    float total = from[0], spread = from[s.channels];
    for (int b = 1; b < chunks; ++b) {
      const float* block = from + static_cast<int64_t>(b) * 2 * s.channels;
      const int64_t before = static_cast<int64_t>(b) * chunk, left = s.pixels() - before;
      join(static_cast<float>(before), total, spread, static_cast<float>(left < chunk ? left : chunk),
           block[0], block[s.channels]);
    }
    const float biased = spread < 0 ? 0.0f : spread / static_cast<float>(s.pixels());  // NaN stays
    const float alpha = terms.alpha[(v * s.edges + raw / 2) * 5 + 2 + raw % 2];
    const float factor = alpha / sqrtf(biased + terms.eps);
    const int64_t at = (static_cast<int64_t>(v) * raws + raw) * s.channels + c;
    mean[at] = total;
    variance[at] = biased;
    scale[at] = factor;
    shifts[raw * 32 + lane] = -factor * total;
  }
  __syncthreads();
  if (raw != 0 || c >= s.channels) return;
  float sum = 0;
  for (int i = 0; i < raws; ++i) sum += shifts[i * 32 + lane];
  shift[static_cast<int64_t>(v) * s.channels + c] = sum;
}

// The node. A thread marches down a strip with the sums over three columns of the last three rows,
// sum_e pool_e x_e. Grid: strips / rows of a block, V, channel blocks.
template <typename T, int kPack>
__global__ __launch_bounds__(kThreads) void node_kernel(NodeShape s, NodeTerms terms, const float* scale,
                                                        const float* shift, T* node) {
  const Lanes lanes(s.channels, kPack);
  const Place at = place(lanes, s.channels, kPack);
  const int number = static_cast<int>(blockIdx.x) * lanes.rows + at.row, v = static_cast<int>(blockIdx.y);
  if (!at.inside || number >= strips(s)) return;
  const Strip strip = strip_of(s, number);
  const int64_t image = (v * s.pixels() + strip.image) * s.channels + at.channel;
  const float* alpha = terms.alpha + static_cast<int64_t>(v) * s.edges * 5;
  const float* scales = scale + static_cast<int64_t>(v) * s.edges * 2 * s.channels + at.channel;
  const float share = box_share(strip.column, s.width);
  float shifts[kPack], before[kPack] = {}, here[kPack] = {}, value[kPack] = {};
  load<float, kPack>(shift + static_cast<int64_t>(v) * s.channels + at.channel, shifts);
  for (int y = strip.first - 1; y <= strip.last; ++y) {
    const bool inside = y >= strip.first && y < strip.last;
    float after[kPack] = {}, next[kPack], term[kPack];
#pragma unroll
    for (int i = 0; i < kPack; ++i) next[i] = shifts[i];
    for (int e = 0; e < s.edges && y >= 0 && y < s.height; ++e) {
      const int64_t pixel = image + (static_cast<int64_t>(y) * s.width + strip.column) * s.channels;
      const T* x = static_cast<const T*>(terms.x[e]) + pixel;
      const float skip = alpha[5 * e + 1], pool = alpha[5 * e + 4];
      float centre[kPack];
      load<T, kPack>(x, centre);
      add(pool, centre, after);
      if (strip.column > 0) {
        load<T, kPack>(x - s.channels, term);
        add(pool, term, after);
      }
      if (strip.column + 1 < s.width) {
        load<T, kPack>(x + s.channels, term);
        add(pool, term, after);
      }
      if (!inside) continue;
      if (terms.keep[e] != nullptr) {
        load<T, kPack>(static_cast<const T*>(terms.keep[e]) + pixel, term);
#pragma unroll
        for (int i = 0; i < kPack; ++i) centre[i] *= term[i];
      }
      add(skip, centre, next);
#pragma unroll
      for (int o = 0; o < 2; ++o) {
        float factor[kPack];
        load<float, kPack>(scales + (2 * e + o) * s.channels, factor);
        load<T, kPack>(static_cast<const T*>(terms.raw[e][o]) + pixel, term);
#pragma unroll
        for (int i = 0; i < kPack; ++i) next[i] += factor[i] * term[i];
      }
    }
    if (y > strip.first) {
      const float box = share * box_share(y - 1, s.height);
#pragma unroll
      for (int i = 0; i < kPack; ++i) value[i] += box * (before[i] + here[i] + after[i]);
      store<T, kPack>(node + image + (static_cast<int64_t>(y - 1) * s.width + strip.column) * s.channels,
                      value);
    }
#pragma unroll
    for (int i = 0; i < kPack; ++i) {
      before[i] = here[i];
      here[i] = after[i];
      value[i] = next[i];
    }
  }
}

bool all_aligned(const NodeShape& s, const NodeTerms& terms, const void* node) {
  bool all = aligned(s.number, s.channels) && aligned(node);
  for (int e = 0; e < s.edges; ++e) {
    all = all && aligned(terms.x[e]) && aligned(terms.keep[e]) && aligned(terms.raw[e][0]) &&
          aligned(terms.raw[e][1]);
  }
  return all;
}

}  // namespace

// scale [V, k, 2, C], shift [V, C], partial [V, k, 2, chunks, 2, C].
int64_t forward_workspace(const NodeShape& s) {
  const int64_t channels = static_cast<int64_t>(s.variants) * s.channels;
  return channels * s.edges * 2 * (1 + 2 * static_cast<int64_t>(chunks(s))) + channels;
}

void launch_mixed_sum(const MixedSumForward& args, void* stream) {
  const NodeShape& s = args.shape;
  const unsigned variants = static_cast<unsigned>(s.variants), raws = 2 * static_cast<unsigned>(s.edges);
  const int chunk = chunk_pixels(s), count = chunks(s);
  float* scale = args.workspace;
  float* shift = scale + static_cast<int64_t>(variants) * raws * s.channels;
  float* partial = shift + static_cast<int64_t>(variants) * s.channels;
  with_access(s.number, all_aligned(s, args.terms, args.node), [&](auto access) {
    using T = typename decltype(access)::T;
    constexpr int kPack = decltype(access)::kPack;
    const unsigned z = static_cast<unsigned>(channel_blocks(s.channels, kPack));
    launch("mixed_sum statistics", statistics_kernel<T, kPack>,
           {static_cast<unsigned>(count), variants * raws, z}, kThreads,
           (1 + 2 * kPack) * kThreads * sizeof(float), stream, s, args.terms, chunk, partial);
    launch("mixed_sum fold", fold_kernel, {static_cast<unsigned>(ceil_div(s.channels, 32)), variants},
           {32, raws}, 32 * raws * sizeof(float), stream, s, args.terms, chunk, count,
           static_cast<const float*>(partial), args.mean, args.variance, scale, shift);
    launch("mixed_sum node", node_kernel<T, kPack>,
           {static_cast<unsigned>(ceil_div(strips(s), Lanes(s.channels, kPack).rows)), variants, z}, kThreads,
           size_t{0}, stream, s, args.terms, static_cast<const float*>(scale),
           static_cast<const float*>(shift), static_cast<T*>(args.node));
  });
}

}  // namespace vpdarts::cuda
