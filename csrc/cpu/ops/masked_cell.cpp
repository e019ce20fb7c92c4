// masked_cell on the CPU: validate, fold the weights, cut into blocks of images, call the kernels.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "check.h"
#include "cpu/kernels.h"
#include "cpu/ops/masked_cell_plan.h"
#include "cpu/ops/parallel.h"

namespace vpdarts::cpu {
namespace {

using torch::stable::Tensor;

constexpr const char* kName = "masked_cell";
constexpr int64_t kMostEdges = 15;  // of six nodes, as many as the kernels have room for

// The number of nodes of a cell in which every node feeds every later one; 0 if there is none.
int64_t nodes_of(int64_t edges) {
  for (int64_t nodes = 2; nodes * (nodes - 1) / 2 <= kMostEdges; ++nodes) {
    if (nodes * (nodes - 1) / 2 == edges) return nodes;
  }
  return 0;
}

// Images of [V, N, C, H, W] tensors of any strides.
template <typename View, typename Pointer>
View images(Pointer data, const Tensor& tensor, int64_t variant, int64_t image) {
  return {data + variant * tensor.stride(0) + image * tensor.stride(1), tensor.stride(1), tensor.stride(3),
          tensor.stride(4), tensor.stride(2)};
}

Tensor masked_cell(const Tensor& x, const Tensor& weight_1x1, const Tensor& weight_3x3, const Tensor& mean,
                   const Tensor& variance, const Tensor& alpha, double eps) {
  STD_TORCH_CHECK(x.dim() == 5, kName, ": x must be [V, N, C, H, W]; got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(alpha.dim() == 3, kName, ": alpha must be [V, E, 5]; got ", alpha.dim(), " dimensions");
  const int64_t variants = alpha.size(0), edges = alpha.size(1), nodes = nodes_of(edges);
  const int64_t count = x.size(1), channels = x.size(2), height = x.size(3), width = x.size(4);
  STD_TORCH_CHECK(nodes != 0, kName, ": alpha must have 1, 3, 6, 10 or 15 edges; got ", edges);
  STD_TORCH_CHECK(variants > 0, kName, ": alpha must have at least one variant");
  STD_TORCH_CHECK(x.size(0) == 1 || x.size(0) == variants, kName, ": x must have 1 or ", variants,
                  " variants; got ", x.size(0));
  check_tensor(kName, "x", x, {x.size(0), count, channels, height, width});
  check_tensor(kName, "weight_1x1", weight_1x1, {edges, channels, channels, 1, 1});
  check_tensor(kName, "weight_3x3", weight_3x3, {edges, channels, channels, 3, 3});
  const bool own = mean.dim() == 4;
  for (const auto& [name, statistics] : {std::pair("mean", &mean), std::pair("variance", &variance)}) {
    if (own)
      check_tensor(kName, name, *statistics, {variants, edges, 2, channels});
    else
      check_tensor(kName, name, *statistics, {edges, 2, channels});
  }
  check_tensor(kName, "alpha", alpha, {variants, edges, 5});
  check_count(kName, "variants", variants);
  check_eps(kName, eps);

  const MaskedCellKernels& kernels = active_kernels(channels).masked_cell;
  const int64_t padded = (channels + kernels.lanes - 1) / kernels.lanes * kernels.lanes;
  Tensor storage = torch::stable::new_empty(x, {variants, count, height, width, padded});
  Tensor out = torch::stable::transpose(torch::stable::transpose(storage, 3, 4), 2, 3);
  if (out.numel() == 0) return torch::stable::narrow(out, 2, 0, channels);

  const Tensor held[] = {torch::stable::contiguous(weight_1x1), torch::stable::contiguous(weight_3x3),
                         torch::stable::contiguous(mean), torch::stable::contiguous(variance),
                         torch::stable::contiguous(alpha)};
  const float* data[5];
  for (int i = 0; i < 5; ++i) data[i] = static_cast<const float*>(held[i].data_ptr());
  FoldedWeights weights(kernels, channels, padded, edges, data[0], data[1], data[2], data[3], own, variants,
                        data[4], eps);
  run_each(weights.count(), [&](int64_t job) { weights.transform(job); });

  // Enough tiles to reuse a weight that has come into the cache, not more than the cache holds, and work for
  // every thread. An image's result does not depend on its block.
  const int64_t tiles = ((height + 3) / 4) * ((width + 3) / 4);
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t most =
      std::min<int64_t>(std::max<int64_t>(16, padded) / tiles, (count + threads - 1) / threads);
  const int64_t block = std::max<int64_t>(1, most);
  const int64_t blocks = (count + block - 1) / block;
  const float* from = static_cast<const float*>(x.data_ptr());
  float* to = static_cast<float*>(out.data_ptr());
  const auto shape = [&](int64_t b) {
    return BlockShape{std::min(block, count - b * block), height, width, channels, padded};
  };

  const bool shared = x.size(0) == 1 && variants > 1;
  if (shared) {
    const MaskedCellPlan plan(weights, nodes, variants);
    if (2 * plan.convolutions() <= variants * edges) {
      const SharedPlan view = plan.view();
      const auto& value_of = plan.output();
      // The kernel writes each value of the last node once, to the first variant that has it.
      std::vector<int64_t> first(static_cast<size_t>(view.values[nodes - 1]), -1);
      for (int64_t v = variants; v-- > 0;) first[value_of[v]] = v;
      run(blocks, ScratchSpace(kernels.shared_scratch(shape(0), view)), [&](int64_t b, float* scratch) {
        std::vector<ImageView> outs;
        for (int64_t v : first) outs.push_back(images<ImageView>(to, out, v, b * block));
        kernels.shared(shape(b), view, images<ConstImageView>(from, x, 0, b * block), outs.data(), scratch);
        const BlockShape size = shape(b);
        for (int64_t v = 0; v < variants; ++v) {
          const float* source = outs[value_of[v]].data;
          float* target = images<ImageView>(to, out, v, b * block).data;
          if (source != target) std::copy_n(source, size.images * out.stride(1), target);
        }
      });
      return torch::stable::narrow(out, 2, 0, channels);
    }
  }
  std::vector<EdgeTerm> terms;
  for (int64_t i = 0; i < variants * edges; ++i) terms.push_back(weights.term(i / edges, i % edges));
  run(variants * blocks, ScratchSpace(kernels.single_scratch(shape(0), nodes)),
      [&](int64_t unit, float* scratch) {
        const int64_t v = unit / blocks, b = unit % blocks;
        kernels.single(shape(b), nodes, terms.data() + v * edges,
                       images<ConstImageView>(from, x, x.size(0) == 1 ? 0 : v, b * block),
                       images<ImageView>(to, out, v, b * block), scratch);
      });
  return torch::stable::narrow(out, 2, 0, channels);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpdarts_fast, CPU, m) { m.impl("masked_cell", TORCH_BOX(&masked_cell)); }

}  // namespace vpdarts::cpu
