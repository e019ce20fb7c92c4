// Tensors as the kernels take them.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <vector>

#include "channels_last.h"
#include "cpu/kernels.h"
#include "cpu/ops/blocks.h"
#include "cpu/ops/parallel.h"

namespace vpdarts::cpu {

inline float* floats(const torch::stable::Tensor& tensor) { return static_cast<float*>(tensor.data_ptr()); }

// A tensor [N, C, H, W] or [V, N, C, H, W] of any strides, block by block as the kernels take it.
class Source {
 public:
  Source(const torch::stable::Tensor& tensor, const Block& batch)
      : tensor_(tensor), batch_(batch), channels_(tensor.size(tensor.dim() - 3)) {
    const int64_t d = tensor.dim();
    view_ = {floats(tensor), tensor.stride(d - 4), tensor.stride(d - 2), tensor.stride(d - 1),
             tensor.stride(d - 3)};
    variant_ = d == 5 ? tensor.stride(0) : 0;
    const auto fits = [](int64_t size, int64_t stride, int64_t dense) {
      return size == 1 || stride == dense;
    };
    const int64_t row = batch.width * batch.padded;
    ready_ = channels_ == batch.padded && fits(channels_, view_.channel, 1) &&
             fits(batch.width, view_.pixel, batch.padded) && fits(batch.height, view_.row, row) &&
             fits(batch.images, view_.image, batch.height * row);
  }
  // Floats of memory that a block needs at most.
  int64_t scratch(const Blocks& blocks) const { return ready_ ? 0 : (blocks[0].floats() + 15) / 16 * 16; }

  // Block b of a variant: where it lies, or copied to `memory`, which moves on behind it.
  const float* block(const Blocks& blocks, int64_t variant, int64_t b, float*& memory) const {
    const float* data = view_.data + variant * variant_;
    if (ready_) return data + blocks.offset(b);
    float* copy = memory;
    active_kernels(channels_).gather.images(
        blocks[b], channels_,
        {data + blocks.first(b) * view_.image, view_.image, view_.row, view_.pixel, view_.channel}, copy);
    memory += scratch(blocks);
    return copy;
  }

 private:
  torch::stable::Tensor tensor_;  // keeps the memory
  Block batch_;
  int64_t channels_, variant_;
  ConstImageView view_;
  bool ready_;
};

// Floats of memory that a block of each needs.
inline int64_t scratch_of(const std::vector<Source>& sources, const Blocks& blocks) {
  int64_t total = 0;
  for (const Source& source : sources) total += source.scratch(blocks);
  return total;
}

// [N, C, H, W] or [V, N, C, H, W] of any strides to contiguous [N, H, W, padded], or with V in front: the
// same memory if it lies so already.
inline torch::stable::Tensor images_of(const torch::stable::Tensor& tensor, int64_t padded) {
  using torch::stable::transpose;
  const int64_t d = tensor.dim(), images = tensor.size(d - 4), channels = tensor.size(d - 3);
  const Block image{1, tensor.size(d - 2), tensor.size(d - 1), padded};
  if (channels == padded) {
    const torch::stable::Tensor moved = transpose(transpose(tensor, d - 3, d - 2), d - 2, d - 1);
    if (moved.is_contiguous()) return moved;
  }
  std::vector<int64_t> sizes{images, image.height, image.width, padded};
  if (d == 5) sizes.insert(sizes.begin(), tensor.size(0));
  const torch::stable::Tensor storage = torch::stable::new_empty(tensor, sizes);
  const int64_t variant = d == 5 ? tensor.stride(0) : 0, count = d == 5 ? tensor.size(0) * images : images;
  run_each(count, [&](int64_t i) {
    const float* from = floats(tensor) + i / images * variant + i % images * tensor.stride(d - 4);
    active_kernels(padded).gather.images(
        image, channels, {from, 0, tensor.stride(d - 2), tensor.stride(d - 1), tensor.stride(d - 3)},
        floats(storage) + i * image.floats());
  });
  return storage;
}

}  // namespace vpdarts::cpu
