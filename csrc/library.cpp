// Every op schema; nothing else.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(vpdarts_fast, m) {
  // x [N, C, H, W], weight_1x1 [k, C, C, 1, 1], weight_3x3 [k, C, C, 3, 3] -> the raw outputs of the k 1x1
  // and of the k 3x3 convolutions, each [N, C, H, W], channels last.
  m.def("relu_conv(Tensor x, Tensor weight_1x1, Tensor weight_3x3) -> (Tensor[], Tensor[])");
  // The gradients of the raw outputs -> those of x, weight_1x1 and weight_3x3; those not wanted have a first
  // dimension of 0.
  m.def(
      "relu_conv_backward(Tensor[] gradient_1x1, Tensor[] gradient_3x3, Tensor x, Tensor weight_1x1, "
      "Tensor weight_3x3, bool wants_x, bool wants_1x1, bool wants_3x3) -> (Tensor, Tensor, Tensor)");

  // x [N, C, H, W], weights of one or, at stride 2, two 1x1 convolutions [C_i, C, 1, 1] of relu(x), the
  // second of the pixels one further in both directions -> their outputs side by side [N, sum of C_i, ceil(H
  // / stride), ceil(W / stride)], channels last.
  m.def("relu_pointwise(Tensor x, Tensor[] weights, int stride) -> Tensor");
  // The gradient of the output -> those of x and of the weights; those not wanted have a first dimension of
  // 0.
  m.def(
      "relu_pointwise_backward(Tensor gradient, Tensor x, Tensor[] weights, int stride, bool wants_x, "
      "bool wants_weights) -> (Tensor, Tensor[])");

  // xs, raw_1x1, raw_3x3 [k] and skip_scale [k] or [0], each tensor [V, N, C, H, W], alpha [V, k, 5] -> the
  // node [V, N, C, H, W], channels last; mean and biased variance [V, k, 2, C].
  m.def(
      "mixed_sum(Tensor[] xs, Tensor[] raw_1x1, Tensor[] raw_3x3, Tensor alpha, Tensor[] skip_scale, "
      "float eps) -> (Tensor, Tensor, Tensor)");
  // gradient [V, N, C, H, W] of the node -> the gradients of xs, raw_1x1, raw_3x3, alpha and skip_scale;
  // those not wanted have a first dimension of 0. Each wants_ but that of alpha is as long as its list.
  m.def(
      "mixed_sum_backward(Tensor gradient, Tensor[] xs, Tensor[] raw_1x1, Tensor[] raw_3x3, Tensor alpha, "
      "Tensor[] skip_scale, float eps, Tensor mean, Tensor variance, bool[] wants_xs, bool[] wants_1x1, "
      "bool[] wants_3x3, bool wants_alpha, bool[] wants_scale) -> (Tensor[], Tensor[], Tensor[], Tensor, "
      "Tensor[])");

  // x [1 or V, N, C, H, W], alpha [V, O]; of O branches their kinds (0 none, 1 skip, 2 average pool, 3
  // maximum pool, 4 separable convolution, 5 given) and how many batch norms each has, M in all; of S stages
  // depthwise [C, 1, k, k], pointwise [C, C, 1, 1] and dilation; given terms [1 or V, N, C, H', W']; gamma
  // and beta [M, C], eps [M]; statistics [M, 2, C], [V, M, 2, C] (of x with V) or none -> [V, N, C, H', W'],
  // channels last; mean and variance [V, M, C]; and, for the backward pass, raw [1 or V as x, S, N, H', W',
  // padded].
  m.def(
      "mixed_op(Tensor x, Tensor alpha, int[] kinds, int[] norms, Tensor[] depthwise, Tensor[] pointwise, "
      "int[] dilation, Tensor[] given, Tensor gamma, Tensor beta, float[] eps, Tensor? statistics, "
      "int stride) -> (Tensor, Tensor, Tensor, Tensor)");
  // The same with given statistics, without what a backward pass needs -> [V, N, C, H', W'].
  m.def(
      "mixed_op_fixed(Tensor x, Tensor alpha, int[] kinds, int[] norms, Tensor[] depthwise, "
      "Tensor[] pointwise, int[] dilation, Tensor[] given, Tensor gamma, Tensor beta, float[] eps, "
      "Tensor statistics, int stride) -> Tensor");
  // gradient [V, N, C, H', W'] -> the gradients of x, alpha, depthwise, pointwise, given, gamma and beta;
  // those not wanted have a first dimension of 0. x and given have V variants.
  m.def(
      "mixed_op_backward(Tensor gradient, Tensor x, Tensor alpha, int[] kinds, int[] norms, "
      "Tensor[] depthwise, Tensor[] pointwise, int[] dilation, Tensor[] given, Tensor gamma, Tensor beta, "
      "float[] eps, Tensor? statistics, int stride, Tensor mean, Tensor variance, Tensor raw, bool wants_x, "
      "bool wants_alpha, bool wants_weights, bool[] wants_given, bool wants_norms) -> (Tensor, Tensor, "
      "Tensor[], Tensor[], Tensor[], Tensor, Tensor)");

  // x [1 or V, N, C, H, W], weight_1x1 [E, C, C, 1, 1], weight_3x3 [E, C, C, 3, 3], mean and variance
  // [E, 2, C] or [V, E, 2, C], alpha [V, E, 5] -> [V, N, C, H, W], channels last.
  m.def(
      "masked_cell(Tensor x, Tensor weight_1x1, Tensor weight_3x3, Tensor mean, Tensor variance, "
      "Tensor alpha, float eps) -> Tensor");
  // The same, float32 multiplied with ten bits of mantissa; CUDA only.
  m.def(
      "masked_cell_tf32(Tensor x, Tensor weight_1x1, Tensor weight_3x3, Tensor mean, Tensor variance, "
      "Tensor alpha, float eps) -> Tensor");
  // Whether x's device has room for the cell; CUDA only.
  m.def("masked_cell_fits(Tensor x, Tensor alpha) -> bool");

  // x [N, C, H, W], weight_1x1 [E, C, C, 1, 1], weight_3x3 [E, C, C, 3, 3], alpha [E, 5], skip_seed [E]
  // int64 -> the last node [N, C, H, W], channels last; mean and biased variance [E, 2, C]; and, for the
  // backward pass, nodes [nodes - 2, N, H, W, padded], raw [E, N, H, W, padded], statistics [E, 4, padded],
  // moments [nodes - 1, 1 + padded, padded].
  // skip_zeros: convolutions whose alpha is 0 are not computed; their mean and variance are 0.
  m.def(
      "mixed_cell(Tensor x, Tensor weight_1x1, Tensor weight_3x3, Tensor alpha, Tensor? skip_seed, "
      "float skip_dropout, float eps, bool skip_zeros) -> (Tensor, Tensor, Tensor, Tensor, Tensor, "
      "Tensor, Tensor)");
  // The same for V variants, without what a backward pass needs: x [1 or V, N, C, H, W], alpha [V, E, 5] ->
  // [V, N, C, H, W], mean and biased variance [V, E, 2, C].
  m.def(
      "mixed_cell_variants(Tensor x, Tensor weight_1x1, Tensor weight_3x3, Tensor alpha, Tensor? skip_seed, "
      "float skip_dropout, float eps, bool skip_zeros) -> (Tensor, Tensor, Tensor)");
  // gradient [N, C, H, W] of the last node -> the gradients of x, weight_1x1, weight_3x3 and alpha; those
  // not wanted have a first dimension of 0.
  m.def(
      "mixed_cell_backward(Tensor gradient, Tensor x, Tensor weight_1x1, Tensor weight_3x3, Tensor alpha, "
      "Tensor? skip_seed, float skip_dropout, float eps, bool skip_zeros, Tensor nodes, Tensor raw, Tensor "
      "statistics, Tensor moments, bool wants_x, bool wants_weights, bool wants_alpha) -> (Tensor, Tensor, "
      "Tensor, Tensor)");

  // x [N, C, H, W], weight_a [C_out, C, 3, 3], weight_b [C_out, C_out, 3, 3], weight_shortcut
  // [C_out, C, 1, 1], scale and shift [2, C_out] -> [N, C_out, ceil(H/2), ceil(W/2)], channels last.
  m.def(
      "residual_block(Tensor x, Tensor weight_a, Tensor weight_b, Tensor weight_shortcut, Tensor scale, "
      "Tensor shift) -> Tensor");

  // x and weights as above, gamma and beta [2, C_out] -> [N, C_out, ceil(H/2), ceil(W/2)], channels last;
  // mean and biased variance [2, C_out]; and, for the backward pass, raw [2, N, ceil(H/2), ceil(W/2),
  // padded].
  m.def(
      "trained_residual_block(Tensor x, Tensor weight_a, Tensor weight_b, Tensor weight_shortcut, "
      "Tensor gamma, Tensor beta, float eps) -> (Tensor, Tensor, Tensor, Tensor)");
  // gradient [N, C_out, ceil(H/2), ceil(W/2)] -> the gradients of x, weight_a, weight_b, weight_shortcut,
  // gamma and beta; those not wanted have a first dimension of 0.
  m.def(
      "trained_residual_block_backward(Tensor gradient, Tensor x, Tensor weight_a, Tensor weight_b, "
      "Tensor weight_shortcut, Tensor gamma, Tensor beta, float eps, Tensor mean, Tensor variance, "
      "Tensor raw, bool wants_x, bool wants_weights, bool wants_norms) -> (Tensor, Tensor, Tensor, Tensor, "
      "Tensor, Tensor)");
}
