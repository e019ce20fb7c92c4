// Every op schema; nothing else.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(vpdarts_fast, m) {
  // x [1 or V, N, C, H, W], weight_1x1 [E, C, C, 1, 1], weight_3x3 [E, C, C, 3, 3], mean and variance
  // [E, 2, C], alpha [V, E, 5] -> [V, N, C, H, W], channels last.
  m.def(
      "masked_cell(Tensor x, Tensor weight_1x1, Tensor weight_3x3, Tensor mean, Tensor variance, "
      "Tensor alpha, float eps) -> Tensor");
}
