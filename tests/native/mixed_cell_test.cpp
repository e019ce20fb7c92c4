// A cell in training against the textbook in double precision, without PyTorch, so that it can run under
// sanitizers. Every buffer has exactly the size that the interface asks for and holds NaN before it is
// written; each call of a kernel has scratch memory of its own. Exit status 0 if all is well.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#include "cpu/ops/mixed_cell_passes.h"
#include "cpu/ops/parallel.h"
#include "mixed_cell_textbook.h"

using namespace vpdarts::cpu;
using namespace vpdarts::cpu::textbook;

namespace {

const ReluConvKernels& kReluConv = VPDARTS_ISA::relu_conv_kernels();
const MixedCellKernels& kMixedCell = VPDARTS_ISA::mixed_cell_kernels();

std::mt19937 random_bits(0);

std::vector<float> normal(int64_t count, float scale = 1) {
  std::normal_distribution<float> draw(0, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = draw(random_bits);
  return values;
}

std::vector<float> unwritten(int64_t count) { return std::vector<float>(static_cast<size_t>(count), NAN); }

Floats scratch_of(int64_t floats) {
  Floats memory = allocate(floats);
  std::fill_n(memory.get(), floats, NAN);
  return memory;
}

// The kernels, each call with memory of exactly its size.
const ReluConvKernels& guarded_relu_conv() {
  static const ReluConvKernels kernels = [] {
    ReluConvKernels guarded = kReluConv;
    guarded.forward = [](const ReluConvForward& args, float*) {
      const Floats scratch = scratch_of(kReluConv.forward_scratch(args.block, args.edges));
      kReluConv.forward(args, scratch.get());
    };
    guarded.backward = [](const ReluConvBackward& args, float*) {
      const Floats scratch = scratch_of(kReluConv.backward_scratch(args.block, args.edges));
      if (args.rectified == nullptr) return kReluConv.backward(args, scratch.get());
      std::vector<float> rectified = unwritten(border_map(args.block).floats);
      ReluConvBackward mine = args;
      mine.rectified = rectified.data();
      kReluConv.backward(mine, scratch.get());
      std::copy(rectified.begin(), rectified.end(), args.rectified);
    };
    return guarded;
  }();
  return kernels;
}

const MixedCellKernels& guarded_mixed_cell() {
  static const MixedCellKernels kernels = [] {
    MixedCellKernels guarded = kMixedCell;
    guarded.forward = [](const MixedCellForward& args, float*) {
      kMixedCell.forward(args, scratch_of(kMixedCell.scratch(args.block, args.edges)).get());
    };
    guarded.reduce = [](const MixedCellReduce& args, float*) {
      kMixedCell.reduce(args, scratch_of(kMixedCell.scratch(args.block, args.edges)).get());
    };
    guarded.backward = [](const MixedCellBackward& args, float*) {
      kMixedCell.backward(args, scratch_of(kMixedCell.scratch(args.block, args.edges)).get());
    };
    return guarded;
  }();
  return kernels;
}

// The greatest error relative to the largest expected value; infinite if anything is NaN.
class Error {
 public:
  void take(double got, double expected) {
    const double error = std::fabs(got - expected);
    worst_ = std::isfinite(error) ? std::fmax(worst_, error) : INFINITY;
    largest_ = std::fmax(largest_, std::fabs(expected));
  }
  double value() const { return worst_ / largest_; }

 private:
  double worst_ = 0, largest_ = 1e-30;
};

int failures = 0;

void report(const Case& c, const char* what, double error) {
  if (error < 2e-5) return;
  ++failures;
  std::printf("nodes %ld values %ld images %ld channels %ld size %ldx%ld drop %d: %s: error %g\n",
              long(c.nodes), long(c.values), long(c.images), long(c.channels), long(c.height), long(c.width),
              int(c.drop), what, error);
}

std::vector<float> padded_map(const std::vector<float>& map, int64_t channels, int64_t padded) {
  std::vector<float> result(map.size() / channels * padded);
  for (size_t k = 0; k < map.size(); ++k) result[k / channels * padded + k % channels] = map[k];
  return result;
}

// A padded map, whose padding must be zeros, against the textbook's.
double compare(const float* got, const Map& expected, int64_t channels, int64_t padded) {
  Error error;
  for (size_t k = 0; k < expected.size() / channels * padded; ++k) {
    const bool inside = int64_t(k) % padded < channels;
    error.take(got[k], inside ? expected[k / padded * channels + k % padded] : 0);
  }
  return error.value();
}

double compare(const std::vector<float>& got, const Map& expected) {
  Error error;
  for (size_t k = 0; k < expected.size(); ++k) error.take(got[k], expected[k]);
  return error.value();
}

// values[i] values of node i, each of random values of its sources and, but for some, with alphas of its own.
ValuePlan random_plan(const Case& c, const std::vector<float>& alpha) {
  ValuePlan plan{{NodeValue{}}};
  for (int64_t i = 1; i < c.nodes; ++i) {
    std::vector<NodeValue> values;
    for (int64_t u = 0; u < c.values; ++u) {
      NodeValue value{{}, alpha.data() + 5 * (u * edge_of(0, c.nodes) + edge_of(0, i))};
      for (int64_t j = 0; j < i; ++j)
        value.source.push_back(u == 0 ? 0 : int64_t(random_bits() % plan[j].size()));
      values.push_back(value);
    }
    plan.push_back(values);
  }
  return plan;
}

void test(const Case& c, bool skip_zeros) {
  const int64_t channels = c.channels, edges = edge_of(0, c.nodes), lanes = kReluConv.lanes;
  const int64_t padded = (channels + lanes - 1) / lanes * lanes;
  const MixedCellSizes sizes{c.nodes, c.images, c.height, c.width, channels, padded};
  const float scale = 1 / std::sqrt(static_cast<float>(channels));
  const auto weight_1x1 = normal(edges * channels * channels, scale);
  const auto weight_3x3 = normal(edges * channels * channels * 9, scale / 3);
  auto alpha = normal(c.values * edges * 5, 0.5f);
  for (size_t k = 0; k < alpha.size(); k += 7) alpha[k] = 0;
  std::vector<Dropout> drops;
  for (int64_t e = 0; e < edges && c.drop != Drop::kNever; ++e) {
    const bool quarter = c.drop == Drop::kQuarter;
    const auto low = static_cast<uint32_t>(random_bits()), high = static_cast<uint32_t>(random_bits());
    drops.push_back({low, high, quarter ? 3u << 30 : 0u, quarter});
  }
  const Textbook textbook{c, weight_1x1, weight_3x3, drops};
  const ValuePlan plan = random_plan(c, alpha);
  const auto x = normal(textbook.floats());

  // Forward.
  MixedCellState state;
  std::vector<std::vector<float>> memory;
  memory.reserve(static_cast<size_t>((c.nodes + edges) * c.values + 1));
  memory.push_back(padded_map(x, channels, padded));
  state.node.push_back({memory.back().data()});
  const auto take = [&] {
    memory.push_back(unwritten(sizes.node_floats()));
    return memory.back().data();
  };
  state.node.resize(c.nodes);
  state.raw.resize(edges);
  for (int64_t i = 0; i < c.nodes; ++i) {
    for (size_t u = 0; u < plan[i].size(); ++u) {
      if (i > 0) state.node[i].push_back(take());
      for (int64_t t = i + 1; t < c.nodes; ++t) state.raw[edge_of(i, t)].push_back(take());
    }
  }
  const MixedCellPasses cell(guarded_relu_conv(), guarded_mixed_cell(), sizes, weight_1x1.data(),
                             weight_3x3.data(), drops, kEps, skip_zeros);
  cell.forward(plan, state);

  std::vector<std::vector<Map>> node{{Map(x.begin(), x.end())}};
  double node_error = 0;
  Error mean_error, variance_error;
  for (int64_t i = 1; i < c.nodes; ++i) {
    node.emplace_back();
    for (size_t u = 0; u < plan[i].size(); ++u) {
      Map value(static_cast<size_t>(textbook.floats()));
      for (int64_t j = 0; j < i; ++j) {
        const int64_t e = edge_of(j, i), source = plan[i][u].source[j];
        const auto norms = textbook.add_edge(e, plan[i][u].alpha + 5 * j, node[j][source], value);
        const float* statistics = state.statistics[e][source].data();
        for (int64_t k = 0; k < channels; ++k) {
          for (int64_t op = 0; op < 2; ++op) {
            if (skip_zeros && plan[i][u].alpha[5 * j + 2 + op] == 0) continue;
            mean_error.take(statistics[2 * op * padded + k], norms[op].mean[k]);
            variance_error.take(statistics[(2 * op + 1) * padded + k], norms[op].variance[k]);
          }
        }
      }
      node_error = std::fmax(node_error, compare(state.node[i][u], value, channels, padded));
      node[i].push_back(value);
    }
  }
  report(c, "nodes", node_error);
  report(c, "mean", mean_error.value());
  report(c, "variance", variance_error.value());
  if (c.values > 1) return;

  // Backward, each gradient alone and with every choice of others.
  const auto gradient = normal(textbook.floats());
  const auto padded_gradient = padded_map(gradient, channels, padded);
  std::vector<Map> node_gradient(static_cast<size_t>(c.nodes), Map(gradient.size()));
  node_gradient.back().assign(gradient.begin(), gradient.end());
  Map gradient_1x1(weight_1x1.size()), gradient_3x3(weight_3x3.size()), alpha_gradient(alpha.size());
  for (int64_t i = c.nodes - 1; i > 0; --i) {
    for (int64_t j = 0; j < i; ++j) {
      const int64_t e = edge_of(j, i);
      textbook.differentiate_edge(e, alpha.data() + 5 * e, node[j][0], node_gradient[i], node_gradient[j],
                                  gradient_1x1, gradient_3x3, alpha_gradient);
    }
  }
  for (int wanted = 0; wanted < (skip_zeros ? 4 : 8); ++wanted) {
    const bool wants_x = wanted & 1, wants_weights = wanted & 2, wants_alpha = wanted & 4;
    auto got_x = unwritten(wants_x ? sizes.node_floats() : 0);
    auto got_1x1 = unwritten(wants_weights ? edges * channels * channels : 0);
    auto got_3x3 = unwritten(wants_weights ? edges * channels * channels * 9 : 0);
    auto got_alpha = unwritten(wants_alpha ? edges * 5 : 0);
    cell.backward(alpha.data(), state, padded_gradient.data(),
                  {wants_x ? got_x.data() : nullptr, wants_weights ? got_1x1.data() : nullptr,
                   wants_weights ? got_3x3.data() : nullptr, wants_alpha ? got_alpha.data() : nullptr});
    if (wants_x) report(c, "gradient of x", compare(got_x.data(), node_gradient[0], channels, padded));
    if (wants_weights) report(c, "gradient of the 1x1 weights", compare(got_1x1, gradient_1x1));
    if (wants_weights) report(c, "gradient of the 3x3 weights", compare(got_3x3, gradient_3x3));
    if (wants_alpha) report(c, "gradient of alpha", compare(got_alpha, alpha_gradient));
  }
}

}  // namespace

int main() {
  for (const Case& c : {
           Case{4, 1, 1, 1, 1, 6, Drop::kNever},     Case{3, 1, 3, 1, 9, 3, Drop::kQuarter},
           Case{4, 1, 5, 3, 4, 4, Drop::kQuarter},   Case{5, 1, 2, 3, 5, 7, Drop::kNothing},
           Case{4, 1, 2, 8, 16, 16, Drop::kQuarter}, Case{6, 1, 3, 8, 5, 7, Drop::kQuarter},
           Case{2, 1, 4, 12, 9, 3, Drop::kQuarter},  Case{4, 1, 3, 12, 1, 6, Drop::kQuarter},
           Case{4, 1, 9, 16, 4, 4, Drop::kQuarter},  Case{3, 1, 1, 16, 16, 16, Drop::kNever},
           Case{3, 1, 13, 24, 4, 4, Drop::kNever},   Case{4, 1, 2, 24, 5, 7, Drop::kQuarter},
           Case{6, 1, 1, 24, 4, 4, Drop::kNothing},  Case{2, 1, 1, 3, 2, 1, Drop::kNever},
           Case{4, 5, 5, 1, 1, 6, Drop::kQuarter},   Case{5, 3, 2, 3, 9, 3, Drop::kNever},
           Case{4, 4, 3, 8, 5, 7, Drop::kQuarter},   Case{6, 2, 9, 12, 4, 4, Drop::kQuarter},
           Case{2, 3, 4, 16, 4, 4, Drop::kNothing},  Case{3, 3, 1, 24, 16, 16, Drop::kQuarter},
       }) {
    test(c, false);
    test(c, true);
  }
  std::printf("%d failed\n", failures);
  return failures != 0;
}
