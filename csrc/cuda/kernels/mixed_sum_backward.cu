// mixed_sum, backward, g the gradient of the node: one pass for the sums that batch norms and alpha need and
// for the gradients that need none of them, one pass for the gradients of the raw outputs.
//
//   x_e         skip_e keep_e g + pool_e pool^T(g)           keep_e   skip_e x_e g
//   raw_eo      scale (g - S / P - (raw - mean) R / (P (variance + eps))),  S = sum g, R = sum g (raw - mean)
//   alpha_eo    sum_c R / sqrt(variance + eps);  of the skip sum g keep x,  of the pool sum pool^T(g) x
#include <algorithm>

#include "block.h"

namespace vpdarts::cuda {
namespace {

enum Sum { kGradient, kRaw1x1, kRaw3x3, kSkip, kPool, kSums };

// A function of the shape alone, so that the sums are too.
template <int kPack>
int reduce_blocks(const NodeShape& s) {
  return std::min(ceil_div(strips(s), Lanes(s.channels, kPack).rows), 64);
}

// One edge's share of pool^T(g): the sum over three columns of a row, each value divided by its box.
template <typename T, int kPack>
__device__ __forceinline__ void gather_row(const NodeShape& s, const T* gradient, int y, int column,
                                           float (&centre)[kPack], float (&row)[kPack]) {
  const float share = box_share(y, s.height);
  load<T, kPack>(gradient, centre);
  add(share * box_share(column, s.width), centre, row);
  float side[kPack];
  if (column > 0) {
    load<T, kPack>(gradient - s.channels, side);
    add(share * box_share(column - 1, s.width), side, row);
  }
  if (column + 1 < s.width) {
    load<T, kPack>(gradient + s.channels, side);
    add(share * box_share(column + 1, s.width), side, row);
  }
}

// sums += what one pack of a pixel adds; writes the gradients of x and keep. `pooled` is pool^T(g).
template <typename T, int kPack>
__device__ __forceinline__ void reduce_pack(const MixedSumBackward& args, int e, int64_t at,
                                            const float* alpha, const float* means, const float (&g)[kPack],
                                            const float (&pooled)[kPack], float (&sums)[kSums * kPack]) {
  const bool with_alpha = args.alpha_gradient != nullptr;
  float x[kPack] = {}, kept[kPack], term[kPack];
  if (with_alpha || args.keep_gradient[e] != nullptr)
    load<T, kPack>(static_cast<const T*>(args.terms.x[e]) + at, x);
#pragma unroll
  for (int i = 0; i < kPack; ++i) kept[i] = g[i];
  if (args.terms.keep[e] != nullptr) {
    load<T, kPack>(static_cast<const T*>(args.terms.keep[e]) + at, term);
#pragma unroll
    for (int i = 0; i < kPack; ++i) kept[i] *= term[i];
  }
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    sums[kGradient * kPack + i] += g[i];
    sums[kSkip * kPack + i] += kept[i] * x[i];
    sums[kPool * kPack + i] += pooled[i] * x[i];
  }
#pragma unroll
  for (int o = 0; o < 2; ++o) {
    if (!with_alpha && args.raw_gradient[e][o] == nullptr) continue;
    float mean[kPack];
    load<float, kPack>(means + o * args.shape.channels, mean);
    load<T, kPack>(static_cast<const T*>(args.terms.raw[e][o]) + at, term);
#pragma unroll
    for (int i = 0; i < kPack; ++i) sums[(kRaw1x1 + o) * kPack + i] += g[i] * (term[i] - mean[i]);
  }
  if (args.x_gradient[e] != nullptr) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) term[i] = alpha[1] * kept[i] + alpha[4] * pooled[i];
    store<T, kPack>(static_cast<T*>(args.x_gradient[e]) + at, term);
  }
  if (args.keep_gradient[e] != nullptr) {
#pragma unroll
    for (int i = 0; i < kPack; ++i) term[i] = alpha[1] * g[i] * x[i];
    store<T, kPack>(static_cast<T*>(args.keep_gradient[e]) + at, term);
  }
}

// partial [V, k, blocks, kSums, C]. Grid: blocks, V k, channel blocks.
template <typename T, int kPack>
__global__ __launch_bounds__(kThreads, 2) void reduce_kernel(MixedSumBackward args, float* partial) {
  const NodeShape& s = args.shape;
  const Lanes lanes(s.channels, kPack);
  const Place at = place(lanes, s.channels, kPack);
  const int v = static_cast<int>(blockIdx.y) / s.edges, e = static_cast<int>(blockIdx.y) % s.edges;
  const float* alpha = args.terms.alpha + static_cast<int64_t>(blockIdx.y) * 5;
  const float* means = args.mean + static_cast<int64_t>(blockIdx.y) * 2 * s.channels + at.channel;
  float sums[kSums * kPack] = {};
  const int step = static_cast<int>(gridDim.x) * lanes.rows, count = at.inside ? strips(s) : 0;
  for (int number = static_cast<int>(blockIdx.x) * lanes.rows + at.row; number < count; number += step) {
    const Strip strip = strip_of(s, number);
    const int64_t image = (v * s.pixels() + strip.image) * s.channels + at.channel;
    float before[kPack] = {}, here[kPack] = {}, g[kPack] = {};
    for (int y = strip.first - 1; y <= strip.last; ++y) {
      float after[kPack] = {}, next[kPack] = {};
      if (y >= 0 && y < s.height) {
        const int64_t pixel = image + (static_cast<int64_t>(y) * s.width + strip.column) * s.channels;
        gather_row<T, kPack>(s, static_cast<const T*>(args.gradient) + pixel, y, strip.column, next, after);
      }
      if (y > strip.first) {
        const int64_t pixel = image + (static_cast<int64_t>(y - 1) * s.width + strip.column) * s.channels;
        float pooled[kPack];
#pragma unroll
        for (int i = 0; i < kPack; ++i) pooled[i] = before[i] + here[i] + after[i];
        reduce_pack<T, kPack>(args, e, pixel, alpha, means, g, pooled, sums);
      }
#pragma unroll
      for (int i = 0; i < kPack; ++i) {
        before[i] = here[i];
        here[i] = after[i];
        g[i] = next[i];
      }
    }
  }
  combine_rows(lanes, at, sums, [](float (&mine)[kSums* kPack], const float (&other)[kSums* kPack]) {
#pragma unroll
    for (int i = 0; i < kSums * kPack; ++i) mine[i] += other[i];
  });
  if (!at.inside || at.row != 0) return;
  float* out = partial + (static_cast<int64_t>(blockIdx.y) * gridDim.x + blockIdx.x) * kSums * s.channels;
#pragma unroll
  for (int i = 0; i < kSums * kPack; ++i) out[i / kPack * s.channels + at.channel + i % kPack] = sums[i];
}

__device__ __forceinline__ float sum_of_warp(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

// alpha's gradient, and the gradient of raw output eo as  factor[0] g + factor[1] raw + factor[2],
// factors [V, k, 2, 3, C]. Block: a warp for each kind of sum but the first. Grid: k, V.
__global__ void coefficients_kernel(MixedSumBackward args, const float* partial, int blocks, float* factors) {
  const NodeShape& s = args.shape;
  const int lane = static_cast<int>(threadIdx.x), kind = 1 + static_cast<int>(threadIdx.y);
  const int64_t edge = static_cast<int64_t>(blockIdx.y) * s.edges + blockIdx.x;
  const float* from = partial + edge * blocks * kSums * s.channels;
  const float count = static_cast<float>(s.pixels());
  float alpha_gradient = 0;
  for (int c = lane; c < s.channels; c += 32) {
    float sum = 0, gradient = 0;
    for (int b = 0; b < blocks; ++b) {
      const float* block = from + static_cast<int64_t>(b) * kSums * s.channels + c;
      gradient += block[kGradient * s.channels];
      sum += block[kind * s.channels];
    }
    if (kind == kRaw1x1 || kind == kRaw3x3) {
      const int64_t raw = edge * 2 + (kind - kRaw1x1);
      const float spread = args.variance[raw * s.channels + c] + args.terms.eps;
      const float scale = args.terms.alpha[edge * 5 + 2 + (kind - kRaw1x1)] / sqrtf(spread);
      const float raw_scale = -scale * (sum / count) / spread;
      float* out = factors + raw * 3 * s.channels + c;
      out[0] = scale;
      out[s.channels] = raw_scale;
      out[2 * s.channels] = -scale * (gradient / count) - raw_scale * args.mean[raw * s.channels + c];
      sum /= sqrtf(spread);
    }
    alpha_gradient += sum;
  }
  alpha_gradient = sum_of_warp(alpha_gradient);
  if (args.alpha_gradient == nullptr || lane != 0) return;
  const int columns[kSums] = {0, 2, 3, 1, 4};
  args.alpha_gradient[edge * 5 + columns[kind]] = alpha_gradient;
  if (kind == kRaw1x1) args.alpha_gradient[edge * 5] = 0;
}

constexpr int kPixels = 4;  // of a thread, so that it reads factors once for all of them

// The gradients of the raw outputs. Grid: groups of kPixels x rows pixels, V, channel blocks.
template <typename T, int kPack>
__global__ __launch_bounds__(kThreads) void raw_gradient_kernel(MixedSumBackward args, const float* factors) {
  const NodeShape& s = args.shape;
  const Lanes lanes(s.channels, kPack);
  const Place at = place(lanes, s.channels, kPack);
  if (!at.inside) return;
  const int v = static_cast<int>(blockIdx.y);
  const int64_t pixels = s.pixels(), group = static_cast<int64_t>(blockIdx.x) * kPixels * lanes.rows + at.row;
  const int64_t start = (v * pixels + group) * s.channels + at.channel;
  const int64_t step = static_cast<int64_t>(lanes.rows) * s.channels;
  float g[kPixels][kPack];
#pragma unroll
  for (int p = 0; p < kPixels; ++p) {
    if (group + p * lanes.rows < pixels)
      load<T, kPack>(static_cast<const T*>(args.gradient) + start + p * step, g[p]);
  }
  for (int raw = 0; raw < 2 * s.edges; ++raw) {
    T* out = static_cast<T*>(args.raw_gradient[raw / 2][raw % 2]);
    if (out == nullptr) continue;
    const T* from = static_cast<const T*>(args.terms.raw[raw / 2][raw % 2]);
    const float* factor =
        factors + (static_cast<int64_t>(v) * 2 * s.edges + raw) * 3 * s.channels + at.channel;
    float scale[kPack], raw_scale[kPack], shift[kPack];
    load<float, kPack>(factor, scale);
    load<float, kPack>(factor + s.channels, raw_scale);
    load<float, kPack>(factor + 2 * s.channels, shift);
#pragma unroll
    for (int p = 0; p < kPixels; ++p) {
      if (group + p * lanes.rows >= pixels) continue;
      float value[kPack];
      load<T, kPack>(from + start + p * step, value);
#pragma unroll
      for (int i = 0; i < kPack; ++i) value[i] = scale[i] * g[p][i] + (raw_scale[i] * value[i] + shift[i]);
      store<T, kPack>(out + start + p * step, value);
    }
  }
}

bool all_aligned(const MixedSumBackward& args) {
  bool all = aligned(args.shape.number, args.shape.channels) && aligned(args.gradient);
  for (int e = 0; e < args.shape.edges; ++e) {
    const void* some[] = {args.terms.x[e],         args.terms.keep[e],     args.terms.raw[e][0],
                          args.terms.raw[e][1],    args.x_gradient[e],     args.keep_gradient[e],
                          args.raw_gradient[e][0], args.raw_gradient[e][1]};
    for (const void* data : some) all = all && aligned(data);
  }
  return all;
}

bool wants_raw(const MixedSumBackward& args) {
  for (int e = 0; e < args.shape.edges; ++e) {
    if (args.raw_gradient[e][0] != nullptr || args.raw_gradient[e][1] != nullptr) return true;
  }
  return false;
}

}  // namespace

// factors [V, k, 2, 3, C], partial [V, k, blocks, kSums, C]. The smallest pack needs the most blocks.
int64_t backward_workspace(const NodeShape& s) {
  const int64_t per_edge = 6 + kSums * static_cast<int64_t>(reduce_blocks<1>(s));
  return static_cast<int64_t>(s.variants) * s.edges * s.channels * per_edge;
}

void launch_mixed_sum_backward(const MixedSumBackward& args, void* stream) {
  const NodeShape& s = args.shape;
  const unsigned variants = static_cast<unsigned>(s.variants), edges = static_cast<unsigned>(s.edges);
  float* factors = args.workspace;
  float* partial = factors + static_cast<int64_t>(variants) * edges * 6 * s.channels;
  with_access(s.number, all_aligned(args), [&](auto access) {
    using T = typename decltype(access)::T;
    constexpr int kPack = decltype(access)::kPack;
    constexpr int kReduced = kPack < 4 ? kPack : 4;  // so that the sums fit in registers
    const int blocks = reduce_blocks<kReduced>(s);
    const auto z = [&](int pack) { return static_cast<unsigned>(channel_blocks(s.channels, pack)); };
    launch("mixed_sum_backward reduce", reduce_kernel<T, kReduced>,
           {static_cast<unsigned>(blocks), variants * edges, z(kReduced)}, kThreads,
           kSums * kReduced * kThreads * sizeof(float), stream, args, partial);
    if (!wants_raw(args) && args.alpha_gradient == nullptr) return;
    launch("mixed_sum_backward coefficients", coefficients_kernel, {edges, variants}, {32, kSums - 1},
           size_t{0}, stream, args, static_cast<const float*>(partial), blocks, factors);
    if (!wants_raw(args)) return;
    launch("mixed_sum_backward raw gradients", raw_gradient_kernel<T, kPack>,
           {static_cast<unsigned>(ceil_div(s.pixels(), kPixels * Lanes(s.channels, kPack).rows)), variants,
            z(kPack)},
           kThreads, size_t{0}, stream, args, static_cast<const float*>(factors));
  });
}

}  // namespace vpdarts::cuda
