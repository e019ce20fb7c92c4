// Tensors as the kernels take them.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <limits>

#include "channels_last.h"
#include "check.h"
#include "cuda/kernels/number.h"

namespace vpdarts::cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Number number_of(const char* op, const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return Number::kFloat32;
    case ScalarType::Half:
      return Number::kFloat16;
    case ScalarType::BFloat16:
      return Number::kBFloat16;
    default:
      STD_TORCH_CHECK(false, op, ": tensors must be float32, float16 or bfloat16");
  }
}

// What is small may be wider than the activations x: alphas, statistics, weights.
inline void check_wide(const char* op, const char* name, const Tensor& tensor, const Tensor& x,
                       std::initializer_list<int64_t> sizes) {
  STD_TORCH_CHECK(tensor.device() == x.device(), op, ": ", name, " must be on the others' device");
  STD_TORCH_CHECK(tensor.scalar_type() == x.scalar_type() || tensor.scalar_type() == ScalarType::Float, op,
                  ": ", name, " must be float32 or have the others' dtype");
  check_shape(op, name, tensor, sizes);
}

// Contiguous float32, a copy only where it is not that already.
inline Tensor floats(const Tensor& tensor) {
  return torch::stable::contiguous(torch::stable::to(tensor, ScalarType::Float));
}

inline float* data(const Tensor& tensor) { return static_cast<float*>(tensor.data_ptr()); }

// Sizes are int inside the kernels.
inline int to_int(const char* op, const char* what, int64_t size) {
  STD_TORCH_CHECK(size >= 0 && size <= std::numeric_limits<int>::max(), op,
                  ": too large for a kernel: ", what, " = ", size);
  return static_cast<int>(size);
}

}  // namespace vpdarts::cuda
