// mixed_cell on the CPU: validate, lay out, allocate what a training step keeps, run the cell.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <optional>
#include <tuple>
#include <vector>

#include "check.h"
#include "cpu/kernels.h"
#include "cpu/ops/layout.h"
#include "cpu/ops/mixed_cell_passes.h"
#include "cpu/ops/parallel.h"

namespace vpdarts::cpu {
namespace {

using torch::stable::Tensor;

constexpr const char* kName = "mixed_cell";
constexpr int64_t kMostEdges = 15;  // of six nodes, as many as the kernels have room for

int64_t nodes_of(int64_t edges) {
  for (int64_t nodes = 2; edge_of(0, nodes) <= kMostEdges; ++nodes) {
    if (edge_of(0, nodes) == edges) return nodes;
  }
  return 0;
}

// Floats compared by their bits, so that any value, NaN included, can be a key.
uint32_t bits(float value) {
  uint32_t result;
  std::memcpy(&result, &value, sizeof(result));
  return result;
}

struct Checked {
  MixedCellSizes sizes;
  std::vector<Dropout> keep;
};

// x [..., N, C, H, W]; alpha [..., E, 5].
Checked check(const Tensor& x, const Tensor& weight_1x1, const Tensor& weight_3x3, const Tensor& alpha,
              const std::optional<Tensor>& skip_seed, double skip_dropout, double eps) {
  check_eps(kName, eps);
  const int64_t d = x.dim(), edges = alpha.size(alpha.dim() - 2), nodes = nodes_of(edges);
  STD_TORCH_CHECK(nodes != 0, kName, ": alpha must have 1, 3, 6, 10 or 15 edges; got ", edges);
  const int64_t channels = x.size(d - 3), lanes = active_kernels(channels).relu_conv.lanes;
  const MixedCellSizes sizes{nodes,         x.size(d - 4), x.size(d - 2),
                             x.size(d - 1), channels,      (channels + lanes - 1) / lanes * lanes};
  check_tensor(kName, "weight_1x1", weight_1x1, {edges, channels, channels, 1, 1});
  check_tensor(kName, "weight_3x3", weight_3x3, {edges, channels, channels, 3, 3});
  STD_TORCH_CHECK(sizes.pixels() >= 2 && channels >= 1, kName,
                  ": x must hold two values per channel; got N, C, H, W = ",
                  text({sizes.images, channels, sizes.height, sizes.width}));
  // More than the upper bound may round to a dropout that keeps nothing.
  STD_TORCH_CHECK(skip_dropout >= 0 && skip_dropout <= 1 - 1 / 4294967296.0, kName,
                  ": skip_dropout must be in [0, 1 - 2^-32]; got ", skip_dropout);
  std::vector<Dropout> keep;
  if (skip_seed.has_value()) {
    check_tensor(kName, "skip_seed", *skip_seed, {edges}, torch::headeronly::ScalarType::Long);
    const Tensor held = torch::stable::contiguous(*skip_seed);
    const auto* seeds = static_cast<const int64_t*>(held.data_ptr());
    const double kept = std::nearbyint((1 - skip_dropout) * 4294967296.0);
    for (int64_t e = 0; e < edges; ++e) {
      const auto seed = static_cast<uint64_t>(seeds[e]);
      keep.push_back({static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
                      static_cast<uint32_t>(kept < 4294967296.0 ? kept : 0), kept < 4294967296.0});
    }
  }
  return {sizes, keep};
}

MixedCellPasses cell_of(const Checked& checked, const Tensor& weight_1x1, const Tensor& weight_3x3,
                        double eps, bool skip_zeros) {
  const Kernels& kernels = active_kernels(checked.sizes.channels);
  return {kernels.relu_conv,  kernels.mixed_cell, checked.sizes, floats(weight_1x1),
          floats(weight_3x3), checked.keep,       eps,           skip_zeros};
}

void check_one(const Tensor& x, const Tensor& alpha) {
  STD_TORCH_CHECK(x.dim() == 4, kName, ": x must be [N, C, H, W]; got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(alpha.dim() == 2, kName, ": alpha must be [E, 5]; got ", alpha.dim(), " dimensions");
  check_tensor(kName, "x", x, {x.size(0), x.size(1), x.size(2), x.size(3)});
  check_tensor(kName, "alpha", alpha, {alpha.size(0), 5});
}

// [E, 2, C] each, from the statistics of the edges' source values; 0 of what is not computed.
void write_statistics(const MixedCellSizes& s, const MixedCellState& state,
                      const std::vector<int64_t>& source, const float* alpha, bool skip_zeros, float* mean,
                      float* variance) {
  for (int64_t e = 0; e < s.edges(); ++e) {
    const float* from = state.statistics[e][source[e]].data();
    for (int64_t op = 0; op < 2; ++op) {
      float *to_mean = mean + (2 * e + op) * s.channels, *to_variance = variance + (2 * e + op) * s.channels;
      if (skip_zeros && alpha[5 * e + 2 + op] == 0) {
        std::fill_n(to_mean, s.channels, 0.0f);
        std::fill_n(to_variance, s.channels, 0.0f);
      } else {
        std::copy_n(from + 2 * op * s.padded, s.channels, to_mean);
        std::copy_n(from + (2 * op + 1) * s.padded, s.channels, to_variance);
      }
    }
  }
}

// The saved tensors as the state of a cell. statistics [E, 4, padded], moments [nodes-1, 1+padded, padded].
MixedCellState restore(const MixedCellSizes& s, const Tensor& x, const Tensor& nodes, const Tensor& raw,
                       const Tensor& statistics, const Tensor& moments) {
  MixedCellState state;
  state.node.push_back({floats(x)});
  for (int64_t i = 0; i + 2 < s.nodes; ++i) state.node.push_back({floats(nodes) + i * s.node_floats()});
  for (int64_t e = 0; e < s.edges(); ++e) {
    state.raw.push_back({floats(raw) + e * s.node_floats()});
    const float* from = floats(statistics) + e * 4 * s.padded;
    state.statistics.push_back({std::vector<float>(from, from + 4 * s.padded)});
  }
  for (int64_t i = 0; i + 1 < s.nodes; ++i) {
    const float* from = floats(moments) + i * (1 + s.padded) * s.padded;
    state.moments.push_back({{std::vector<float>(from, from + s.padded),
                              std::vector<float>(from + s.padded, from + (1 + s.padded) * s.padded)}});
  }
  return state;
}

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Forward mixed_cell(const Tensor& x, const Tensor& weight_1x1, const Tensor& weight_3x3, const Tensor& alpha,
                   const std::optional<Tensor>& skip_seed, double skip_dropout, double eps, bool skip_zeros) {
  check_one(x, alpha);
  const Checked checked = check(x, weight_1x1, weight_3x3, alpha, skip_seed, skip_dropout, eps);
  const MixedCellSizes& s = checked.sizes;
  const Tensor input = channels_last(x, s.padded), w1 = torch::stable::contiguous(weight_1x1),
               w3 = torch::stable::contiguous(weight_3x3), table = torch::stable::contiguous(alpha);
  Tensor out = torch::stable::new_empty(x, {s.images, s.height, s.width, s.padded});
  Tensor nodes = torch::stable::new_empty(x, {s.nodes - 2, s.images, s.height, s.width, s.padded});
  Tensor raw = torch::stable::new_empty(x, {s.edges(), s.images, s.height, s.width, s.padded});
  Tensor mean = torch::stable::new_empty(x, {s.edges(), 2, s.channels});
  Tensor variance = torch::stable::new_empty(x, {s.edges(), 2, s.channels});
  Tensor statistics = torch::stable::new_empty(x, {s.edges(), 4, s.padded});
  Tensor moments = torch::stable::new_empty(x, {s.nodes - 1, 1 + s.padded, s.padded});

  ValuePlan plan;
  MixedCellState state;
  for (int64_t i = 0; i < s.nodes; ++i) {
    plan.push_back({{std::vector<int64_t>(i, 0), floats(table) + 5 * edge_of(0, i)}});
    state.node.push_back({i == 0             ? floats(input)
                          : i == s.nodes - 1 ? floats(out)
                                             : floats(nodes) + (i - 1) * s.node_floats()});
  }
  for (int64_t e = 0; e < s.edges(); ++e) state.raw.push_back({floats(raw) + e * s.node_floats()});
  cell_of(checked, w1, w3, eps, skip_zeros).forward(plan, state);

  write_statistics(s, state, std::vector<int64_t>(s.edges(), 0), floats(table), skip_zeros, floats(mean),
                   floats(variance));
  for (int64_t e = 0; e < s.edges(); ++e)
    std::copy_n(state.statistics[e][0].data(), 4 * s.padded, floats(statistics) + e * 4 * s.padded);
  for (int64_t i = 0; i + 1 < s.nodes; ++i) {
    float* to = floats(moments) + i * (1 + s.padded) * s.padded;
    std::copy_n(state.moments[i][0].mean.data(), s.padded, to);
    std::copy_n(state.moments[i][0].covariance.data(), s.padded * s.padded, to + s.padded);
  }
  return {channels_second(out, s.channels), mean, variance, nodes, raw, statistics, moments};
}

// The distinct values of every node: fixed by the values of its sources and the alphas of its edges.
struct SharedValues {
  ValuePlan plan;
  std::vector<std::vector<int64_t>> of;  // [node][variant]
};

SharedValues share(int64_t nodes, int64_t variants, const float* alpha) {
  SharedValues shared{{{NodeValue{}}}, {std::vector<int64_t>(variants, 0)}};
  for (int64_t i = 1; i < nodes; ++i) {
    std::map<std::vector<int64_t>, int64_t> numbers;
    std::vector<NodeValue> values;
    std::vector<int64_t> of;
    for (int64_t v = 0; v < variants; ++v) {
      NodeValue value{{}, alpha + 5 * (v * edge_of(0, nodes) + edge_of(0, i))};
      for (int64_t j = 0; j < i; ++j) value.source.push_back(shared.of[j][v]);
      std::vector<int64_t> key = value.source;
      for (int64_t k = 0; k < 5 * i; ++k) key.push_back(bits(value.alpha[k]));
      of.push_back(numbers.emplace(key, static_cast<int64_t>(values.size())).first->second);
      if (of.back() == static_cast<int64_t>(values.size())) values.push_back(value);
    }
    shared.plan.push_back(values);
    shared.of.push_back(of);
  }
  return shared;
}

// Pieces of memory of a node's size, each used again after `give_back`: the system clears new memory first.
class NodePool {
 public:
  explicit NodePool(const MixedCellSizes& sizes) : floats_(sizes.node_floats()) {}
  float* take() {
    if (taken_ == pieces_.size()) pieces_.push_back(allocate(floats_));
    return pieces_[taken_++].get();
  }
  void give_back() { taken_ = 0; }

 private:
  int64_t floats_;
  size_t taken_ = 0;
  std::vector<Floats> pieces_;
};

// All variants on one input: out [V][node floats], statistics written per variant.
void forward_shared(const MixedCellPasses& cell, const MixedCellSizes& s, NodePool& pool, int64_t variants,
                    const float* alpha, bool skip_zeros, float* input, float* out, float* mean,
                    float* variance) {
  const SharedValues shared = share(s.nodes, variants, alpha);
  MixedCellState state;
  pool.give_back();
  state.raw.resize(s.edges());
  for (int64_t i = 0; i < s.nodes; ++i) {
    std::vector<float*> values;
    for (size_t u = 0; u < shared.plan[i].size(); ++u) {
      const auto& of = shared.of[i];
      const int64_t first = std::find(of.begin(), of.end(), static_cast<int64_t>(u)) - of.begin();
      values.push_back(i == 0 ? input : i == s.nodes - 1 ? out + first * s.node_floats() : pool.take());
      for (int64_t t = i + 1; t < s.nodes; ++t) state.raw[edge_of(i, t)].push_back(pool.take());
    }
    state.node.push_back(values);
  }
  cell.forward(shared.plan, state);
  for (int64_t v = 0; v < variants; ++v) {
    const float* from = state.node[s.nodes - 1][shared.of[s.nodes - 1][v]];
    float* to = out + v * s.node_floats();
    if (from != to) std::copy_n(from, s.node_floats(), to);
    std::vector<int64_t> source;
    for (int64_t i = 1; i < s.nodes; ++i) {
      for (int64_t j = 0; j < i; ++j) source.push_back(shared.of[j][v]);
    }
    const int64_t statistics = v * s.edges() * 2 * s.channels;
    write_statistics(s, state, source, alpha + v * s.edges() * 5, skip_zeros, mean + statistics,
                     variance + statistics);
  }
}

std::tuple<Tensor, Tensor, Tensor> mixed_cell_variants(const Tensor& x, const Tensor& weight_1x1,
                                                       const Tensor& weight_3x3, const Tensor& alpha,
                                                       const std::optional<Tensor>& skip_seed,
                                                       double skip_dropout, double eps, bool skip_zeros) {
  STD_TORCH_CHECK(x.dim() == 5, kName, ": x must be [V, N, C, H, W]; got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(alpha.dim() == 3, kName, ": alpha must be [V, E, 5]; got ", alpha.dim(), " dimensions");
  const int64_t variants = alpha.size(0), inputs = x.size(0);
  STD_TORCH_CHECK(variants > 0 && (inputs == 1 || inputs == variants), kName, ": x must have 1 or ", variants,
                  " variants, at least one; got ", inputs);
  check_tensor(kName, "x", x, {inputs, x.size(1), x.size(2), x.size(3), x.size(4)});
  check_tensor(kName, "alpha", alpha, {variants, alpha.size(1), 5});
  check_count(kName, "variants", variants);
  const Checked checked = check(x, weight_1x1, weight_3x3, alpha, skip_seed, skip_dropout, eps);
  const MixedCellSizes& s = checked.sizes;
  const Tensor w1 = torch::stable::contiguous(weight_1x1), w3 = torch::stable::contiguous(weight_3x3),
               tables = torch::stable::contiguous(alpha), input = channels_last(x, s.padded);
  Tensor out = torch::stable::new_empty(x, {variants, s.images, s.height, s.width, s.padded});
  Tensor mean = torch::stable::new_empty(x, {variants, s.edges(), 2, s.channels});
  Tensor variance = torch::stable::new_empty(x, {variants, s.edges(), 2, s.channels});
  const MixedCellPasses cell = cell_of(checked, w1, w3, eps, skip_zeros);
  NodePool pool(s);
  if (inputs == 1) {
    forward_shared(cell, s, pool, variants, floats(tables), skip_zeros, floats(input), floats(out),
                   floats(mean), floats(variance));
  } else {
    const int64_t statistics = s.edges() * 2 * s.channels;
    for (int64_t v = 0; v < variants; ++v)
      forward_shared(cell, s, pool, 1, floats(tables) + v * s.edges() * 5, skip_zeros,
                     floats(input) + v * s.node_floats(), floats(out) + v * s.node_floats(),
                     floats(mean) + v * statistics, floats(variance) + v * statistics);
  }
  return {channels_second(out, s.channels), mean, variance};
}

using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Backward mixed_cell_backward(const Tensor& gradient, const Tensor& x, const Tensor& weight_1x1,
                             const Tensor& weight_3x3, const Tensor& alpha,
                             const std::optional<Tensor>& skip_seed, double skip_dropout, double eps,
                             bool skip_zeros, const Tensor& nodes, const Tensor& raw,
                             const Tensor& statistics, const Tensor& moments, bool wants_x,
                             bool wants_weights, bool wants_alpha) {
  check_one(x, alpha);
  const Checked checked = check(x, weight_1x1, weight_3x3, alpha, skip_seed, skip_dropout, eps);
  const MixedCellSizes& s = checked.sizes;
  check_tensor(kName, "gradient", gradient, {s.images, s.channels, s.height, s.width});
  check_tensor(kName, "nodes", nodes, {s.nodes - 2, s.images, s.height, s.width, s.padded});
  check_tensor(kName, "raw", raw, {s.edges(), s.images, s.height, s.width, s.padded});
  check_tensor(kName, "statistics", statistics, {s.edges(), 4, s.padded});
  check_tensor(kName, "moments", moments, {s.nodes - 1, 1 + s.padded, s.padded});
  const Tensor input = channels_last(x, s.padded), w1 = torch::stable::contiguous(weight_1x1),
               w3 = torch::stable::contiguous(weight_3x3), table = torch::stable::contiguous(alpha);
  const Tensor kept[] = {channels_last(gradient, s.padded), torch::stable::contiguous(nodes),
                         torch::stable::contiguous(raw), torch::stable::contiguous(statistics),
                         torch::stable::contiguous(moments)};
  Tensor x_gradient = torch::stable::new_empty(x, {wants_x ? s.images : 0, s.height, s.width, s.padded});
  Tensor gradient_1x1 =
      torch::stable::new_empty(x, {wants_weights ? s.edges() : 0, s.channels, s.channels, 1, 1});
  Tensor gradient_3x3 =
      torch::stable::new_empty(x, {wants_weights ? s.edges() : 0, s.channels, s.channels, 3, 3});
  Tensor alpha_gradient = torch::stable::new_empty(x, {wants_alpha ? s.edges() : 0, 5});
  STD_TORCH_CHECK(!(skip_zeros && wants_alpha), kName, ": what is not computed has no gradient of alpha");
  const MixedCellState state = restore(s, input, kept[1], kept[2], kept[3], kept[4]);
  cell_of(checked, w1, w3, eps, skip_zeros)
      .backward(
          floats(table), state, floats(kept[0]),
          {wants_x ? floats(x_gradient) : nullptr, wants_weights ? floats(gradient_1x1) : nullptr,
           wants_weights ? floats(gradient_3x3) : nullptr, wants_alpha ? floats(alpha_gradient) : nullptr});
  return {channels_second(x_gradient, s.channels), gradient_1x1, gradient_3x3, alpha_gradient};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpdarts_fast, CPU, m) {
  m.impl("mixed_cell", TORCH_BOX(&mixed_cell));
  m.impl("mixed_cell_variants", TORCH_BOX(&mixed_cell_variants));
  m.impl("mixed_cell_backward", TORCH_BOX(&mixed_cell_backward));
}

}  // namespace vpdarts::cpu
