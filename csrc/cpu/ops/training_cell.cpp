#include "cpu/ops/training_cell.h"

#include <algorithm>
#include <utility>

#include "cpu/ops/blocks.h"
#include "cpu/ops/parallel.h"

namespace vpdarts::cpu {
namespace {

using Matrix = std::vector<float>;

Matrix zeros(int64_t count) { return Matrix(static_cast<size_t>(count)); }

}  // namespace

TrainingCell::TrainingCell(const ReluConvKernels& relu_conv, const MixedSumKernels& mixed_sum,
                           const CellSizes& sizes, const float* weight_1x1, const float* weight_3x3,
                           std::vector<Dropout> keep, double eps)
    : relu_conv_(relu_conv),
      mixed_sum_(mixed_sum),
      sizes_(sizes),
      weight_3x3_(weight_3x3),
      keep_(std::move(keep)),
      eps_(eps) {
  const int64_t c = sizes.channels;
  for (int64_t e = 0; e < sizes.edges(); ++e) {
    matrix_1x1_.push_back(zeros(sizes.padded * sizes.padded));
    for (int64_t i = 0; i < c; ++i)
      std::copy_n(weight_1x1 + (e * c + i) * c, c, matrix_1x1_.back().data() + i * sizes.padded);
  }
}

Normalised TrainingCell::normalised(int64_t, int64_t op, float alpha,
                                    const std::vector<float>& statistics) const {
  const float* data = statistics.data() + op * 2 * sizes_.padded;
  return {alpha, eps_, data, data + sizes_.padded};
}

void TrainingCell::forward(const ValuePlan& plan, CellState& state) const {
  const CellSizes& s = sizes_;
  const Blocks blocks({s.images, s.height, s.width, s.padded});
  const int64_t block_count = blocks.count();
  const std::vector<int64_t> block_pixels = blocks.pixels();
  const int64_t square = s.padded * s.padded, weight_floats = relu_conv_.weight_floats(s.padded);
  const Block largest = blocks[0];
  const ScratchSpace scratch(
      std::max(relu_conv_.forward_scratch(largest, s.nodes - 1), mixed_sum_.scratch(largest, s.nodes - 1)));
  Matrix transformed = zeros(s.edges() * weight_floats);
  run_each(s.edges(), [&](int64_t e) {
    relu_conv_.transform_weight(s.channels, s.padded, weight_3x3_ + e * 9 * s.channels * s.channels, false,
                                transformed.data() + e * weight_floats);
  });
  state.moments.resize(s.nodes - 1);
  state.statistics.resize(s.edges());

  for (int64_t i = 0; i < s.nodes; ++i) {
    const int64_t values = static_cast<int64_t>(plan[i].size()), outgoing = s.nodes - 1 - i;
    // Batch norm and alpha folded into the coefficients of every value of this node.
    Matrix conv = zeros(values * i * square), scale = zeros(values * i * s.padded),
           shift = zeros(values * s.padded);
    run_each(i > 0 ? values : 0, [&](int64_t u) {
      Matrix folded = zeros(square);
      for (int64_t j = 0; j < i; ++j) {
        const int64_t e = edge_of(j, i), at = u * i + j;
        const auto& statistics = state.statistics[e][plan[i][u].source[j]];
        const float* alpha = plan[i][u].alpha + 5 * j;
        const Normalised norm_1x1 = normalised(e, 0, alpha[2], statistics),
                         norm_3x3 = normalised(e, 1, alpha[3], statistics);
        for (int64_t c = 0; c < s.padded; ++c) {
          const float factor = norm_1x1.scale(c);
          for (int64_t k = 0; k < s.padded; ++k)
            folded[c * s.padded + k] = factor * matrix_1x1_[e][c * s.padded + k];
          scale[at * s.padded + c] = norm_3x3.scale(c);
          shift[u * s.padded + c] += norm_1x1.shift(c) + norm_3x3.shift(c);
        }
        mixed_sum_.pack(s.padded, folded.data(), conv.data() + at * square);
      }
    });

    const int64_t moment_floats = s.padded + square, statistic_floats = outgoing * 2 * s.padded;
    Matrix moments = zeros(outgoing > 0 ? values * block_count * moment_floats : 0);
    Matrix statistics = zeros(values * block_count * statistic_floats);
    run(values * block_count, scratch, [&](int64_t unit, float* memory) {
      const int64_t u = unit / block_count, b = blocks.turned(unit % block_count, i),
                    offset = blocks.offset(b);
      float* node = state.node[i][u] + offset;
      if (i > 0) {
        IncomingEdge edges[kMostIncoming];
        for (int64_t j = 0; j < i; ++j) {
          const int64_t e = edge_of(j, i), source = plan[i][u].source[j], at = u * i + j;
          const float* alpha = plan[i][u].alpha + 5 * j;
          const Dropout keep = this->keep(e);
          const float kept = keep.drops ? 4294967296.0f / static_cast<float>(keep.threshold) : 1.0f;
          edges[j] = {state.node[j][source] + offset,
                      state.raw[e][source] + offset,
                      conv.data() + at * square,
                      scale.data() + at * s.padded,
                      alpha[1] * kept,
                      alpha[4],
                      keep};
        }
        mixed_sum_.forward(
            {blocks[b], s.channels, blocks.first_pixel(b), i, edges, shift.data() + u * s.padded, node},
            memory);
      }
      if (outgoing == 0) return;
      const float* weights[kMostIncoming];
      float* raws[kMostIncoming];
      for (int64_t t = i + 1; t < s.nodes; ++t) {
        const int64_t e = edge_of(i, t);
        weights[t - i - 1] = transformed.data() + e * weight_floats;
        raws[t - i - 1] = state.raw[e][u] + offset;
      }
      relu_conv_.forward(
          {blocks[b], node, outgoing, weights, raws, moments.data() + (u * block_count + b) * moment_floats,
           statistics.data() + (u * block_count + b) * statistic_floats},
          memory);
    });
    if (outgoing == 0) break;

    state.moments[i].resize(values);
    for (int64_t t = i + 1; t < s.nodes; ++t)
      state.statistics[edge_of(i, t)].assign(values, zeros(4 * s.padded));
    run_each(values, [&](int64_t u) {
      const auto begin = moments.begin() + u * block_count * moment_floats;
      state.moments[i][u] =
          combine_moments(s.padded, Matrix(begin, begin + block_count * moment_floats), block_pixels);
      for (int64_t t = i + 1; t < s.nodes; ++t) {
        const int64_t e = edge_of(i, t);
        float* result = state.statistics[e][u].data();
        statistics_1x1(s.padded, matrix_1x1_[e].data(), state.moments[i][u], result, result + s.padded);
        combine_statistics(
            s.padded, statistics.data() + u * block_count * statistic_floats + (t - i - 1) * 2 * s.padded,
            statistic_floats, block_pixels, result + 2 * s.padded, result + 3 * s.padded);
      }
    });
  }
}

// What the pass over a node's gradient yields for one of its incoming edges.
struct TrainingCell::EdgeGradient {
  NormalisedGradient norm_1x1, norm_3x3;
  Matrix cross;  // sum of g (r - mean)^T
};

void TrainingCell::backward(const float* alpha, const CellState& state, const float* gradient,
                            const CellGradients& wanted) const {
  const CellSizes& s = sizes_;
  const Blocks blocks({s.images, s.height, s.width, s.padded});
  const int64_t block_count = blocks.count();
  const int64_t square = s.padded * s.padded, weight_floats = relu_conv_.weight_floats(s.padded);
  const Block largest = blocks[0];
  const int64_t conv_scratch = (relu_conv_.backward_scratch(largest, s.nodes - 1) + 15) / 16 * 16;
  const int64_t border = (border_map(largest).floats + 15) / 16 * 16;
  const ScratchSpace scratch(conv_scratch + border + mixed_sum_.scratch(largest, s.nodes - 1));
  const bool with_weights = wanted.weight_3x3 != nullptr, with_alpha = wanted.alpha != nullptr;

  Matrix transformed = zeros(s.edges() * weight_floats);
  run_each(s.edges(), [&](int64_t e) {
    relu_conv_.transform_weight(s.channels, s.padded, weight_3x3_ + e * 9 * s.channels * s.channels, true,
                                transformed.data() + e * weight_floats);
  });
  std::vector<Floats> memory(s.nodes);
  std::vector<const float*> node_gradient(s.nodes);
  node_gradient[s.nodes - 1] = gradient;
  std::vector<EdgeGradient> edge(s.edges());

  for (int64_t i = s.nodes - 1; i >= 0; --i) {
    const bool last = i == s.nodes - 1;
    if (i == 0 && wanted.x == nullptr && !with_weights) break;
    const int64_t outgoing = s.nodes - 1 - i;
    float* target = nullptr;
    if (!last) {
      if (i > 0) memory[i] = allocate(s.node_floats());
      target = i > 0 ? memory[i].get() : wanted.x;
      node_gradient[i] = target;
    }

    // Of relu(x), through the 1x1 convolutions: conv_e g_e + own r + shift.
    Matrix conv = zeros(outgoing * square), own = zeros(square), packed = zeros((outgoing + 1) * square),
           shift = zeros(s.padded);
    for (int64_t t = i + 1; t < s.nodes; ++t) {
      const int64_t e = edge_of(i, t);
      gradient_1x1(s.padded, matrix_1x1_[e].data(), edge[e].norm_1x1, conv.data() + (t - i - 1) * square,
                   own.data(), shift.data());
      mixed_sum_.pack(s.padded, conv.data() + (t - i - 1) * square, packed.data() + (t - i - 1) * square);
    }
    mixed_sum_.pack(s.padded, own.data(), packed.data() + outgoing * square);

    const int64_t edge_sums = s.padded + square + (with_alpha ? 2 * s.padded : 0);
    const int64_t sums_floats = s.padded + i * edge_sums;
    Matrix sums = zeros(block_count * sums_floats);
    const int64_t weight_sums = with_weights ? outgoing * weight_floats : 0;
    std::vector<Matrix> parts(scratch.threads());

    run_in_parts(block_count, scratch, [&](int64_t unit, int64_t part, float* scratch_memory) {
      const int64_t b = blocks.turned(unit, i);
      const Block block = blocks[b];
      const int64_t offset = blocks.offset(b), first = blocks.first_pixel(b);
      const float* x = last ? nullptr : state.node[i][0];
      float* rectified = scratch_memory + conv_scratch;
      float* rest = rectified + border;
      if (!last) {
        if (parts[part].empty() && weight_sums > 0) parts[part] = zeros(weight_sums);
        RawGradient raws[kMostIncoming];
        const float* weights[kMostIncoming];
        OutgoingEdge edges[kMostIncoming];
        for (int64_t t = i + 1; t < s.nodes; ++t) {
          const int64_t e = edge_of(i, t), k = t - i - 1;
          const NormalisedGradient& norm = edge[e].norm_3x3;
          raws[k] = {node_gradient[t] + offset, state.raw[e][0] + offset, norm.node_scale.data(),
                     norm.raw_scale.data(), norm.shift.data()};
          weights[k] = transformed.data() + e * weight_floats;
          const Dropout keep = this->keep(e);
          const float kept = keep.drops ? 4294967296.0f / static_cast<float>(keep.threshold) : 1.0f;
          edges[k] = {node_gradient[t] + offset, packed.data() + k * square, alpha[5 * e + 1] * kept,
                      alpha[5 * e + 4], keep};
        }
        relu_conv_.backward({block, x + offset, outgoing, raws, weights, target ? rectified : nullptr,
                             weight_sums > 0 ? parts[part].data() : nullptr},
                            scratch_memory);
        if (target != nullptr) {
          mixed_sum_.backward({block, s.channels, first, outgoing, edges, x + offset,
                               packed.data() + outgoing * square, shift.data(), rectified, target + offset},
                              rest);
        }
      }
      if (i == 0) return;
      float* sum = sums.data() + b * sums_floats;
      ReducedEdge edges[kMostIncoming];
      for (int64_t j = 0; j < i; ++j) {
        const int64_t e = edge_of(j, i);
        float* to = sum + s.padded + j * edge_sums;
        edges[j] = {state.node[j][0] + offset,
                    state.raw[e][0] + offset,
                    state.moments[j][0].mean.data(),
                    state.statistics[e][0].data() + 2 * s.padded,
                    keep(e),
                    to,
                    to + s.padded,
                    with_alpha ? to + s.padded + square : nullptr,
                    with_alpha ? to + 2 * s.padded + square : nullptr};
      }
      mixed_sum_.reduce({block, s.channels, first, i, edges, node_gradient[i] + offset, sum}, rest);
    });

    if (weight_sums > 0) {
      run_each(outgoing, [&](int64_t k) {
        Matrix total = zeros(weight_floats);
        for (const Matrix& part : parts) {
          if (part.empty()) continue;
          const float* more = part.data() + k * weight_floats;
          for (int64_t c = 0; c < weight_floats; ++c) total[c] += more[c];
        }
        const int64_t e = edge_of(i, i + 1 + k);
        relu_conv_.weight_gradient(s.channels, s.padded, total.data(),
                                   wanted.weight_3x3 + e * 9 * s.channels * s.channels);
      });
    }
    if (i == 0) break;

    run_each(i, [&](int64_t j) {
      const int64_t e = edge_of(j, i);
      Matrix total = zeros(sums_floats);
      for (int64_t b = 0; b < block_count; ++b) {
        for (int64_t c = 0; c < s.padded; ++c) total[c] += sums[b * sums_floats + c];
        const int64_t from = s.padded + j * edge_sums;
        for (int64_t c = from; c < from + edge_sums; ++c) total[c] += sums[b * sums_floats + c];
      }
      const float* mine = total.data() + s.padded + j * edge_sums;
      EdgeGradient& result = edge[e];
      result.cross.assign(mine + s.padded, mine + s.padded + square);
      const float* row = alpha + 5 * e;
      const Matrix raw_sum = raw_sum_1x1(s.padded, matrix_1x1_[e].data(), result.cross.data());
      result.norm_1x1 = normalised_gradient(s.padded, normalised(e, 0, row[2], state.statistics[e][0]),
                                            s.pixels(), total.data(), raw_sum.data());
      result.norm_3x3 = normalised_gradient(s.padded, normalised(e, 1, row[3], state.statistics[e][0]),
                                            s.pixels(), total.data(), mine);
      if (with_weights) {
        const Matrix weight =
            weight_gradient_1x1(s.padded, matrix_1x1_[e].data(), result.norm_1x1, result.cross.data(),
                                state.moments[j][0].covariance.data(), s.pixels());
        for (int64_t c = 0; c < s.channels; ++c)
          std::copy_n(weight.data() + c * s.padded, s.channels,
                      wanted.weight_1x1 + (e * s.channels + c) * s.channels);
      }
      if (with_alpha) {
        const Dropout keep = this->keep(e);
        double skip = 0, pool = 0;
        for (int64_t c = 0; c < s.padded; ++c) {
          skip += mine[s.padded + square + c];
          pool += mine[2 * s.padded + square + c];
        }
        if (keep.drops) skip *= 4294967296.0 / keep.threshold;
        float* to = wanted.alpha + 5 * e;
        to[0] = 0;
        to[1] = static_cast<float>(skip);
        to[2] = result.norm_1x1.alpha;
        to[3] = result.norm_3x3.alpha;
        to[4] = static_cast<float>(pool);
      }
    });
  }
}

}  // namespace vpdarts::cpu
