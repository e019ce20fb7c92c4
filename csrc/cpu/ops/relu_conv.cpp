// relu_conv on the CPU: validate, lay out, transform the weights, cut into blocks of images, call the
// kernels.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "check.h"
#include "cpu/kernels.h"
#include "cpu/ops/layout.h"
#include "cpu/ops/parallel.h"

namespace vpdarts::cpu {
namespace {

using torch::stable::Tensor;
using Matrix = std::vector<float>;

constexpr const char* kName = "relu_conv";

struct Sizes {
  int64_t edges, channels;
  Block batch;
  int64_t square() const { return batch.padded * batch.padded; }
};

Sizes check(const Tensor& x, const Tensor& weight_1x1, const Tensor& weight_3x3) {
  STD_TORCH_CHECK(x.dim() == 4, kName, ": x must be [N, C, H, W]; got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(weight_1x1.dim() == 5, kName, ": weight_1x1 must be [k, C, C, 1, 1]; got ",
                  weight_1x1.dim(), " dimensions");
  const int64_t edges = weight_1x1.size(0), channels = x.size(1);
  check_tensor(kName, "x", x, {x.size(0), channels, x.size(2), x.size(3)});
  check_tensor(kName, "weight_1x1", weight_1x1, {edges, channels, channels, 1, 1});
  check_tensor(kName, "weight_3x3", weight_3x3, {edges, channels, channels, 3, 3});
  check_count(kName, "edges", edges);
  const int64_t lanes = active_kernels(channels).relu_conv.lanes;
  return {edges, channels, {x.size(0), x.size(2), x.size(3), (channels + lanes - 1) / lanes * lanes}};
}

// The weights as the kernels take them, for the forward or, transposed, for the backward pass.
class Weights {
 public:
  Weights(const Sizes& s, const Tensor& weight_1x1, const Tensor& weight_3x3, bool transposed)
      : conv_1x1_(static_cast<size_t>(s.edges * s.square())),
        conv_3x3_(static_cast<size_t>(s.edges *
                                      active_kernels(s.channels).relu_conv.weight_floats(s.batch.padded))) {
    const Kernels& kernels = active_kernels(s.channels);
    const int64_t c = s.channels, padded = s.batch.padded;
    const int64_t weight_floats = kernels.relu_conv.weight_floats(padded);
    const float *from_1x1 = floats(weight_1x1), *from_3x3 = floats(weight_3x3);
    run_each(s.edges, [&](int64_t e) {
      Matrix matrix(static_cast<size_t>(s.square()));
      for (int64_t out = 0; out < c; ++out) {
        for (int64_t in = 0; in < c; ++in)
          matrix[transposed ? in * padded + out : out * padded + in] = from_1x1[(e * c + out) * c + in];
      }
      kernels.relu_conv.pack_1x1(padded, matrix.data(), conv_1x1_.data() + e * s.square());
      kernels.relu_conv.transform_weight(c, padded, from_3x3 + 9 * e * c * c, transposed,
                                         conv_3x3_.data() + e * weight_floats);
    });
    for (int64_t e = 0; e < s.edges; ++e) {
      of_1x1.push_back(conv_1x1_.data() + e * s.square());
      of_3x3.push_back(conv_3x3_.data() + e * weight_floats);
    }
  }
  std::vector<const float*> of_1x1, of_3x3;  // [edges]

 private:
  Matrix conv_1x1_, conv_3x3_;
};

std::tuple<std::vector<Tensor>, std::vector<Tensor>> relu_conv(const Tensor& x, const Tensor& weight_1x1,
                                                               const Tensor& weight_3x3) {
  const Sizes s = check(x, weight_1x1, weight_3x3);
  const Tensor w1 = torch::stable::contiguous(weight_1x1), w3 = torch::stable::contiguous(weight_3x3);
  std::vector<Tensor> raw_1x1, raw_3x3;
  std::vector<float*> to_1x1, to_3x3;
  for (int64_t e = 0; e < s.edges; ++e) {
    for (const auto& [outputs, to] : {std::pair{&raw_1x1, &to_1x1}, std::pair{&raw_3x3, &to_3x3}}) {
      const Tensor storage =
          torch::stable::new_empty(x, {s.batch.images, s.batch.height, s.batch.width, s.batch.padded});
      to->push_back(floats(storage));
      outputs->push_back(channels_second(storage, s.channels));
    }
  }
  if (x.numel() == 0 || s.edges == 0) return {raw_1x1, raw_3x3};

  const ReluConvKernels& kernels = active_kernels(s.channels).relu_conv;
  const Weights weights(s, w1, w3, false);
  const Blocks blocks(s.batch);
  const Source input(x, s.batch);
  const ScratchSpace scratch(input.scratch(blocks) + std::max(kernels.forward_scratch(blocks[0], s.edges),
                                                              kernels.scratch_1x1(blocks[0], s.edges)));
  run(blocks.count(), scratch, [&](int64_t b, float* memory) {
    const int64_t offset = blocks.offset(b);
    std::vector<float*> block_1x1, block_3x3;
    for (int64_t e = 0; e < s.edges; ++e) {
      block_1x1.push_back(to_1x1[e] + offset);
      block_3x3.push_back(to_3x3[e] + offset);
    }
    const float* from = input.block(blocks, 0, b, memory);
    kernels.forward_1x1({blocks[b], from, s.edges, weights.of_1x1.data(), block_1x1.data()}, memory);
    kernels.forward({blocks[b], from, s.edges, weights.of_3x3.data(), block_3x3.data(), nullptr, nullptr},
                    memory);
  });
  return {raw_1x1, raw_3x3};
}

// The gradients of all raw outputs of one kind.
std::vector<Source> sources(const Sizes& s, const char* name, const std::vector<Tensor>& gradients) {
  STD_TORCH_CHECK(static_cast<int64_t>(gradients.size()) == s.edges, kName, ": ", name, " must hold ",
                  s.edges, " tensors; got ", gradients.size());
  std::vector<Source> result;
  for (const Tensor& gradient : gradients) {
    check_tensor(kName, name, gradient, {s.batch.images, s.channels, s.batch.height, s.batch.width});
    result.emplace_back(gradient, s.batch);
  }
  return result;
}

// Where gradients go; null if not wanted.
struct Wanted {
  float *x, *weight_1x1, *weight_3x3;
};

// The sums of all parts [edges][...] to gradients [E, C, C, 1, 1] and [E, C, C, 3, 3].
void write_weights(const Sizes& s, const std::vector<Matrix>& parts_1x1, const std::vector<Matrix>& parts_3x3,
                   const Wanted& wanted) {
  const ReluConvKernels& kernels = active_kernels(s.channels).relu_conv;
  const int64_t c = s.channels, padded = s.batch.padded;
  const auto total = [](const std::vector<Matrix>& parts, int64_t e, int64_t count) {
    Matrix sum(static_cast<size_t>(count));
    for (const Matrix& part : parts) {
      for (int64_t i = 0; i < count && !part.empty(); ++i) sum[i] += part[e * count + i];
    }
    return sum;
  };
  run_each(s.edges, [&](int64_t e) {
    if (wanted.weight_1x1 != nullptr) {
      const Matrix sum = total(parts_1x1, e, s.square());
      for (int64_t out = 0; out < c; ++out)
        std::copy_n(sum.data() + out * padded, c, wanted.weight_1x1 + (e * c + out) * c);
    }
    if (wanted.weight_3x3 != nullptr) {
      const Matrix sum = total(parts_3x3, e, kernels.weight_floats(padded));
      kernels.weight_gradient(c, padded, sum.data(), wanted.weight_3x3 + 9 * e * c * c);
    }
  });
}

void differentiate(const Sizes& s, const std::vector<Source>& gradient_1x1,
                   const std::vector<Source>& gradient_3x3, const Source& input, const Weights& weights,
                   const Wanted& wanted) {
  const ReluConvKernels& kernels = active_kernels(s.channels).relu_conv;
  const Blocks blocks(s.batch);
  const int64_t weight_floats = kernels.weight_floats(s.batch.padded);
  const int64_t border = wanted.x != nullptr ? (border_map(blocks[0]).floats + 15) / 16 * 16 : 0;
  const int64_t copies =
      input.scratch(blocks) + scratch_of(gradient_1x1, blocks) + scratch_of(gradient_3x3, blocks);
  const ScratchSpace scratch(
      border + copies +
      std::max(kernels.backward_scratch(blocks[0], s.edges), kernels.scratch_1x1(blocks[0], s.edges)));
  const Matrix ones(static_cast<size_t>(s.batch.padded), 1.0f),
      zeros(static_cast<size_t>(s.batch.padded), 0.0f);
  std::vector<Matrix> parts_1x1(scratch.threads()), parts_3x3(scratch.threads());
  run_in_parts(blocks.count(), scratch, [&](int64_t b, int64_t part, float* rectified) {
    const int64_t offset = blocks.offset(b);
    const auto sums = [&](const float* gradient, Matrix& of_part, int64_t count) -> float* {
      if (gradient == nullptr) return nullptr;
      if (of_part.empty()) of_part.resize(s.edges * count);
      return of_part.data();
    };
    float* memory = rectified + border;
    const float* x = input.block(blocks, 0, b, memory);
    std::vector<const float*> down_1x1;
    std::vector<RawGradient> down_3x3;
    for (int64_t e = 0; e < s.edges; ++e) {
      const float* down = gradient_3x3[e].block(blocks, 0, b, memory);
      down_1x1.push_back(gradient_1x1[e].block(blocks, 0, b, memory));
      down_3x3.push_back({down, down, ones.data(), zeros.data(), zeros.data()});
    }
    if (wanted.x != nullptr || wanted.weight_3x3 != nullptr) {
      kernels.backward({blocks[b], x, s.edges, down_3x3.data(), weights.of_3x3.data(),
                        wanted.x != nullptr ? rectified : nullptr,
                        sums(wanted.weight_3x3, parts_3x3[part], weight_floats)},
                       memory);
    }
    if (wanted.x != nullptr || wanted.weight_1x1 != nullptr) {
      kernels.backward_1x1({blocks[b], x, s.edges, down_1x1.data(), weights.of_1x1.data(), rectified,
                            wanted.x != nullptr ? wanted.x + offset : nullptr,
                            sums(wanted.weight_1x1, parts_1x1[part], s.square())},
                           memory);
    }
  });
  write_weights(s, parts_1x1, parts_3x3, wanted);
}

std::tuple<Tensor, Tensor, Tensor> relu_conv_backward(const std::vector<Tensor>& gradient_1x1,
                                                      const std::vector<Tensor>& gradient_3x3,
                                                      const Tensor& x, const Tensor& weight_1x1,
                                                      const Tensor& weight_3x3, bool wants_x, bool wants_1x1,
                                                      bool wants_3x3) {
  const Sizes s = check(x, weight_1x1, weight_3x3);
  const std::vector<Source> down_1x1 = sources(s, "gradient_1x1", gradient_1x1),
                            down_3x3 = sources(s, "gradient_3x3", gradient_3x3);
  const Tensor w1 = torch::stable::contiguous(weight_1x1), w3 = torch::stable::contiguous(weight_3x3);
  const int64_t c = s.channels;
  const Tensor x_gradient = torch::stable::new_empty(
      x, {wants_x ? s.batch.images : 0, s.batch.height, s.batch.width, s.batch.padded});
  const Tensor weight_gradient_1x1 = torch::stable::new_zeros(x, {wants_1x1 ? s.edges : 0, c, c, 1, 1});
  const Tensor weight_gradient_3x3 = torch::stable::new_zeros(x, {wants_3x3 ? s.edges : 0, c, c, 3, 3});
  if (x.numel() > 0 && (wants_x || s.edges > 0)) {
    differentiate(s, down_1x1, down_3x3, Source(x, s.batch), Weights(s, w1, w3, true),
                  {wants_x ? floats(x_gradient) : nullptr, wants_1x1 ? floats(weight_gradient_1x1) : nullptr,
                   wants_3x3 ? floats(weight_gradient_3x3) : nullptr});
  }
  return {channels_second(x_gradient, c), weight_gradient_1x1, weight_gradient_3x3};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpdarts_fast, CPU, m) {
  m.impl("relu_conv", TORCH_BOX(&relu_conv));
  m.impl("relu_conv_backward", TORCH_BOX(&relu_conv_backward));
}

}  // namespace vpdarts::cpu
