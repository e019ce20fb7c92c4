#include <algorithm>
#include <vector>

#include "cpu/ops/blocks.h"
#include "cpu/ops/mixed_cell_passes.h"
#include "cpu/ops/parallel.h"

namespace vpdarts::cpu {

// Node by node from the last one: its gradient, the weight gradients of the edges that leave it and the sums
// that those into it need, in one pass over the batch; then the gradients that follow from the sums.
class MixedCellPasses::BackwardPass {
 public:
  BackwardPass(const MixedCellPasses& cell, const float* alpha, const MixedCellState& state,
               const float* gradient, const MixedCellGradients& wanted)
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
        scratch_(conv_scratch_ + border_ + cell.mixed_cell_.scratch(blocks_[0], s_.nodes - 1)),
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
      cell_.relu_conv_.pack_1x1(s_.padded, conv.data(), packed_.data() + k * square_);
    }
    cell_.relu_conv_.pack_1x1(s_.padded, own.data(), packed_.data() + outgoing(i) * square_);
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
    cell_.mixed_cell_.backward({blocks_[b], s_.channels, blocks_.first_pixel(b), edges, edge, x,
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
    cell_.mixed_cell_.reduce(
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

  const MixedCellPasses& cell_;
  const MixedCellSizes& s_;
  const float* alpha_;
  const MixedCellState& state_;
  const MixedCellGradients& wanted_;
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

void MixedCellPasses::backward(const float* alpha, const MixedCellState& state, const float* gradient,
                               const MixedCellGradients& wanted) const {
  BackwardPass(*this, alpha, state, gradient, wanted).run();
}

}  // namespace vpdarts::cpu
