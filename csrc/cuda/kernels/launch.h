// The one place where kernels are launched and shared memory is named.
//
// All shared memory is dynamic: a launch asks for exactly as much as its kernel uses.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace vpdarts::cuda {

// Raises std::runtime_error, which PyTorch makes a RuntimeError, with CUDA's words.
inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": CUDA error: " + cudaGetErrorString(status));
}

// The most that a block of the current device can ask for.
inline int64_t shared_bytes_limit() {
  int device = 0, bytes = 0;
  check(cudaGetDevice(&device), "device");
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "shared memory");
  return bytes;
}

// Starts a kernel on a stream of the current device; `name` is for the message if that fails.
template <typename... Parameters>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            void* stream, Parameters... arguments) {
  if (shared_bytes > 48 * 1024) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          name);
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kernel, arguments...), name);
}

// The block's shared memory.
template <typename T>
__device__ T* shared_memory() {
#ifdef __CUDACC__
  extern __shared__ __align__(128) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
#else
  return static_cast<T*>(emulation::shared_memory());
#endif
}

}  // namespace vpdarts::cuda
