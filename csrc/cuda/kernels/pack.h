// Neighbouring channels that are read and written at once.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "number.h"

namespace vpdarts::cuda {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

__device__ __forceinline__ void assign(float& to, float x) { to = x; }
__device__ __forceinline__ void assign(__half& to, float x) { to = __float2half(x); }
__device__ __forceinline__ void assign(__nv_bfloat16& to, float x) { to = __float2bfloat16(x); }

template <typename T, int kPack>
struct alignas(sizeof(T) * kPack < 16 ? sizeof(T) * kPack : 16) Pack {
  T value[kPack];
};

template <typename T, int kPack>
__device__ __forceinline__ void load(const T* from, float (&to)[kPack]) {
  const Pack<T, kPack> pack = *reinterpret_cast<const Pack<T, kPack>*>(from);
#pragma unroll
  for (int i = 0; i < kPack; ++i) to[i] = to_float(pack.value[i]);
}

template <typename T, int kPack>
__device__ __forceinline__ void store(T* to, const float (&from)[kPack]) {
  Pack<T, kPack> pack;
#pragma unroll
  for (int i = 0; i < kPack; ++i) assign(pack.value[i], from[i]);
  *reinterpret_cast<Pack<T, kPack>*>(to) = pack;
}

// to += factor * from
template <int kPack>
__device__ __forceinline__ void add(float factor, const float (&from)[kPack], float (&to)[kPack]) {
#pragma unroll
  for (int i = 0; i < kPack; ++i) to[i] += factor * from[i];
}

// Of pixels i-1, i, i+1, one over how many are inside 0..size-1: the average pool, the padding not counted.
__device__ __forceinline__ float box_share(int i, int size) {
  return 1.0f / static_cast<float>(1 + (i > 0) + (i < size - 1));
}

// A type and how many channels make a pack of 16 bytes; one channel where memory is not aligned so.
template <typename Type, int kChannels>
struct Access {
  using T = Type;
  static constexpr int kPack = kChannels;
};

// Calls call(Access<T, kPack>) for the activations' type.
template <typename Call>
void with_access(Number number, bool aligned, const Call& call) {
  switch (number) {
    case Number::kFloat32:
      return aligned ? call(Access<float, 4>()) : call(Access<float, 1>());
    case Number::kFloat16:
      return aligned ? call(Access<__half, 8>()) : call(Access<__half, 1>());
    case Number::kBFloat16:
      return aligned ? call(Access<__nv_bfloat16, 8>()) : call(Access<__nv_bfloat16, 1>());
  }
}

// Whether packs of 16 bytes can be read from here on, and from every pixel's start.
inline bool aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; }
inline bool aligned(Number number, int64_t channels) { return channels * bytes_of(number) % 16 == 0; }

}  // namespace vpdarts::cuda
