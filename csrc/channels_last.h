// Tensors [..., C, H, W] whose channels lie innermost in memory, as all kernels take them.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

namespace vpdarts {

// [..., H, W, padded] in memory -> [..., C, H, W].
inline torch::stable::Tensor channels_second(const torch::stable::Tensor& storage, int64_t channels) {
  using torch::stable::transpose;
  const int64_t d = storage.dim();
  torch::stable::Tensor moved = transpose(transpose(storage, d - 2, d - 1), d - 3, d - 2);
  return torch::stable::narrow(moved, d - 3, 0, channels);
}

// [..., C, H, W] -> contiguous [..., H, W, padded]: the same memory if it lies so already, else a copy.
inline torch::stable::Tensor channels_last(const torch::stable::Tensor& tensor, int64_t padded) {
  using torch::stable::transpose;
  const int64_t d = tensor.dim(), channels = tensor.size(d - 3);
  const torch::stable::Tensor moved = transpose(transpose(tensor, d - 3, d - 2), d - 2, d - 1);
  if (channels == padded) return torch::stable::contiguous(moved);
  std::vector<int64_t> sizes;
  for (int64_t i = 0; i < d; ++i) sizes.push_back(i == d - 1 ? padded : moved.size(i));
  torch::stable::Tensor storage = torch::stable::new_zeros(tensor, sizes);
  torch::stable::Tensor inner = torch::stable::narrow(storage, d - 1, 0, channels);
  torch::stable::copy_(inner, moved);
  return storage;
}

}  // namespace vpdarts
