#include "cpu/ops/mixed_cell_passes.h"

#include <algorithm>
#include <utility>

#include "cpu/ops/blocks.h"
#include "cpu/ops/parallel.h"

namespace vpdarts::cpu {

MixedCellPasses::MixedCellPasses(const ReluConvKernels& relu_conv, const MixedCellKernels& mixed_cell,
                                 const MixedCellSizes& sizes, const float* weight_1x1,
                                 const float* weight_3x3, std::vector<Dropout> keep, double eps,
                                 bool skip_zeros)
    : relu_conv_(relu_conv),
      mixed_cell_(mixed_cell),
      sizes_(sizes),
      weight_3x3_(weight_3x3),
      keep_(std::move(keep)),
      eps_(eps),
      skip_zeros_(skip_zeros) {
  const int64_t c = sizes.channels;
  for (int64_t e = 0; e < sizes.edges(); ++e) {
    matrix_1x1_.push_back(zeros(sizes.padded * sizes.padded));
    for (int64_t i = 0; i < c; ++i)
      std::copy_n(weight_1x1 + (e * c + i) * c, c, matrix_1x1_.back().data() + i * sizes.padded);
  }
}

float MixedCellPasses::kept_scale(int64_t edge) const {
  const Dropout keep = this->keep(edge);
  return keep.drops ? 4294967296.0f / static_cast<float>(keep.threshold) : 1.0f;
}

Normalised MixedCellPasses::normalised(int64_t op, float alpha, const std::vector<float>& statistics) const {
  const float* data = statistics.data() + op * 2 * sizes_.padded;
  return {alpha, eps_, data, data + sizes_.padded};
}

Floats MixedCellPasses::transform_weights(bool transposed,
                                          const std::function<bool(int64_t edge)>& needed) const {
  const MixedCellSizes& s = sizes_;
  const int64_t floats = relu_conv_.weight_floats(s.padded);
  Floats transformed = allocate(s.edges() * floats);
  run_each(s.edges(), [&](int64_t e) {
    if (needed(e))
      relu_conv_.transform_weight(s.channels, s.padded, weight_3x3_ + e * 9 * s.channels * s.channels,
                                  transposed, transformed.get() + e * floats);
  });
  return transformed;
}

// Node by node: fold what is known into coefficients, one pass over the batch, statistics from its sums.
class MixedCellPasses::ForwardPass {
 public:
  ForwardPass(const MixedCellPasses& cell, const ValuePlan& plan, MixedCellState& state)
      : cell_(cell),
        s_(cell.sizes_),
        plan_(plan),
        state_(state),
        blocks_({s_.images, s_.height, s_.width, s_.padded}),
        square_(s_.padded * s_.padded),
        moment_floats_(s_.padded + square_),
        weight_floats_(cell.relu_conv_.weight_floats(s_.padded)),
        scratch_(std::max(cell.relu_conv_.forward_scratch(blocks_[0], s_.nodes - 1),
                          cell.mixed_cell_.scratch(blocks_[0], s_.nodes - 1))) {
    state.moments.resize(s_.nodes - 1);
    state.statistics.resize(s_.edges());
    for (int64_t i = 1; i < s_.nodes; ++i) {
      for (int64_t j = 0; j < i; ++j) {
        std::vector<Needed> needed(plan[j].size());
        for (const NodeValue& value : plan[i]) {
          needed[value.source[j]].conv_1x1 |= cell.computes(value.alpha[5 * j + 2]);
          needed[value.source[j]].conv_3x3 |= cell.computes(value.alpha[5 * j + 3]);
        }
        needed_.push_back(needed);
      }
    }
    transformed_ = cell.transform_weights(false, [&](int64_t e) {
      return std::any_of(needed_[e].begin(), needed_[e].end(),
                         [](const Needed& some) { return some.conv_3x3; });
    });
  }

  void run() {
    for (int64_t i = 0; i < s_.nodes; ++i) {
      fold(i);
      moments_ = zeros(outgoing(i) > 0 ? values(i) * blocks_.count() * moment_floats_ : 0);
      statistics_ = zeros(values(i) * blocks_.count() * statistic_floats(i));
      cpu::run(values(i) * blocks_.count(), scratch_, [&](int64_t unit, float* memory) {
        const int64_t value = unit / blocks_.count(), b = blocks_.turned(unit % blocks_.count(), i);
        if (i > 0) write_node(i, value, b, memory);
        if (outgoing(i) > 0) convolve(i, value, b, memory);
      });
      if (outgoing(i) > 0) finish(i);
    }
  }

 private:
  // Which convolutions of a source value an edge needs.
  struct Needed {
    bool conv_1x1 = false, conv_3x3 = false;
  };

  // Whether a 1x1 convolution leaves value u of node i.
  bool needs_moments(int64_t i, int64_t u) const {
    for (int64_t t = i + 1; t < s_.nodes; ++t) {
      if (needed_[edge_of(i, t)][u].conv_1x1) return true;
    }
    return false;
  }
  int64_t values(int64_t i) const { return static_cast<int64_t>(plan_[i].size()); }
  int64_t outgoing(int64_t i) const { return s_.nodes - 1 - i; }
  int64_t statistic_floats(int64_t i) const { return outgoing(i) * 2 * s_.padded; }  // of a block

  // Batch norm and alpha of the edges into node i as coefficients, for each of its values.
  void fold(int64_t i) {
    conv_ = zeros(values(i) * i * square_);
    scale_ = zeros(values(i) * i * s_.padded);
    shift_ = zeros(values(i) * s_.padded);
    run_each(i > 0 ? values(i) : 0, [&](int64_t u) {
      Matrix folded = zeros(square_);
      for (int64_t j = 0; j < i; ++j) {
        const int64_t e = edge_of(j, i), at = u * i + j;
        const auto& statistics = state_.statistics[e][plan_[i][u].source[j]];
        const float* alpha = plan_[i][u].alpha + 5 * j;
        const Normalised norm_1x1 = cell_.normalised(0, alpha[2], statistics),
                         norm_3x3 = cell_.normalised(1, alpha[3], statistics);
        for (int64_t c = 0; c < s_.padded; ++c) {
          const float factor = norm_1x1.scale(c);
          for (int64_t k = 0; k < s_.padded; ++k)
            folded[c * s_.padded + k] = factor * cell_.matrix_1x1_[e][c * s_.padded + k];
          scale_[at * s_.padded + c] = norm_3x3.scale(c);
          shift_[u * s_.padded + c] += norm_1x1.shift(c) + norm_3x3.shift(c);
        }
        if (cell_.computes(alpha[2]))
          cell_.relu_conv_.pack_1x1(s_.padded, folded.data(), conv_.data() + at * square_);
      }
    });
  }

  // A block of node i from the nodes before it.
  void write_node(int64_t i, int64_t u, int64_t b, float* memory) {
    const int64_t offset = blocks_.offset(b);
    IncomingEdge edges[kMostIncoming];
    for (int64_t j = 0; j < i; ++j) {
      const int64_t e = edge_of(j, i), source = plan_[i][u].source[j], at = u * i + j;
      const float* alpha = plan_[i][u].alpha + 5 * j;
      edges[j] = {state_.node[j][source] + offset,
                  cell_.computes(alpha[3]) ? state_.raw[e][source] + offset : nullptr,
                  cell_.computes(alpha[2]) ? conv_.data() + at * square_ : nullptr,
                  scale_.data() + at * s_.padded,
                  alpha[1] * cell_.kept_scale(e),
                  alpha[4],
                  cell_.keep(e)};
    }
    cell_.mixed_cell_.forward({blocks_[b], s_.channels, blocks_.first_pixel(b), i, edges,
                               shift_.data() + u * s_.padded, state_.node[i][u] + offset},
                              memory);
  }

  // The 3x3 convolutions of a block of node i, and what their batch norms and those of the 1x1 need of it.
  void convolve(int64_t i, int64_t u, int64_t b, float* memory) {
    const int64_t offset = blocks_.offset(b), unit = u * blocks_.count() + b;
    const float* weights[kMostIncoming];
    float* raws[kMostIncoming];
    int64_t edges = 0;
    for (int64_t t = i + 1; t < s_.nodes; ++t) {
      const int64_t e = edge_of(i, t);
      if (!needed_[e][u].conv_3x3) continue;
      weights[edges] = transformed_.get() + e * weight_floats_;
      raws[edges++] = state_.raw[e][u] + offset;
    }
    float* moments = needs_moments(i, u) ? moments_.data() + unit * moment_floats_ : nullptr;
    cell_.relu_conv_.forward({blocks_[b], state_.node[i][u] + offset, edges, weights, raws, moments,
                              statistics_.data() + unit * statistic_floats(i)},
                             memory);
  }

  // The blocks' sums of node i to the statistics of the edges that leave it.
  void finish(int64_t i) {
    state_.moments[i].resize(values(i));
    for (int64_t t = i + 1; t < s_.nodes; ++t)
      state_.statistics[edge_of(i, t)].assign(values(i), zeros(4 * s_.padded));
    run_each(values(i), [&](int64_t u) {
      const auto begin = moments_.begin() + u * blocks_.count() * moment_floats_;
      state_.moments[i][u] = combine_moments(
          s_.padded, Matrix(begin, begin + blocks_.count() * moment_floats_), blocks_.pixels());
      const int64_t stride = statistic_floats(i);
      const float* sums = statistics_.data() + u * blocks_.count() * stride;
      for (int64_t t = i + 1; t < s_.nodes; ++t) {
        const int64_t e = edge_of(i, t);
        float* result = state_.statistics[e][u].data();
        if (needed_[e][u].conv_1x1)
          statistics_1x1(s_.padded, cell_.matrix_1x1_[e].data(), state_.moments[i][u], result,
                         result + s_.padded);
        if (!needed_[e][u].conv_3x3) continue;
        combine_statistics(s_.padded, sums, stride, blocks_.pixels(), result + 2 * s_.padded,
                           result + 3 * s_.padded);
        sums += 2 * s_.padded;
      }
    });
  }

  const MixedCellPasses& cell_;
  const MixedCellSizes& s_;
  const ValuePlan& plan_;
  MixedCellState& state_;
  const Blocks blocks_;
  const int64_t square_, moment_floats_, weight_floats_;
  const ScratchSpace scratch_;
  std::vector<std::vector<Needed>> needed_;  // [edge][source value]
  Floats transformed_;
  // Of the node in work: [values][incoming] of its edges' coefficients, and [values] of their shifts.
  Matrix conv_, scale_, shift_;
  // Of the node in work, [values][blocks].
  Matrix moments_, statistics_;
};

void MixedCellPasses::forward(const ValuePlan& plan, MixedCellState& state) const {
  ForwardPass(*this, plan, state).run();
}

}  // namespace vpdarts::cpu
