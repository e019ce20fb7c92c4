// residual_block on the CPU: validate, fold the weights, cut into blocks of images, call the kernels.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>

#include "cpu/kernels.h"
#include "cpu/ops/parallel.h"
#include "cpu/ops/residual_arguments.h"

namespace vpdarts::cpu {
namespace {

using torch::stable::Tensor;

constexpr const char* kName = "residual_block";

Tensor residual_block(const Tensor& x, const Tensor& weight_a, const Tensor& weight_b,
                      const Tensor& weight_shortcut, const Tensor& scale, const Tensor& shift) {
  const int64_t out_channels = check_residual(kName, x, weight_a, weight_b, weight_shortcut);
  check_tensor(kName, "scale", scale, {2, out_channels});
  check_tensor(kName, "shift", shift, {2, out_channels});
  const int64_t count = x.size(0), channels = x.size(1), height = x.size(2), width = x.size(3);
  const ResidualBlockKernels& kernels = active_kernels(channels).residual_block;
  const auto pad = [&](int64_t c) { return (c + kernels.lanes - 1) / kernels.lanes * kernels.lanes; };
  const int64_t padded = pad(channels), out_padded = pad(out_channels);
  const int64_t out_height = (height + 1) / 2, out_width = (width + 1) / 2;
  Tensor storage = torch::stable::new_empty(x, {count, out_height, out_width, out_padded});
  Tensor moved = torch::stable::transpose(torch::stable::transpose(storage, 2, 3), 1, 2);
  Tensor out = torch::stable::narrow(moved, 1, 0, out_channels);
  if (out.numel() == 0) return out;

  const Tensor held[] = {torch::stable::contiguous(weight_a), torch::stable::contiguous(weight_b),
                         torch::stable::contiguous(weight_shortcut), torch::stable::contiguous(scale),
                         torch::stable::contiguous(shift)};
  const float* data[5];
  for (int i = 0; i < 5; ++i) data[i] = static_cast<const float*>(held[i].data_ptr());
  const Floats folded = allocate(kernels.weight_floats(padded, out_padded));
  kernels.fold(channels, out_channels, padded, out_padded, {data[0], data[1], data[2], data[3], data[4]},
               folded.get());

  // Enough tiles to reuse a weight that has come into the cache, and work for every thread.
  const int64_t tiles = ((out_height + 3) / 4) * ((out_width + 3) / 4);
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t block = std::max<int64_t>(
      1, std::min<int64_t>(std::max<int64_t>(16, out_padded) / tiles, (count + threads - 1) / threads));
  const auto shape = [&](int64_t b) {
    return ResidualShape{std::min(block, count - b * block), height, width, channels, padded, out_padded};
  };
  const float* from = static_cast<const float*>(x.data_ptr());
  float* to = static_cast<float*>(storage.data_ptr());
  run((count + block - 1) / block, ScratchSpace(kernels.scratch(shape(0))), [&](int64_t b, float* scratch) {
    const ConstImageView images{from + b * block * x.stride(0), x.stride(0), x.stride(2), x.stride(3),
                                x.stride(1)};
    kernels.forward(shape(b), folded.get(), images, to + b * block * out_height * out_width * out_padded,
                    scratch);
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpdarts_fast, CPU, m) { m.impl("residual_block", TORCH_BOX(&residual_block)); }

}  // namespace vpdarts::cpu
