// Products of 16 pixels x some input channels with input x 16 output channels, by the lanes of one warp:
// what masked_cell's convolutions are made of. relu is taken of the pixels as they are read.
#pragma once

#include <mma.h>

#include "pack.h"

namespace vpdarts::cuda {

constexpr int kTile = 16;

// max(x, 0), but NaN stays.
__device__ __forceinline__ float relu(float x) { return x < 0 ? 0.0f : x; }
__device__ __forceinline__ __half relu(__half x) { return __hmax_nan(x, __float2half(0.0f)); }
__device__ __forceinline__ __nv_bfloat16 relu(__nv_bfloat16 x) {
  return __hmax_nan(x, __float2bfloat16(0.0f));
}

// Tensor cores, 16-bit types.
template <typename Type>
struct TensorCores {
  using T = Type;
  static constexpr int kDepth = 16;  // input channels a step
  using A = nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, kTile, kTile, kDepth, T, nvcuda::wmma::row_major>;
  using B = nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, kTile, kTile, kDepth, T, nvcuda::wmma::row_major>;
  using Sums = nvcuda::wmma::fragment<nvcuda::wmma::accumulator, kTile, kTile, kDepth, float>;
  using Weights = B;

  static __device__ __forceinline__ void clear(Sums& sums) { nvcuda::wmma::fill_fragment(sums, 0.0f); }
  static __device__ __forceinline__ void load(Weights& weights, const T* from, int stride) {
    nvcuda::wmma::load_matrix_sync(weights, from, stride);
  }
  static __device__ __forceinline__ void multiply(const T* pixels, int stride, const Weights& weights,
                                                  Sums& sums) {
    A a;
    nvcuda::wmma::load_matrix_sync(a, pixels, stride);
#pragma unroll
    for (int i = 0; i < A::num_elements; ++i) a.x[i] = relu(a.x[i]);
    nvcuda::wmma::mma_sync(sums, a, weights, sums);
  }
  static __device__ __forceinline__ void store(float* to, const Sums& sums) {
    nvcuda::wmma::store_matrix_sync(to, sums, kTile, nvcuda::wmma::mem_row_major);
  }
};

// Tensor cores, float rounded to ten bits of mantissa.
struct RoundedTensorCores {
  using T = float;
  static constexpr int kDepth = 8;
  using Rounded = nvcuda::wmma::precision::tf32;
  using A =
      nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, kTile, kTile, kDepth, Rounded, nvcuda::wmma::row_major>;
  using B =
      nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, kTile, kTile, kDepth, Rounded, nvcuda::wmma::row_major>;
  using Sums = nvcuda::wmma::fragment<nvcuda::wmma::accumulator, kTile, kTile, kDepth, float>;
  using Weights = B;

  static __device__ __forceinline__ void clear(Sums& sums) { nvcuda::wmma::fill_fragment(sums, 0.0f); }
  static __device__ __forceinline__ void load(Weights& weights, const T* from, int stride) {
    nvcuda::wmma::load_matrix_sync(weights, from, stride);
#pragma unroll
    for (int i = 0; i < B::num_elements; ++i) weights.x[i] = nvcuda::wmma::__float_to_tf32(weights.x[i]);
  }
  static __device__ __forceinline__ void multiply(const T* pixels, int stride, const Weights& weights,
                                                  Sums& sums) {
    A a;
    nvcuda::wmma::load_matrix_sync(a, pixels, stride);
#pragma unroll
    for (int i = 0; i < A::num_elements; ++i) a.x[i] = nvcuda::wmma::__float_to_tf32(relu(a.x[i]));
    nvcuda::wmma::mma_sync(sums, a, weights, sums);
  }
  static __device__ __forceinline__ void store(float* to, const Sums& sums) {
    nvcuda::wmma::store_matrix_sync(to, sums, kTile, nvcuda::wmma::mem_row_major);
  }
};

// Plain float. A lane has eight output channels of one pixel.
struct PlainFloat {
  using T = float;
  static constexpr int kDepth = 4, kOwn = 8;
  struct Weights {
    float value[kDepth][kOwn];
  };
  struct Sums {
    float value[kOwn];
  };
  static __device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x) % 32; }
  static __device__ __forceinline__ int pixel() { return lane() / 2; }
  static __device__ __forceinline__ int channel() { return lane() % 2 * kOwn; }

  static __device__ __forceinline__ void clear(Sums& sums) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) sums.value[i] = 0;
  }
  static __device__ __forceinline__ void load(Weights& weights, const T* from, int stride) {
#pragma unroll
    for (int k = 0; k < kDepth; ++k) cuda::load<T, kOwn>(from + k * stride + channel(), weights.value[k]);
  }
  static __device__ __forceinline__ void multiply(const T* pixels, int stride, const Weights& weights,
                                                  Sums& sums) {
    float x[kDepth];
    cuda::load<T, kDepth>(pixels + pixel() * stride, x);
#pragma unroll
    for (int k = 0; k < kDepth; ++k) add(relu(x[k]), weights.value[k], sums.value);
  }
  static __device__ __forceinline__ void store(float* to, const Sums& sums) {
    cuda::store<T, kOwn>(to + pixel() * kTile + channel(), sums.value);
  }
};

}  // namespace vpdarts::cuda
