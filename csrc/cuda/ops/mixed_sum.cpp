// mixed_sum on a GPU: validate, lay out, allocate, start the kernels.
#include "cuda/kernels/mixed_sum.h"

#include <torch/csrc/stable/library.h>

#include <tuple>
#include <vector>

#include "check.h"
#include "cuda/ops/tensors.h"
// Last: a stand-in of this header changes what the ops are registered for.
#include "cuda/ops/device.h"

namespace vpdarts::cuda {
namespace {

using Tensors = std::vector<Tensor>;

constexpr const char* kName = "mixed_sum";

// The arguments as the kernels take them. `held` keeps their memory.
struct Terms {
  NodeShape shape;
  NodeTerms terms;
  Tensor x, alpha;  // as given
  Tensors held;
};

const void* lay_out(Terms& t, const char* name, const Tensor& tensor) {
  const NodeShape& s = t.shape;
  check_like(kName, name, tensor, t.x, {s.variants, s.images, s.channels, s.height, s.width});
  t.held.push_back(channels_last(tensor, s.channels));
  return t.held.back().data_ptr();
}

void check_shape(const NodeShape& s) {
  STD_TORCH_CHECK(s.variants > 0 && s.channels > 0 && s.pixels() >= 2, kName,
                  ": xs must hold a variant, and two values per channel; got V, N, C, H, W = ",
                  text({s.variants, s.images, s.channels, s.height, s.width}));
  // Of CUDA's grids; pixels and strips are counted in int.
  STD_TORCH_CHECK(static_cast<int64_t>(s.variants) * 2 * s.edges < 65536, kName,
                  ": at most 65535 raw outputs; got V, k = ", text({s.variants, s.edges}));
  to_int(kName, "N H W", s.pixels() + 8 * static_cast<int64_t>(s.images) * s.width);
}

Terms checked(const Tensors& xs, const Tensors& raw_1x1, const Tensors& raw_3x3, const Tensor& alpha,
              const Tensors& skip_scale, double eps) {
  const size_t edges = xs.size();
  check_eps(kName, eps);
  STD_TORCH_CHECK(edges > 0 && edges <= kMostIncoming, kName, ": xs must hold 1 to ", kMostIncoming,
                  " tensors; got ", edges);
  STD_TORCH_CHECK(raw_1x1.size() == edges && raw_3x3.size() == edges &&
                      (skip_scale.empty() || skip_scale.size() == edges),
                  kName, ": raw_1x1, raw_3x3 (and skip_scale or none) must hold ", edges, " tensors; got ",
                  raw_1x1.size(), ", ", raw_3x3.size(), ", ", skip_scale.size());
  STD_TORCH_CHECK(xs[0].dim() == 5, kName, ": xs must be [V, N, C, H, W]; got ", xs[0].dim(), " dimensions");
  const auto size = [&](int d) { return to_int(kName, "a size of xs", xs[0].size(d)); };
  Terms t{{number_of(kName, xs[0]), size(0), static_cast<int>(edges), size(1), size(2), size(3), size(4)},
          {},
          xs[0],
          alpha,
          {}};
  check_shape(t.shape);
  check_wide(kName, "alpha", alpha, t.x, {t.shape.variants, t.shape.edges, 5});
  for (size_t e = 0; e < edges; ++e) {
    t.terms.x[e] = lay_out(t, "xs", xs[e]);
    t.terms.raw[e][0] = lay_out(t, "raw_1x1", raw_1x1[e]);
    t.terms.raw[e][1] = lay_out(t, "raw_3x3", raw_3x3[e]);
    t.terms.keep[e] = skip_scale.empty() ? nullptr : lay_out(t, "skip_scale", skip_scale[e]);
  }
  t.held.push_back(floats(alpha));
  t.terms.alpha = data(t.held.back());
  t.terms.eps = static_cast<float>(eps);
  return t;
}

// [V or 0, N, H, W, C], dense.
Tensor like_node(const Terms& t, bool wanted = true) {
  const NodeShape& s = t.shape;
  return torch::stable::new_empty(t.x, {wanted ? s.variants : 0, s.images, s.height, s.width, s.channels});
}

Tensor new_floats(const Terms& t, std::initializer_list<int64_t> sizes) {
  return torch::stable::new_empty(t.x, sizes, ScalarType::Float);
}

std::tuple<Tensor, Tensor, Tensor> mixed_sum(const Tensors& xs, const Tensors& raw_1x1,
                                             const Tensors& raw_3x3, const Tensor& alpha,
                                             const Tensors& skip_scale, double eps) {
  const OnDeviceOf device(alpha);
  const Terms t = checked(xs, raw_1x1, raw_3x3, alpha, skip_scale, eps);
  const NodeShape& s = t.shape;
  const Tensor node = like_node(t), workspace = new_floats(t, {forward_workspace(s)});
  const Tensor mean = new_floats(t, {s.variants, s.edges, 2, s.channels});
  const Tensor variance = new_floats(t, {s.variants, s.edges, 2, s.channels});
  launch_mixed_sum({s, t.terms, data(mean), data(variance), data(workspace), node.data_ptr()},
                   device.stream());
  const auto as_alpha = [&](const Tensor& wide) { return torch::stable::to(wide, alpha.scalar_type()); };
  return {channels_second(node, s.channels), as_alpha(mean), as_alpha(variance)};
}

// Tensors for the wanted gradients of a list; put(e, data) where they lie.
template <typename Put>
Tensors allocate_gradients(const Terms& t, const char* name, const std::vector<bool>& wants, size_t count,
                           const Put& put) {
  STD_TORCH_CHECK(wants.size() == count, kName, ": ", name, " must hold ", count, " values; got ",
                  wants.size());
  Tensors result;
  for (size_t e = 0; e < count; ++e) {
    const Tensor storage = like_node(t, wants[e]);
    put(e, wants[e] ? storage.data_ptr() : nullptr);
    result.push_back(channels_second(storage, t.shape.channels));
  }
  return result;
}

std::tuple<Tensors, Tensors, Tensors, Tensor, Tensors> mixed_sum_backward(
    const Tensor& gradient, const Tensors& xs, const Tensors& raw_1x1, const Tensors& raw_3x3,
    const Tensor& alpha, const Tensors& skip_scale, double eps, const Tensor& mean, const Tensor& variance,
    const std::vector<bool>& wants_xs, const std::vector<bool>& wants_1x1, const std::vector<bool>& wants_3x3,
    bool wants_alpha, const std::vector<bool>& wants_scale) {
  const OnDeviceOf device(alpha);
  Terms t = checked(xs, raw_1x1, raw_3x3, alpha, skip_scale, eps);
  const NodeShape& s = t.shape;
  check_wide(kName, "mean", mean, t.x, {s.variants, s.edges, 2, s.channels});
  check_wide(kName, "variance", variance, t.x, {s.variants, s.edges, 2, s.channels});
  const Tensor means = floats(mean), variances = floats(variance);
  const Tensor workspace = new_floats(t, {backward_workspace(s)});
  const Tensor of_alpha = new_floats(t, {wants_alpha ? s.variants : 0, s.edges, 5});
  MixedSumBackward args{s,
                        t.terms,
                        data(means),
                        data(variances),
                        lay_out(t, "gradient", gradient),
                        data(workspace),
                        {},
                        {},
                        {},
                        wants_alpha ? data(of_alpha) : nullptr};
  const size_t edges = xs.size();
  const auto x = allocate_gradients(t, "wants_xs", wants_xs, edges,
                                    [&](size_t e, void* where) { args.x_gradient[e] = where; });
  const auto of_1x1 = allocate_gradients(t, "wants_1x1", wants_1x1, edges,
                                         [&](size_t e, void* where) { args.raw_gradient[e][0] = where; });
  const auto of_3x3 = allocate_gradients(t, "wants_3x3", wants_3x3, edges,
                                         [&](size_t e, void* where) { args.raw_gradient[e][1] = where; });
  const auto scale = allocate_gradients(t, "wants_scale", wants_scale, skip_scale.size(),
                                        [&](size_t e, void* where) { args.keep_gradient[e] = where; });
  launch_mixed_sum_backward(args, device.stream());
  return {x, of_1x1, of_3x3, torch::stable::to(of_alpha, alpha.scalar_type()), scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpdarts_fast, CUDA, m) {
  m.impl("mixed_sum", TORCH_BOX(&mixed_sum));
  m.impl("mixed_sum_backward", TORCH_BOX(&mixed_sum_backward));
}

}  // namespace vpdarts::cuda
