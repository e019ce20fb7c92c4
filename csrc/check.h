// Argument checks at the native boundary: which argument, what was expected, what came.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <string>

namespace vpdarts {

inline std::string text(std::initializer_list<int64_t> sizes) {
  std::string result = "[";
  for (int64_t size : sizes) result += (result.size() > 1 ? ", " : "") + std::to_string(size);
  return result + "]";
}

// What may come at once: variants of a call, or edges that leave a node. vpdarts_fast/ops/arguments.py says
// why.
constexpr int64_t kMostAtOnce = 65536;

// Raises unless there are few enough.
inline void check_count(const char* op, const char* what, int64_t count) {
  STD_TORCH_CHECK(count <= kMostAtOnce, op, ": there may be at most ", kMostAtOnce, " ", what, "; got ",
                  count);
}

// Raises for an epsilon of a batch norm that is NaN, negative or no float32.
inline void check_eps(const char* op, double eps) {
  STD_TORCH_CHECK(eps >= 0 && eps <= static_cast<double>(std::numeric_limits<float>::max()), op,
                  ": eps must be from 0 to float32's largest; got ", eps);
}

// Raises unless the tensor is of exactly these sizes.
inline void check_shape(const char* op, const char* name, const torch::stable::Tensor& tensor,
                        std::initializer_list<int64_t> expected) {
  bool same = tensor.dim() == static_cast<int64_t>(expected.size());
  int64_t dimension = 0;
  for (int64_t size : expected) same = same && tensor.size(dimension++) == size;
  STD_TORCH_CHECK(same, op, ": ", name, " must have shape ", text(expected));
}

// Raises unless the tensor is on the CPU, of this type (float32 or int64) and of exactly these sizes.
inline void check_tensor(const char* op, const char* name, const torch::stable::Tensor& tensor,
                         std::initializer_list<int64_t> expected,
                         torch::headeronly::ScalarType type = torch::headeronly::ScalarType::Float) {
  STD_TORCH_CHECK(tensor.is_cpu(), op, ": ", name, " must be on the CPU");
  STD_TORCH_CHECK(tensor.scalar_type() == type, op, ": ", name, " must be ",
                  type == torch::headeronly::ScalarType::Float ? "float32" : "int64");
  check_shape(op, name, tensor, expected);
}

// Raises unless the tensor is on this one's device, of its type and of exactly these sizes.
inline void check_like(const char* op, const char* name, const torch::stable::Tensor& tensor,
                       const torch::stable::Tensor& like, std::initializer_list<int64_t> expected) {
  STD_TORCH_CHECK(tensor.device() == like.device(), op, ": ", name, " must be on the others' device");
  STD_TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), op, ": ", name, " must have the others' dtype");
  check_shape(op, name, tensor, expected);
}

}  // namespace vpdarts
