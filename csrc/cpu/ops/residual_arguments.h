// What the ops of the block between two stages ask of their arguments; vpdarts_fast/ops/shapes.py asks the
// same.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "check.h"

namespace vpdarts::cpu {

// x [N, C, H, W], weights [C_out, C, 3, 3], [C_out, C_out, 3, 3] and [C_out, C, 1, 1]; returns C_out.
inline int64_t check_residual(const char* op, const torch::stable::Tensor& x,
                              const torch::stable::Tensor& weight_a, const torch::stable::Tensor& weight_b,
                              const torch::stable::Tensor& weight_shortcut) {
  STD_TORCH_CHECK(x.dim() == 4, op, ": x must be [N, C, H, W]; got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(weight_a.dim() == 4, op, ": weight_a must be [C_out, C, 3, 3]; got ", weight_a.dim(),
                  " dimensions");
  const int64_t count = x.size(0), channels = x.size(1), height = x.size(2), width = x.size(3);
  const int64_t out_channels = weight_a.size(0);
  check_tensor(op, "x", x, {count, channels, height, width});
  check_tensor(op, "weight_a", weight_a, {out_channels, channels, 3, 3});
  check_tensor(op, "weight_b", weight_b, {out_channels, out_channels, 3, 3});
  check_tensor(op, "weight_shortcut", weight_shortcut, {out_channels, channels, 1, 1});
  STD_TORCH_CHECK(channels >= 1 && height >= 1 && width >= 1 && out_channels >= 1, op,
                  ": C, H, W and C_out must be at least 1; got x of ", text({count, channels, height, width}),
                  " and C_out of ", out_channels);
  return out_channels;
}

}  // namespace vpdarts::cpu
