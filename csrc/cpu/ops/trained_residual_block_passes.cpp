#include "cpu/ops/trained_residual_block_passes.h"

#include <algorithm>
#include <cmath>

#include "cpu/ops/blocks.h"
#include "cpu/ops/parallel.h"

namespace vpdarts::cpu {
namespace {

int64_t in_lines(int64_t floats) { return (floats + 15) / 16 * 16; }

// The sum of equally long parts, those that are not empty, in their order.
Matrix total(const std::vector<Matrix>& parts, int64_t floats) {
  Matrix sum = zeros(floats);
  for (const Matrix& part : parts) {
    for (size_t i = 0; i < part.size(); ++i) sum[i] += part[i];
  }
  return sum;
}

}  // namespace

// A batch norm behind a convolution: its statistics, and scale raw + shift. All [out_padded], zero where
// there is no channel.
struct TrainedResidualBlockPasses::Norm {
  Matrix mean, variance, scale, shift;
};

TrainedResidualBlockPasses::Norm TrainedResidualBlockPasses::norm(
    int64_t which, const TrainedResidualBlockState& state) const {
  const int64_t padded = batch_.out_padded, first = which * out_channels_;
  Norm norm{zeros(padded), zeros(padded), zeros(padded), zeros(padded)};
  for (int64_t c = 0; c < out_channels_; ++c) {
    norm.mean[c] = state.mean[first + c];
    norm.variance[c] = state.variance[first + c];
    const double scale = weights_.gamma[first + c] / std::sqrt(static_cast<double>(norm.variance[c]) + eps_);
    norm.scale[c] = static_cast<float>(scale);
    norm.shift[c] = static_cast<float>(weights_.beta[first + c] - scale * norm.mean[c]);
  }
  return norm;
}

ResidualShape TrainedResidualBlockPasses::shape(int64_t images) const {
  ResidualShape shape = batch_;
  shape.images = images;
  return shape;
}

// Blocks' statistics [blocks][2][out_padded] to those of the batch.
void TrainedResidualBlockPasses::combine(int64_t which, const Matrix& statistics,
                                         const std::vector<int64_t>& pixels,
                                         const TrainedResidualBlockState& state) const {
  const int64_t padded = batch_.out_padded;
  Matrix mean = zeros(padded), variance = zeros(padded);
  combine_statistics(padded, statistics.data(), 2 * padded, pixels, mean.data(), variance.data());
  std::copy_n(mean.data(), out_channels_, state.mean + which * out_channels_);
  std::copy_n(variance.data(), out_channels_, state.variance + which * out_channels_);
}

Matrix TrainedResidualBlockPasses::conv_b(bool transposed) const {
  Matrix weight = zeros(relu_conv_.weight_floats(batch_.out_padded));
  relu_conv_.transform_weight(out_channels_, batch_.out_padded, weights_.conv_b, transposed, weight.data());
  return weight;
}

Matrix TrainedResidualBlockPasses::packed(bool transposed) const {
  Matrix packed = zeros(kernels_.weight_floats(batch_.padded, batch_.out_padded));
  kernels_.pack(batch_.channels, out_channels_, batch_.padded, batch_.out_padded, weights_.conv_a,
                weights_.shortcut, transposed, packed.data());
  return packed;
}

void TrainedResidualBlockPasses::forward(const float* x, const TrainedResidualBlockState& state,
                                         float* out) const {
  const Blocks blocks(batch_.out());
  const int64_t padded = batch_.out_padded, a_floats = in_lines(blocks[0].floats());
  const ScratchSpace scratch(std::max(kernels_.forward_scratch(shape(blocks[0].images)),
                                      a_floats + relu_conv_.forward_scratch(blocks[0], 1)));
  const Matrix direct = packed(false), winograd = conv_b(false);
  const float* const weight_b = winograd.data();
  Matrix statistics = zeros(blocks.count() * 2 * padded);

  // raw_a, and out = the shortcut.
  run(blocks.count(), scratch, [&](int64_t b, float* memory) {
    const int64_t offset = blocks.offset(b);
    const ResidualShape some = shape(blocks[b].images);
    kernels_.forward({some, x + blocks.first(b) * batch_.in().floats() / batch_.images, direct.data(),
                      state.raw_a + offset, out + offset, statistics.data() + b * 2 * padded},
                     memory);
  });
  combine(0, statistics, blocks.pixels(), state);

  const Norm norm_a = norm(0, state);
  run(blocks.count(), scratch, [&](int64_t unit, float* a) {
    const int64_t b = blocks.turned(unit, 1), offset = blocks.offset(b);
    kernels_.affine({blocks[b], state.raw_a + offset, norm_a.scale.data(), norm_a.shift.data(), nullptr, a});
    float* const raw_b = state.raw_b + offset;
    relu_conv_.forward({blocks[b], a, 1, &weight_b, &raw_b, nullptr, statistics.data() + b * 2 * padded},
                       a + a_floats);
  });
  combine(1, statistics, blocks.pixels(), state);

  const Norm norm_b = norm(1, state);
  run(blocks.count(), scratch, [&](int64_t b, float*) {
    const int64_t offset = blocks.offset(b);
    kernels_.affine({blocks[b], state.raw_b + offset, norm_b.scale.data(), norm_b.shift.data(), out + offset,
                     out + offset});
  });
}

// From blocks' sums [blocks][2][out_padded]: the gradient of raw, and those of gamma and beta if wanted.
NormalisedGradient TrainedResidualBlockPasses::norm_gradient(
    int64_t which, const Matrix& sums, const TrainedResidualBlockState& state,
    const TrainedResidualBlockGradients& wanted) const {
  const int64_t padded = batch_.out_padded, first = which * out_channels_;
  const auto blocks = static_cast<int64_t>(sums.size()) / (2 * padded);
  Matrix sum = zeros(2 * padded);
  for (int64_t i = 0; i < 2 * padded; ++i) {
    double exact = 0;
    for (int64_t b = 0; b < blocks; ++b) exact += sums[b * 2 * padded + i];
    sum[i] = static_cast<float>(exact);
  }
  const Norm norm = this->norm(which, state);
  NormalisedGradient result =
      normalised_gradient(padded, {1.0f, eps_, norm.mean.data(), norm.variance.data()}, batch_.out().pixels(),
                          sum.data(), sum.data() + padded);
  for (int64_t c = 0; c < padded; ++c) {
    const bool channel = c < out_channels_;
    for (Matrix* factor : {&result.node_scale, &result.raw_scale, &result.shift})
      (*factor)[c] = channel ? (*factor)[c] * weights_.gamma[first + c] : 0;
    if (!channel || wanted.gamma == nullptr) continue;
    wanted.gamma[first + c] =
        static_cast<float>(sum[padded + c] / std::sqrt(static_cast<double>(norm.variance[c]) + eps_));
    wanted.beta[first + c] = sum[c];
  }
  return result;
}

// The sums of all parts to gradients.
void TrainedResidualBlockPasses::write_weights(const std::vector<Matrix>& parts_a,
                                               const std::vector<Matrix>& parts_b,
                                               const TrainedResidualBlockGradients& wanted) const {
  const int64_t channels = batch_.channels, padded = batch_.out_padded, square = batch_.padded * padded;
  const Matrix winograd = total(parts_b, relu_conv_.weight_floats(padded));
  relu_conv_.weight_gradient(out_channels_, padded, winograd.data(), wanted.conv_b);
  const Matrix direct = total(parts_a, kernels_.weight_floats(batch_.padded, padded));
  for (int64_t out = 0; out < out_channels_; ++out) {
    for (int64_t in = 0; in < channels; ++in) {
      const float* from = direct.data() + in * padded + out;
      for (int64_t tap = 0; tap < 9; ++tap)
        wanted.conv_a[(out * channels + in) * 9 + tap] = from[tap * square];
      wanted.shortcut[out * channels + in] = from[9 * square];
    }
  }
}

void TrainedResidualBlockPasses::backward(const float* x, const TrainedResidualBlockState& state,
                                          const float* gradient,
                                          const TrainedResidualBlockGradients& wanted) const {
  const Blocks blocks(batch_.out());
  const int64_t padded = batch_.out_padded, a_floats = in_lines(blocks[0].floats()),
                border = in_lines(border_map(blocks[0]).floats),
                in_floats = batch_.in().floats() / batch_.images;
  const ScratchSpace scratch(std::max(kernels_.backward_scratch(shape(blocks[0].images)),
                                      a_floats + border + relu_conv_.backward_scratch(blocks[0], 1)));
  const bool with_weights = wanted.conv_a != nullptr;
  Matrix sums = zeros(blocks.count() * 2 * padded);

  const Norm norm_b = norm(1, state);
  run(blocks.count(), scratch, [&](int64_t b, float*) {
    const int64_t offset = blocks.offset(b);
    kernels_.norm_sums({blocks[b], gradient + offset, state.raw_b + offset, norm_b.mean.data(),
                        sums.data() + b * 2 * padded});
  });
  const NormalisedGradient gradient_b = norm_gradient(1, sums, state, wanted);

  // Of conv_b, and from there the gradient of norm a's output and its sums.
  const Norm norm_a = norm(0, state);
  const Matrix winograd = conv_b(true);
  const float* const weight_b = winograd.data();
  const Floats node = allocate(batch_.out().floats());
  std::vector<Matrix> parts_a(scratch.threads()), parts_b(scratch.threads());
  run_in_parts(blocks.count(), scratch, [&](int64_t unit, int64_t part, float* a) {
    const int64_t b = blocks.turned(unit, 1), offset = blocks.offset(b);
    float *rectified = a + a_floats, *memory = rectified + border;
    if (with_weights && parts_b[part].empty()) parts_b[part] = zeros(relu_conv_.weight_floats(padded));
    const RawGradient raw{gradient + offset, state.raw_b + offset, gradient_b.node_scale.data(),
                          gradient_b.raw_scale.data(), gradient_b.shift.data()};
    kernels_.affine({blocks[b], state.raw_a + offset, norm_a.scale.data(), norm_a.shift.data(), nullptr, a});
    relu_conv_.backward(
        {blocks[b], a, 1, &raw, &weight_b, rectified, with_weights ? parts_b[part].data() : nullptr}, memory);
    kernels_.rectified_gradient({blocks[b], a, rectified, state.raw_a + offset, norm_a.mean.data(),
                                 node.get() + offset, sums.data() + b * 2 * padded});
  });
  const NormalisedGradient gradient_a = norm_gradient(0, sums, state, wanted);
  if (wanted.x == nullptr && !with_weights) return;

  const Matrix direct = packed(true);
  run_in_parts(blocks.count(), scratch, [&](int64_t b, int64_t part, float* memory) {
    const int64_t offset = blocks.offset(b), in_offset = blocks.first(b) * in_floats;
    if (with_weights && parts_a[part].empty()) parts_a[part] = zeros(static_cast<int64_t>(direct.size()));
    const RawGradient raw{node.get() + offset, state.raw_a + offset, gradient_a.node_scale.data(),
                          gradient_a.raw_scale.data(), gradient_a.shift.data()};
    kernels_.backward(
        {shape(blocks[b].images), x + in_offset, raw, gradient + offset, direct.data(),
         wanted.x != nullptr ? wanted.x + in_offset : nullptr, with_weights ? parts_a[part].data() : nullptr},
        memory);
  });
  if (with_weights) write_weights(parts_a, parts_b, wanted);
}

}  // namespace vpdarts::cpu
