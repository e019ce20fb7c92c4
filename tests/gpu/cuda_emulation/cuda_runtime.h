// Stands in for CUDA's header of this name: as much of the language and the runtime as the kernels use.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <map>

#include "emulation.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

// Barriers and shuffles. The line tells one place in a kernel from another.

inline void __syncthreads(int line = __builtin_LINE()) { emulation::block_barrier(line); }

inline void __syncwarp(unsigned mask = ~0u, int line = __builtin_LINE()) {
  emulation::collective(mask, nullptr, [](void* const*) {}, line);
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int distance, int width = 32, int line = __builtin_LINE()) {
  struct Lane {
    T give, take;
  } mine{value, value};
  emulation::collective(
      mask, &mine,
      [&](void* const* lanes) {
        for (int i = 0; i < 32; ++i) {
          if ((mask >> i & 1) == 0) continue;
          const int from = i ^ distance;
          if (from / width != i / width) continue;  // keeps its own value
          if ((mask >> from & 1) == 0) emulation::fail("a shuffle from a lane outside its mask");
          static_cast<Lane*>(lanes[i])->take = static_cast<Lane*>(lanes[from])->give;
        }
      },
      line);
  return mine.take;
}

inline int min(int a, int b) { return a < b ? a : b; }
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

// The runtime.

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaDeviceAttr { cudaDevAttrMaxSharedMemoryPerBlockOptin = 97 };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "invalid argument";
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

// As an H100.
constexpr int kSharedBytesOptIn = 227 * 1024;

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = kSharedBytesOptIn;
  return cudaSuccess;
}

// More than 48 KiB of shared memory must be asked for beforehand.
inline std::map<const void*, size_t>& allowed_shared_bytes() {
  static std::map<const void*, size_t> allowed;
  return allowed;
}

template <typename... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int bytes) {
  if (bytes > kSharedBytesOptIn) return cudaErrorInvalidValue;
  allowed_shared_bytes()[reinterpret_cast<const void*>(kernel)] = static_cast<size_t>(bytes);
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  const auto allowed = allowed_shared_bytes().find(reinterpret_cast<const void*>(kernel));
  const size_t most = allowed == allowed_shared_bytes().end() ? 48 * 1024 : allowed->second;
  const bool fits = grid.x > 0 && grid.x < 1u << 31 && grid.y > 0 && grid.y < 1u << 16 && grid.z > 0 &&
                    grid.z < 1u << 16 && block.x * block.y * block.z > 0 &&
                    block.x * block.y * block.z <= 1024 && config->dynamicSmemBytes <= most;
  if (!fits) return cudaErrorInvalidValue;
  emulation::run(grid, block, config->dynamicSmemBytes, [&] { kernel(arguments...); });
  return cudaSuccess;
}
