// How the kernels of mixed_sum share a tensor out among the threads of a block, and add up over them.
#pragma once

#include <algorithm>

#include "launch.h"
#include "mixed_sum.h"
#include "pack.h"

namespace vpdarts::cuda {

constexpr int kThreads = 256;
constexpr int kStrip =
    4;  // rows of an image that a thread marches down, so that a pool reads each value 3 times

// Neighbouring threads take neighbouring packs of channels: `lanes` of them a pixel, `rows` pixels at once.
// Channels that are too many for a block are shared out along the grid's z.
struct Lanes {
  int lanes, rows;

  __host__ __device__ Lanes(int channels, int pack) {
    const int packs = channels / pack;
    lanes = packs < kThreads ? packs : kThreads;
    rows = kThreads / lanes;
  }
};

struct Place {
  int row, channel;
  bool inside;  // threads that are left over take no part but in barriers
};

__device__ __forceinline__ Place place(const Lanes& lanes, int channels, int pack) {
  const int thread = static_cast<int>(threadIdx.x);
  const int row = thread / lanes.lanes, lane = thread % lanes.lanes;
  const int channel = (static_cast<int>(blockIdx.z) * lanes.lanes + lane) * pack;
  return {row, channel, row < lanes.rows && channel < channels};
}

// A strip of a column of pixels: rows first..last-1 of one column of an image.
struct Strip {
  int64_t image;  // its first pixel
  int first, last, column;
};

__host__ __device__ inline int strips(const NodeShape& shape) {
  return shape.images * ((shape.height + kStrip - 1) / kStrip) * shape.width;
}

__device__ __forceinline__ Strip strip_of(const NodeShape& shape, int number) {
  const int per_column = (shape.height + kStrip - 1) / kStrip;
  const int column = number % shape.width, rest = number / shape.width;
  const int first = rest % per_column * kStrip;
  const int64_t image = rest / per_column;
  const int last = first + kStrip < shape.height ? first + kStrip : shape.height;
  return {image * shape.height * shape.width, first, last, column};
}

// Folds the values of all rows of a block into those of row 0, in a fixed order: combine(mine, other).
// Shared memory: kValues floats a thread. Every thread of the block must call it.
template <int kValues, typename Combine>
__device__ __forceinline__ void combine_rows(const Lanes& lanes, const Place& at, float (&values)[kValues],
                                             const Combine& combine) {
  float* mine = shared_memory<float>() + threadIdx.x;
#pragma unroll
  for (int i = 0; i < kValues; ++i) mine[i * kThreads] = values[i];
  int half = 1;
  while (2 * half < lanes.rows) half *= 2;
  for (; lanes.rows > 1 && half > 0; half /= 2) {
    __syncthreads();
    if (at.row >= half || at.row + half >= lanes.rows) continue;
    const float* others = mine + half * lanes.lanes;
    float other[kValues];
#pragma unroll
    for (int i = 0; i < kValues; ++i) other[i] = others[i * kThreads];
    combine(values, other);
#pragma unroll
    for (int i = 0; i < kValues; ++i) mine[i * kThreads] = values[i];
  }
}

inline int ceil_div(int64_t a, int64_t b) { return static_cast<int>((a + b - 1) / b); }

// The grid's z: one block along it for every kThreads packs of channels.
inline int channel_blocks(int channels, int pack) { return ceil_div(channels / pack, kThreads); }

}  // namespace vpdarts::cuda
