// Argument checks at the native boundary: which argument, what was expected, what came.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <string>

namespace vpdarts {

inline std::string text(std::initializer_list<int64_t> sizes) {
  std::string result = "[";
  for (int64_t size : sizes) result += (result.size() > 1 ? ", " : "") + std::to_string(size);
  return result + "]";
}

// Raises unless the tensor is float32 on the CPU with exactly these sizes.
inline void check_tensor(const char* op, const char* name, const torch::stable::Tensor& tensor,
                         std::initializer_list<int64_t> expected) {
  STD_TORCH_CHECK(tensor.is_cpu(), op, ": ", name, " must be on the CPU");
  STD_TORCH_CHECK(tensor.scalar_type() == torch::headeronly::ScalarType::Float, op, ": ", name,
                  " must be float32");
  bool same = tensor.dim() == static_cast<int64_t>(expected.size());
  int64_t dimension = 0;
  for (int64_t size : expected) same = same && tensor.size(dimension++) == size;
  STD_TORCH_CHECK(same, op, ": ", name, " must have shape ", text(expected));
}

}  // namespace vpdarts
