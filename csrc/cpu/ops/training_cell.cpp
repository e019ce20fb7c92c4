#include "cpu/ops/training_cell.h"

#include <algorithm>
#include <utility>

#include "cpu/ops/blocks.h"
#include "cpu/ops/parallel.h"

namespace vpdarts::cpu {

TrainingCell::TrainingCell(const ReluConvKernels& relu_conv, const MixedSumKernels& mixed_sum,
                           const CellSizes& sizes, const float* weight_1x1, const float* weight_3x3,
                           std::vector<Dropout> keep, double eps, bool skip_zeros)
    : relu_conv_(relu_conv),
      mixed_sum_(mixed_sum),
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

float TrainingCell::kept_scale(int64_t edge) const {
  const Dropout keep = this->keep(edge);
  return keep.drops ? 4294967296.0f / static_cast<float>(keep.threshold) : 1.0f;
}

Normalised TrainingCell::normalised(int64_t op, float alpha, const std::vector<float>& statistics) const {
  const float* data = statistics.data() + op * 2 * sizes_.padded;
  return {alpha, eps_, data, data + sizes_.padded};
}

Floats TrainingCell::transform_weights(bool transposed,
                                       const std::function<bool(int64_t edge)>& needed) const {
  const CellSizes& s = sizes_;
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
class TrainingCell::ForwardPass {
 public:
  ForwardPass(const TrainingCell& cell, const ValuePlan& plan, CellState& state)
      : cell_(cell),
        s_(cell.sizes_),
        plan_(plan),
        state_(state),
        blocks_({s_.images, s_.height, s_.width, s_.padded}),
        square_(s_.padded * s_.padded),
        moment_floats_(s_.padded + square_),
        weight_floats_(cell.relu_conv_.weight_floats(s_.padded)),
        scratch_(std::max(cell.relu_conv_.forward_scratch(blocks_[0], s_.nodes - 1),
                          cell.mixed_sum_.scratch(blocks_[0], s_.nodes - 1))) {
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
          cell_.mixed_sum_.pack(s_.padded, folded.data(), conv_.data() + at * square_);
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
    cell_.mixed_sum_.forward({blocks_[b], s_.channels, blocks_.first_pixel(b), i, edges,
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

  const TrainingCell& cell_;
  const CellSizes& s_;
  const ValuePlan& plan_;
  CellState& state_;
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

void TrainingCell::forward(const ValuePlan& plan, CellState& state) const {
  ForwardPass(*this, plan, state).run();
}

// Node by node from the last one: its gradient, the weight gradients of the edges that leave it and the sums
// that those into it need, in one pass over the batch; then the gradients that follow from the sums.
class TrainingCell::BackwardPass {
 public:
  BackwardPass(const TrainingCell& cell, const float* alpha, const CellState& state, const float* gradient,
               const CellGradients& wanted)
      : cell_(cell),
        s_(cell.sizes_),
        alpha_(alpha),
        state_(state),
        wanted_(wanted),
        with_weights_(wanted.weight_3x3 != nullptr),
        with_alpha_(wanted.alpha != nullptr),
        blocks_({s_.images, s_.height, s_.width, s_.padded}),
        square_(s_.padded * s_.padded),
        weight_floats_(cell.relu_conv_.weight_floats(s_.padded)),
        edge_sums_(s_.padded + square_ + (with_alpha_ ? 2 * s_.padded : 0)),
        conv_scratch_((cell.relu_conv_.backward_scratch(blocks_[0], s_.nodes - 1) + 15) / 16 * 16),
        border_((border_map(blocks_[0]).floats + 15) / 16 * 16),
        scratch_(conv_scratch_ + border_ + cell.mixed_sum_.scratch(blocks_[0], s_.nodes - 1)),
        transformed_(cell.transform_weights(true, [&](int64_t e) { return has_3x3(e); })),
        memory_(s_.nodes),
        node_gradient_(s_.nodes),
        edge_(s_.edges()) {
    node_gradient_[s_.nodes - 1] = gradient;
  }

  void run() {
    for (int64_t i = s_.nodes - 1; i >= 0; --i) {
      if (i == 0 && wanted_.x == nullptr && !with_weights_) break;
      target_ = nullptr;
      if (outgoing(i) > 0) {
        if (i > 0) memory_[i] = allocate(s_.node_floats());
        target_ = i > 0 ? memory_[i].get() : wanted_.x;
        node_gradient_[i] = target_;
      }
      fold_1x1(i);
      sums_ = zeros(blocks_.count() * sum_floats(i));
      parts_.assign(scratch_.threads(), Matrix());
      run_in_parts(blocks_.count(), scratch_, [&](int64_t unit, int64_t part, float* memory) {
        const int64_t b = blocks_.turned(unit, i);
        if (outgoing(i) > 0) write_gradient(i, b, part, memory);
        if (i > 0) reduce(i, b, memory);
      });
      if (with_weights_ && outgoing(i) > 0) write_weight_3x3(i);
      run_each(i, [&](int64_t j) { finish_edge(j, i); });
    }
  }

 private:
  // What is known of an edge once its target's gradient has been reduced.
  struct EdgeGradient {
    NormalisedGradient norm_1x1, norm_3x3;
  };

  int64_t outgoing(int64_t i) const { return s_.nodes - 1 - i; }
  int64_t sum_floats(int64_t i) const { return s_.padded + i * edge_sums_; }  // of a block
  bool has_1x1(int64_t e) const { return cell_.computes(alpha_[5 * e + 2]); }
  bool has_3x3(int64_t e) const { return cell_.computes(alpha_[5 * e + 3]); }

  // The gradient of relu(x) through the 1x1 convolutions of all edges that leave node i:
  // sum of conv_e g_e + own relu(x) + shift.
  void fold_1x1(int64_t i) {
    Matrix conv = zeros(square_), own = zeros(square_);
    packed_ = zeros((outgoing(i) + 1) * square_);
    shift_ = zeros(s_.padded);
    any_1x1_ = false;
    for (int64_t k = 0; k < outgoing(i); ++k) {
      const int64_t e = edge_of(i, i + 1 + k);
      if (!has_1x1(e)) continue;
      any_1x1_ = true;
      gradient_1x1(s_.padded, cell_.matrix_1x1_[e].data(), edge_[e].norm_1x1, conv.data(), own.data(),
                   shift_.data());
      cell_.mixed_sum_.pack(s_.padded, conv.data(), packed_.data() + k * square_);
    }
    cell_.mixed_sum_.pack(s_.padded, own.data(), packed_.data() + outgoing(i) * square_);
  }

  // A block of node i's gradient, and its share of the weight gradients of the edges that leave it.
  void write_gradient(int64_t i, int64_t b, int64_t part, float* memory) {
    const int64_t offset = blocks_.offset(b), edges = outgoing(i);
    float *rectified = memory + conv_scratch_, *rest = rectified + border_;
    const float* x = state_.node[i][0] + offset;
    RawGradient raws[kMostIncoming];
    const float* weights[kMostIncoming];
    OutgoingEdge edge[kMostIncoming];
    int64_t convolutions = 0;  // 3x3
    for (int64_t k = 0; k < edges; ++k) {
      const int64_t t = i + 1 + k, e = edge_of(i, t);
      edge[k] = {node_gradient_[t] + offset, has_1x1(e) ? packed_.data() + k * square_ : nullptr,
                 alpha_[5 * e + 1] * cell_.kept_scale(e), alpha_[5 * e + 4], cell_.keep(e)};
      if (!has_3x3(e)) continue;
      const NormalisedGradient& norm = edge_[e].norm_3x3;
      raws[convolutions] = {node_gradient_[t] + offset, state_.raw[e][0] + offset, norm.node_scale.data(),
                            norm.raw_scale.data(), norm.shift.data()};
      weights[convolutions++] = transformed_.get() + e * weight_floats_;
    }
    if (convolutions > 0) {
      if (with_weights_ && parts_[part].empty()) parts_[part] = zeros(convolutions * weight_floats_);
      cell_.relu_conv_.backward({blocks_[b], x, convolutions, raws, weights, target_ ? rectified : nullptr,
                                 with_weights_ ? parts_[part].data() : nullptr},
                                memory);
    }
    if (target_ == nullptr) return;
    cell_.mixed_sum_.backward({blocks_[b], s_.channels, blocks_.first_pixel(b), edges, edge, x,
                               any_1x1_ ? packed_.data() + edges * square_ : nullptr, shift_.data(),
                               convolutions > 0 ? rectified : nullptr, target_ + offset},
                              rest);
  }

  // The sums over a block of node i's gradient for the edges into it.
  void reduce(int64_t i, int64_t b, float* memory) {
    const int64_t offset = blocks_.offset(b);
    float* sum = sums_.data() + b * sum_floats(i);
    ReducedEdge edges[kMostIncoming];
    int64_t convolved = 0;  // edges with a convolution; of the others only the gradient of alpha needs sums
    for (int64_t j = 0; j < i; ++j) {
      const int64_t e = edge_of(j, i);
      if (!has_1x1(e) && !has_3x3(e)) continue;
      float* to = sum + s_.padded + j * edge_sums_;
      edges[convolved++] = {state_.node[j][0] + offset,
                            state_.raw[e][0] + offset,
                            state_.moments[j][0].mean.data(),
                            state_.statistics[e][0].data() + 2 * s_.padded,
                            cell_.keep(e),
                            has_3x3(e) ? to : nullptr,
                            has_1x1(e) ? to + s_.padded : nullptr,
                            with_alpha_ ? to + s_.padded + square_ : nullptr,
                            with_alpha_ ? to + 2 * s_.padded + square_ : nullptr};
    }
    if (convolved == 0) return;
    cell_.mixed_sum_.reduce(
        {blocks_[b], s_.channels, blocks_.first_pixel(b), convolved, edges, node_gradient_[i] + offset, sum},
        memory + conv_scratch_ + border_);
  }

  // The threads' shares added up, for the edges that leave node i.
  void write_weight_3x3(int64_t i) {
    const int64_t weights = 9 * s_.channels * s_.channels;
    std::vector<int64_t> place;  // of each edge among those with a convolution
    int64_t convolutions = 0;
    for (int64_t t = i + 1; t < s_.nodes; ++t) place.push_back(has_3x3(edge_of(i, t)) ? convolutions++ : -1);
    run_each(outgoing(i), [&](int64_t k) {
      float* to = wanted_.weight_3x3 + edge_of(i, i + 1 + k) * weights;
      if (place[k] < 0) {
        std::fill_n(to, weights, 0.0f);
        return;
      }
      Matrix total = zeros(weight_floats_);
      for (const Matrix& part : parts_) {
        if (part.empty()) continue;
        const float* more = part.data() + place[k] * weight_floats_;
        for (int64_t c = 0; c < weight_floats_; ++c) total[c] += more[c];
      }
      cell_.relu_conv_.weight_gradient(s_.channels, s_.padded, total.data(), to);
    });
  }

  // The blocks' sums of the edge j -> i to its batch norms' gradients, its 1x1 weight's and its alphas'.
  void finish_edge(int64_t j, int64_t i) {
    const int64_t e = edge_of(j, i), from = s_.padded + j * edge_sums_;
    Matrix g_sum = zeros(s_.padded), sums = zeros(edge_sums_);
    for (int64_t b = 0; b < blocks_.count(); ++b) {
      const float* block = sums_.data() + b * sum_floats(i);
      for (int64_t c = 0; c < s_.padded; ++c) g_sum[c] += block[c];
      for (int64_t c = 0; c < edge_sums_; ++c) sums[c] += block[from + c];
    }
    const float *raw_sum = sums.data(), *cross = raw_sum + s_.padded, *row = alpha_ + 5 * e;
    const float* weight = cell_.matrix_1x1_[e].data();
    EdgeGradient& result = edge_[e];
    if (has_1x1(e))
      result.norm_1x1 =
          normalised_gradient(s_.padded, cell_.normalised(0, row[2], state_.statistics[e][0]), s_.pixels(),
                              g_sum.data(), raw_sum_1x1(s_.padded, weight, cross).data());
    if (has_3x3(e))
      result.norm_3x3 = normalised_gradient(s_.padded, cell_.normalised(1, row[3], state_.statistics[e][0]),
                                            s_.pixels(), g_sum.data(), raw_sum);
    if (with_weights_ && !has_1x1(e)) {
      std::fill_n(wanted_.weight_1x1 + e * s_.channels * s_.channels, s_.channels * s_.channels, 0.0f);
    } else if (with_weights_) {
      const Matrix gradient = weight_gradient_1x1(s_.padded, weight, result.norm_1x1, cross,
                                                  state_.moments[j][0].covariance.data(), s_.pixels());
      for (int64_t c = 0; c < s_.channels; ++c)
        std::copy_n(gradient.data() + c * s_.padded, s_.channels,
                    wanted_.weight_1x1 + (e * s_.channels + c) * s_.channels);
    }
    if (with_alpha_) write_alpha(e, cross + square_);
  }

  // sums: of g keep x and g pool(x), [2][padded].
  void write_alpha(int64_t e, const float* sums) {
    double skip = 0, pool = 0;
    for (int64_t c = 0; c < s_.padded; ++c) {
      skip += sums[c];
      pool += sums[s_.padded + c];
    }
    float* to = wanted_.alpha + 5 * e;
    to[0] = 0;
    to[1] = static_cast<float>(skip * cell_.kept_scale(e));
    to[2] = edge_[e].norm_1x1.alpha;
    to[3] = edge_[e].norm_3x3.alpha;
    to[4] = static_cast<float>(pool);
  }

  const TrainingCell& cell_;
  const CellSizes& s_;
  const float* alpha_;
  const CellState& state_;
  const CellGradients& wanted_;
  const bool with_weights_, with_alpha_;
  const Blocks blocks_;
  const int64_t square_, weight_floats_;
  const int64_t edge_sums_;  // floats: raw_sum, cross and, for alpha, skip and pool; see ReducedEdge
  const int64_t conv_scratch_, border_;
  const ScratchSpace scratch_;
  const Floats transformed_;
  std::vector<Floats> memory_;
  std::vector<const float*> node_gradient_;
  std::vector<EdgeGradient> edge_;
  // Of the node in work: where its gradient goes, what fold_1x1 leaves, its sums [blocks], and [threads] of
  // weight gradients in Winograd form.
  float* target_ = nullptr;
  bool any_1x1_ = false;  // an edge that leaves it has a 1x1 convolution
  Matrix packed_, shift_, sums_;
  std::vector<Matrix> parts_;
};

void TrainingCell::backward(const float* alpha, const CellState& state, const float* gradient,
                            const CellGradients& wanted) const {
  BackwardPass(*this, alpha, state, gradient, wanted).run();
}

}  // namespace vpdarts::cpu
