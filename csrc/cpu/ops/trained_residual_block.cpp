// trained_residual_block on the CPU: validate, lay out, allocate what a training step keeps, run the block.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>

#include "check.h"
#include "cpu/kernels.h"
#include "cpu/ops/layout.h"
#include "cpu/ops/residual_arguments.h"
#include "cpu/ops/trained_residual_block_passes.h"

namespace vpdarts::cpu {
namespace {

using torch::stable::Tensor;

constexpr const char* kName = "trained_residual_block";

// The arguments, checked, and as the kernels take them.
class Arguments {
 public:
  Arguments(const Tensor& x, const Tensor& weight_a, const Tensor& weight_b, const Tensor& weight_shortcut,
            const Tensor& gamma, const Tensor& beta)
      : out_channels(check(x, weight_a, weight_b, weight_shortcut, gamma, beta)),
        batch{x.size(0), x.size(2), x.size(3), x.size(1), pad(x, x.size(1)), pad(x, out_channels)},
        input(channels_last(x, batch.padded)),
        held_{torch::stable::contiguous(weight_a), torch::stable::contiguous(weight_b),
              torch::stable::contiguous(weight_shortcut), torch::stable::contiguous(gamma),
              torch::stable::contiguous(beta)} {}

  TrainedResidualBlockPasses block(double eps) const {
    check_eps(kName, eps);
    const Kernels& kernels = active_kernels(batch.channels);
    return {kernels.trained_residual_block,
            kernels.relu_conv,
            batch,
            out_channels,
            {floats(held_[0]), floats(held_[1]), floats(held_[2]), floats(held_[3]), floats(held_[4])},
            eps};
  }

  int64_t out_channels;
  ResidualShape batch;
  Tensor input;  // [N, H, W, padded]

 private:
  static int64_t pad(const Tensor& x, int64_t channels) {
    const int64_t lanes = active_kernels(x.size(1)).trained_residual_block.lanes;
    return (channels + lanes - 1) / lanes * lanes;
  }

  // Returns C_out.
  static int64_t check(const Tensor& x, const Tensor& weight_a, const Tensor& weight_b,
                       const Tensor& weight_shortcut, const Tensor& gamma, const Tensor& beta) {
    const int64_t out_channels = check_residual(kName, x, weight_a, weight_b, weight_shortcut);
    check_tensor(kName, "gamma", gamma, {2, out_channels});
    check_tensor(kName, "beta", beta, {2, out_channels});
    const int64_t pixels = ((x.size(2) + 1) / 2) * ((x.size(3) + 1) / 2);
    STD_TORCH_CHECK(x.size(0) * pixels >= 2, kName,
                    ": the output must hold two values per channel; got x of ",
                    text({x.size(0), x.size(1), x.size(2), x.size(3)}));
    return out_channels;
  }

  Tensor held_[5];
};

// raw [2, N, H', W', padded], mean and variance [2, C_out].
TrainedResidualBlockState state_of(const Arguments& args, const Tensor& mean, const Tensor& variance,
                                   const Tensor& raw) {
  return {floats(raw), floats(raw) + args.batch.out().floats(), floats(mean), floats(variance)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> trained_residual_block(const Tensor& x, const Tensor& weight_a,
                                                                  const Tensor& weight_b,
                                                                  const Tensor& weight_shortcut,
                                                                  const Tensor& gamma, const Tensor& beta,
                                                                  double eps) {
  const Arguments args(x, weight_a, weight_b, weight_shortcut, gamma, beta);
  const Block out_shape = args.batch.out();
  const Tensor out =
      torch::stable::new_empty(x, {out_shape.images, out_shape.height, out_shape.width, out_shape.padded});
  const Tensor mean = torch::stable::new_empty(x, {2, args.out_channels});
  const Tensor variance = torch::stable::new_empty(x, {2, args.out_channels});
  const Tensor raw =
      torch::stable::new_empty(x, {2, out_shape.images, out_shape.height, out_shape.width, out_shape.padded});
  args.block(eps).forward(floats(args.input), state_of(args, mean, variance, raw), floats(out));
  return {channels_second(out, args.out_channels), mean, variance, raw};
}

using Gradients = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Gradients trained_residual_block_backward(const Tensor& gradient, const Tensor& x, const Tensor& weight_a,
                                          const Tensor& weight_b, const Tensor& weight_shortcut,
                                          const Tensor& gamma, const Tensor& beta, double eps,
                                          const Tensor& mean, const Tensor& variance, const Tensor& raw,
                                          bool wants_x, bool wants_weights, bool wants_norms) {
  const Arguments args(x, weight_a, weight_b, weight_shortcut, gamma, beta);
  const ResidualShape& s = args.batch;
  const int64_t c = s.channels, out = args.out_channels;
  const Block out_shape = s.out();
  check_tensor(kName, "gradient", gradient, {s.images, out, out_shape.height, out_shape.width});
  check_tensor(kName, "mean", mean, {2, out});
  check_tensor(kName, "variance", variance, {2, out});
  check_tensor(kName, "raw", raw, {2, s.images, out_shape.height, out_shape.width, s.out_padded});
  const Tensor down = channels_last(gradient, s.out_padded), means = torch::stable::contiguous(mean),
               variances = torch::stable::contiguous(variance), raws = torch::stable::contiguous(raw);
  const Tensor of_x = torch::stable::new_empty(x, {wants_x ? s.images : 0, s.height, s.width, s.padded});
  const int64_t weights = wants_weights ? out : 0, norms = wants_norms ? 2 : 0;
  const Tensor of_a = torch::stable::new_empty(x, {weights, c, 3, 3});
  const Tensor of_b = torch::stable::new_empty(x, {weights, out, 3, 3});
  const Tensor of_shortcut = torch::stable::new_empty(x, {weights, c, 1, 1});
  const Tensor of_gamma = torch::stable::new_empty(x, {norms, out});
  const Tensor of_beta = torch::stable::new_empty(x, {norms, out});
  const auto wanted = [](bool wants, const Tensor& tensor) { return wants ? floats(tensor) : nullptr; };
  args.block(eps).backward(
      floats(args.input), state_of(args, means, variances, raws), floats(down),
      {wanted(wants_x, of_x), wanted(wants_weights, of_a), wanted(wants_weights, of_b),
       wanted(wants_weights, of_shortcut), wanted(wants_norms, of_gamma), wanted(wants_norms, of_beta)});
  return {channels_second(of_x, c), of_a, of_b, of_shortcut, of_gamma, of_beta};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpdarts_fast, CPU, m) {
  m.impl("trained_residual_block", TORCH_BOX(&trained_residual_block));
  m.impl("trained_residual_block_backward", TORCH_BOX(&trained_residual_block_backward));
}

}  // namespace vpdarts::cpu
