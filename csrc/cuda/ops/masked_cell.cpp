// masked_cell on a GPU: validate, lay out, allocate, start the kernels.
#include "cuda/kernels/masked_cell.h"

#include <torch/csrc/stable/library.h>

#include <string>
#include <tuple>
#include <utility>

#include "check.h"
#include "cuda/ops/tensors.h"
// Last: a stand-in of this header changes what the ops are registered for.
#include "cuda/ops/device.h"

namespace vpdarts::cuda {
namespace {

constexpr const char* kName = "masked_cell";

// The number of nodes of a cell in which every node feeds every later one.
int nodes_of(int64_t edges) {
  for (int nodes = 2; nodes <= kMostNodes; ++nodes) {
    if (nodes * (nodes - 1) / 2 == edges) return nodes;
  }
  STD_TORCH_CHECK(false, kName, ": alpha must have 1, 3, 6, 10 or 15 edges; got ", edges);
}

CellShape shape_of(const Tensor& x, const Tensor& alpha) {
  STD_TORCH_CHECK(x.dim() == 5, kName, ": x must be [V, N, C, H, W]; got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(alpha.dim() == 3, kName, ": alpha must be [V, E, 5]; got ", alpha.dim(), " dimensions");
  const auto size = [&](int d) { return to_int(kName, "a size of x", x.size(d)); };
  return {number_of(kName, x),
          to_int(kName, "V", alpha.size(0)),
          size(1),
          nodes_of(alpha.size(1)),
          size(2),
          size(3),
          size(4)};
}

Tensor run(const Tensor& x, const Tensor& weight_1x1, const Tensor& weight_3x3, const Tensor& mean,
           const Tensor& variance, const Tensor& alpha, double eps, bool tf32) {
  const CellShape s = shape_of(x, alpha);
  check_eps(kName, eps);
  check_count(kName, "variants", s.variants);
  STD_TORCH_CHECK(s.variants > 0, kName, ": alpha must have at least one variant");
  STD_TORCH_CHECK(x.size(0) == 1 || x.size(0) == s.variants, kName, ": x must have 1 or ", s.variants,
                  " variants; got ", x.size(0));
  const int64_t edges = s.edges(), channels = s.channels;
  check_wide(kName, "weight_1x1", weight_1x1, x, {edges, channels, channels, 1, 1});
  check_wide(kName, "weight_3x3", weight_3x3, x, {edges, channels, channels, 3, 3});
  const bool own = mean.dim() == 4;
  for (const auto& [name, statistics] : {std::pair("mean", &mean), std::pair("variance", &variance)}) {
    if (own)
      check_wide(kName, name, *statistics, x, {s.variants, edges, 2, channels});
    else
      check_wide(kName, name, *statistics, x, {edges, 2, channels});
  }
  check_wide(kName, "alpha", alpha, x, {s.variants, edges, 5});
  const OnDeviceOf device(x);
  const Tensor out = torch::stable::new_empty(x, {s.variants, s.images, s.height, s.width, s.channels});
  if (out.numel() > 0) {
    const char* reason = masked_cell_refuses(s);
    STD_TORCH_CHECK(reason == nullptr, kName,
                    ": a cell of N, C, H, W = ", text({s.images, s.channels, s.height, s.width}), " and ",
                    s.nodes, " nodes ", reason);
    const Tensor held[] = {channels_last(x, s.channels),
                           floats(weight_1x1),
                           floats(weight_3x3),
                           floats(mean),
                           floats(variance),
                           floats(alpha)};
    const Tensor workspace = torch::stable::new_empty(x, {cell_workspace(s)}, ScalarType::Byte);
    launch_masked_cell(
        {s, tf32, x.size(0) == 1, held[0].data_ptr(), data(held[1]), data(held[2]), data(held[3]),
         data(held[4]), own, data(held[5]), static_cast<float>(eps), workspace.data_ptr(), out.data_ptr()},
        device.stream());
  }
  return channels_second(out, s.channels);
}

Tensor masked_cell(const Tensor& x, const Tensor& weight_1x1, const Tensor& weight_3x3, const Tensor& mean,
                   const Tensor& variance, const Tensor& alpha, double eps) {
  return run(x, weight_1x1, weight_3x3, mean, variance, alpha, eps, false);
}

Tensor masked_cell_tf32(const Tensor& x, const Tensor& weight_1x1, const Tensor& weight_3x3,
                        const Tensor& mean, const Tensor& variance, const Tensor& alpha, double eps) {
  return run(x, weight_1x1, weight_3x3, mean, variance, alpha, eps, true);
}

// Whether a block's shared memory has room for the cell, on x's device.
bool masked_cell_fits(const Tensor& x, const Tensor& alpha) {
  const OnDeviceOf device(x);
  return masked_cell_refuses(shape_of(x, alpha)) == nullptr;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpdarts_fast, CUDA, m) {
  m.impl("masked_cell", TORCH_BOX(&masked_cell));
  m.impl("masked_cell_tf32", TORCH_BOX(&masked_cell_tf32));
  m.impl("masked_cell_fits", TORCH_BOX(&masked_cell_fits));
}

}  // namespace vpdarts::cuda
