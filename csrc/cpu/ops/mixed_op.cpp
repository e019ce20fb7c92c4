// mixed_op on the CPU: validate, lay out, allocate what a training step keeps, run the edge.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "check.h"
#include "cpu/kernels.h"
#include "cpu/ops/layout.h"
#include "cpu/ops/mixed_op_passes.h"
#include "cpu/ops/parallel.h"

namespace vpdarts::cpu {
namespace {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using Integers = std::vector<int64_t>;

constexpr const char* kName = "mixed_op";

template <typename Some>
int64_t length(const Some& some) {
  return static_cast<int64_t>(some.size());
}

// The arguments of both ops, in the order of the schema.
struct Inputs {
  const Tensor &x, &alpha;
  const Integers &kinds, &norms;
  const Tensors &depthwise, &pointwise;
  const Integers& dilation;
  const Tensors& given;
  const Tensor &gamma, &beta;
  const std::vector<double>& eps;
  const std::optional<Tensor>& statistics;
  int64_t stride;

  int64_t variants() const { return alpha.size(0); }
  int64_t channels() const { return x.size(2); }
  int64_t out_height() const { return (x.size(3) + stride - 1) / stride; }
  int64_t out_width() const { return (x.size(4) + stride - 1) / stride; }
};

void check_sizes(const Inputs& in) {
  STD_TORCH_CHECK(in.x.dim() == 5, kName, ": x must be [V, N, C, H, W]; got ", in.x.dim(), " dimensions");
  const int64_t c = in.channels(), branches = length(in.kinds), norms = length(in.eps);
  check_tensor(kName, "x", in.x, {in.x.size(0), in.x.size(1), c, in.x.size(3), in.x.size(4)});
  STD_TORCH_CHECK(c > 0 && in.x.size(3) > 0 && in.x.size(4) > 0, kName,
                  ": C, H and W must be at least 1; got x of ",
                  text({in.x.size(0), in.x.size(1), c, in.x.size(3), in.x.size(4)}));
  STD_TORCH_CHECK(in.alpha.dim() == 2, kName, ": alpha must be [V, O]; got ", in.alpha.dim(), " dimensions");
  check_tensor(kName, "alpha", in.alpha, {in.alpha.size(0), branches});
  STD_TORCH_CHECK(in.variants() > 0 && (in.x.size(0) == 1 || in.x.size(0) == in.variants()), kName,
                  ": x must hold 1 or V = ", in.variants(), " variants; got ", in.x.size(0));
  check_count(kName, "variants", in.variants());
  for (const double eps : in.eps) check_eps(kName, eps);
  STD_TORCH_CHECK(in.stride == 1 || in.stride == 2, kName, ": stride must be 1 or 2; got ", in.stride);
  STD_TORCH_CHECK(length(in.norms) == branches, kName, ": norms must be as long as kinds, ", branches,
                  "; got ", length(in.norms));
  check_tensor(kName, "gamma", in.gamma, {norms, c});
  check_tensor(kName, "beta", in.beta, {norms, c});
  if (in.statistics.has_value()) {
    if (in.statistics->dim() == 4) {
      check_tensor(kName, "statistics", *in.statistics, {in.variants(), norms, 2, c});
      STD_TORCH_CHECK(in.x.size(0) == in.variants(), kName, ": x must hold V = ", in.variants(),
                      " variants where each has its own statistics; got ", in.x.size(0));
    } else {
      check_tensor(kName, "statistics", *in.statistics, {norms, 2, c});
    }
  } else {
    STD_TORCH_CHECK(norms == 0 || in.x.size(1) * in.out_height() * in.out_width() >= 2, kName,
                    ": the output must hold two values per channel; got x of ",
                    text({in.x.size(0), in.x.size(1), c, in.x.size(3), in.x.size(4)}));
  }
}

void check_stages(const Inputs& in) {
  const int64_t c = in.channels(), stages = length(in.depthwise);
  STD_TORCH_CHECK(length(in.pointwise) == stages && length(in.dilation) == stages, kName,
                  ": depthwise, pointwise and dilation must be equally long; got ", stages, ", ",
                  length(in.pointwise), ", ", length(in.dilation));
  for (int64_t i = 0; i < stages; ++i) {
    const Tensor& depthwise = in.depthwise[i];
    STD_TORCH_CHECK(depthwise.dim() == 4, kName, ": depthwise must be [C, 1, k, k]; got ", depthwise.dim(),
                    " dimensions");
    const int64_t k = depthwise.size(2);
    STD_TORCH_CHECK(k == 3 || k == 5 || k == 7, kName, ": depthwise must have k = 3, 5 or 7; got ", k);
    check_tensor(kName, "depthwise", depthwise, {c, 1, k, k});
    check_tensor(kName, "pointwise", in.pointwise[i], {c, c, 1, 1});
    STD_TORCH_CHECK(in.dilation[i] == 1 || in.dilation[i] == 2, kName, ": dilation must be 1 or 2; got ",
                    in.dilation[i]);
  }
  for (const Tensor& given : in.given) {
    STD_TORCH_CHECK(given.dim() == 5, kName, ": given must be [V, N, C, H', W']; got ", given.dim(),
                    " dimensions");
    STD_TORCH_CHECK(given.size(0) == 1 || given.size(0) == in.variants(), kName,
                    ": given must hold 1 or V = ", in.variants(), " variants; got ", given.size(0));
    check_tensor(kName, "given", given, {given.size(0), in.x.size(1), c, in.out_height(), in.out_width()});
  }
}

// Checks that stages, given terms and batch norms are as many as the branches have.
std::vector<MixedOpBranch> branches_of(const Inputs& in) {
  std::vector<MixedOpBranch> result;
  int64_t norms = 0, stages = 0, given = 0;
  for (size_t o = 0; o < in.kinds.size(); ++o) {
    const int64_t kind = in.kinds[o], count = in.norms[o];
    STD_TORCH_CHECK(kind >= 0 && kind <= static_cast<int64_t>(BranchKind::given), kName,
                    ": kinds must be 0 to 5; got ", kind);
    const auto branch = static_cast<BranchKind>(kind);
    const bool separable = branch == BranchKind::separable, skip = branch == BranchKind::skip;
    const int64_t least = separable ? 1 : 0, most = separable                            ? 2
                                                    : skip || branch == BranchKind::none ? 0
                                                                                         : 1;
    STD_TORCH_CHECK(count >= least && count <= most, kName, ": norms must be ", least, " to ", most,
                    " for kind ", kind, "; got ", count);
    STD_TORCH_CHECK(!skip || in.stride == 1, kName, ": a skip connection must have stride 1; got ",
                    in.stride);
    result.push_back({branch, count > 0 ? norms : -1, separable ? stages : given, separable ? count : 0});
    norms += count;
    stages += separable ? count : 0;
    given += branch == BranchKind::given ? 1 : 0;
  }
  STD_TORCH_CHECK(norms == length(in.eps) && stages == length(in.depthwise) && given == length(in.given),
                  kName, ": kinds and norms ask for ", norms, " batch norms, ", stages, " stages and ", given,
                  " given terms; got ", length(in.eps), ", ", length(in.depthwise), ", ", length(in.given));
  return result;
}

// The arguments, checked, and as the kernels take them.
class Arguments {
 public:
  explicit Arguments(const Inputs& in) : channels(in.channels()) {
    check_sizes(in);
    check_stages(in);
    const int64_t lanes = active_kernels(channels).mixed_op.lanes,
                  padded = (channels + lanes - 1) / lanes * lanes;
    edge.branches = branches_of(in);
    edge.shape = {in.x.size(3), in.x.size(4), in.stride, padded, 1};
    edge.variants = in.variants();
    edge.images = in.x.size(1);
    edge.channels = channels;
    edge.x = {hold(images_of(in.x, padded)), in.x.size(0)};
    edge.alpha = hold(torch::stable::contiguous(in.alpha));
    for (size_t i = 0; i < in.depthwise.size(); ++i) {
      const int64_t kernel = in.depthwise[i].size(2);
      edge.stages.push_back({kernel, in.dilation[i], hold(torch::stable::contiguous(in.depthwise[i])),
                             hold(torch::stable::contiguous(in.pointwise[i]))});
      edge.shape.border = std::max(edge.shape.border, in.dilation[i] * (kernel - 1) / 2);
    }
    for (const Tensor& given : in.given)
      edge.given.push_back({hold(images_of(given, padded)), given.size(0)});
    edge.eps = in.eps;
    edge.gamma = hold(torch::stable::contiguous(in.gamma));
    edge.beta = hold(torch::stable::contiguous(in.beta));
    if (in.statistics.has_value()) {
      edge.statistics = hold(torch::stable::contiguous(*in.statistics));
      edge.per_variant = in.statistics->dim() == 4;
    }
  }

  MixedOpPasses run() const { return {active_kernels(channels).mixed_op, edge}; }
  int64_t norms() const { return length(edge.eps); }
  int64_t stages() const { return length(edge.stages); }

  int64_t channels;
  MixedOpArguments edge{};

 private:
  const float* hold(const Tensor& tensor) {
    held_.push_back(tensor);
    return floats(tensor);
  }

  Tensors held_;
};

std::tuple<Tensor, Tensor, Tensor, Tensor> mixed_op(const Tensor& x, const Tensor& alpha,
                                                    const Integers& kinds, const Integers& norms,
                                                    const Tensors& depthwise, const Tensors& pointwise,
                                                    const Integers& dilation, const Tensors& given,
                                                    const Tensor& gamma, const Tensor& beta,
                                                    const std::vector<double>& eps,
                                                    const std::optional<Tensor>& statistics, int64_t stride) {
  const Arguments args(
      {x, alpha, kinds, norms, depthwise, pointwise, dilation, given, gamma, beta, eps, statistics, stride});
  const MixedOpArguments& edge = args.edge;
  const Block s = edge.shape.out();
  const Tensor out =
      torch::stable::new_empty(alpha, {edge.variants, edge.images, s.height, s.width, s.padded});
  const Tensor mean = torch::stable::new_empty(alpha, {edge.variants, args.norms(), args.channels});
  const Tensor variance = torch::stable::new_empty(alpha, {edge.variants, args.norms(), args.channels});
  const Tensor raw = torch::stable::new_empty(
      alpha, {edge.x.variants, args.stages(), edge.images, s.height, s.width, s.padded});
  args.run().forward({floats(raw), floats(mean), floats(variance)}, floats(out));
  return {channels_second(out, args.channels), mean, variance, raw};
}

Tensor mixed_op_fixed(const Tensor& x, const Tensor& alpha, const Integers& kinds, const Integers& norms,
                      const Tensors& depthwise, const Tensors& pointwise, const Integers& dilation,
                      const Tensors& given, const Tensor& gamma, const Tensor& beta,
                      const std::vector<double>& eps, const Tensor& statistics, int64_t stride) {
  const Arguments args({x, alpha, kinds, norms, depthwise, pointwise, dilation, given, gamma, beta, eps,
                        std::optional<Tensor>(statistics), stride});
  const Block s = args.edge.shape.out();
  const Tensor out =
      torch::stable::new_empty(alpha, {args.edge.variants, args.edge.images, s.height, s.width, s.padded});
  args.run().forward_fixed(floats(out));
  return channels_second(out, args.channels);
}

using Gradients = std::tuple<Tensor, Tensor, Tensors, Tensors, Tensors, Tensor, Tensor>;

// Like the others, none of it if it is not wanted.
Tensors new_like(const Tensors& some, bool wanted, std::vector<float*>& data) {
  Tensors result;
  for (const Tensor& tensor : some) {
    const int64_t first = wanted ? tensor.size(0) : 0;
    result.push_back(
        torch::stable::new_empty(tensor, {first, tensor.size(1), tensor.size(2), tensor.size(3)}));
    data.push_back(wanted ? floats(result.back()) : nullptr);
  }
  return result;
}

Gradients mixed_op_backward(const Tensor& gradient, const Tensor& x, const Tensor& alpha,
                            const Integers& kinds, const Integers& norms, const Tensors& depthwise,
                            const Tensors& pointwise, const Integers& dilation, const Tensors& given,
                            const Tensor& gamma, const Tensor& beta, const std::vector<double>& eps,
                            const std::optional<Tensor>& statistics, int64_t stride, const Tensor& mean,
                            const Tensor& variance, const Tensor& raw, bool wants_x, bool wants_alpha,
                            bool wants_weights, const std::vector<bool>& wants_given, bool wants_norms) {
  const Arguments args(
      {x, alpha, kinds, norms, depthwise, pointwise, dilation, given, gamma, beta, eps, statistics, stride});
  const MixedOpArguments& edge = args.edge;
  const Block s = edge.shape.out();
  const int64_t v = edge.variants, c = args.channels;
  bool all = edge.x.variants == v;
  for (const MixedOpImages& some : edge.given) all = all && some.variants == v;
  STD_TORCH_CHECK(all, kName, ": x and given must hold V = ", v, " variants in a backward pass");
  check_tensor(kName, "gradient", gradient, {v, edge.images, c, s.height, s.width});
  check_tensor(kName, "mean", mean, {v, args.norms(), c});
  check_tensor(kName, "variance", variance, {v, args.norms(), c});
  check_tensor(kName, "raw", raw, {v, args.stages(), edge.images, s.height, s.width, s.padded});
  STD_TORCH_CHECK(length(wants_given) == length(given), kName, ": wants_given must hold ", length(given),
                  " values; got ", length(wants_given));
  const Tensor down = images_of(gradient, s.padded), means = torch::stable::contiguous(mean),
               variances = torch::stable::contiguous(variance), raws = torch::stable::contiguous(raw);
  const Tensor of_x = torch::stable::new_empty(
      x, {wants_x ? v : 0, edge.images, edge.shape.height, edge.shape.width, s.padded});
  const Tensor of_alpha = torch::stable::new_empty(alpha, {wants_alpha ? v : 0, alpha.size(1)});
  const Tensor of_gamma = torch::stable::new_zeros(gamma, {wants_norms ? args.norms() : 0, c});
  const Tensor of_beta = torch::stable::new_zeros(beta, {wants_norms ? args.norms() : 0, c});
  const auto wanted = [](bool wants, const Tensor& tensor) { return wants ? floats(tensor) : nullptr; };
  MixedOpGradients to{wanted(wants_x, of_x),         wanted(wants_alpha, of_alpha), {}, {}, {},
                      wanted(wants_norms, of_gamma), wanted(wants_norms, of_beta)};
  const Tensors of_depthwise = new_like(depthwise, wants_weights, to.depthwise);
  const Tensors of_pointwise = new_like(pointwise, wants_weights, to.pointwise);
  Tensors of_given;
  for (const bool wants : wants_given) {
    const Tensor storage =
        torch::stable::new_empty(alpha, {wants ? v : 0, edge.images, s.height, s.width, s.padded});
    to.given.push_back(wanted(wants, storage));
    of_given.push_back(channels_second(storage, c));
  }
  args.run().backward({floats(raws), floats(means), floats(variances)}, floats(down), to);
  return {channels_second(of_x, c), of_alpha, of_depthwise, of_pointwise, of_given, of_gamma, of_beta};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpdarts_fast, CPU, m) {
  m.impl("mixed_op", TORCH_BOX(&mixed_op));
  m.impl("mixed_op_fixed", TORCH_BOX(&mixed_op_fixed));
  m.impl("mixed_op_backward", TORCH_BOX(&mixed_op_backward));
}

}  // namespace vpdarts::cpu
