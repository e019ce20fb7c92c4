// relu_pointwise on the CPU: validate, lay out, pack the weights, call the kernels image by image.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

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

constexpr const char* kName = "relu_pointwise";

// The arguments, checked, and as the kernels take them.
class Arguments {
 public:
  Arguments(const Tensor& x, const std::vector<Tensor>& weights, int64_t stride)
      : shape(check(x, weights, stride)),
        kernels(active_kernels(shape.first[shape.count]).relu_pointwise),
        images(x.size(0)),
        input(images_of(x, shape.padded)) {
    for (const Tensor& weight : weights) {
      held_.push_back(torch::stable::contiguous(weight));
      weights_.push_back(floats(held_.back()));
    }
  }

  int64_t out_channels() const { return shape.first[shape.count]; }
  int64_t out_channels(int64_t i) const { return shape.first[i + 1] - shape.first[i]; }
  Matrix packed() const {
    Matrix result(static_cast<size_t>(shape.count * shape.padded * shape.out_padded));
    kernels.pack(shape, weights_.data(), result.data());
    return result;
  }
  Matrix transposed() const {
    Matrix result(static_cast<size_t>(out_channels() * shape.padded));
    kernels.pack_transposed(shape, weights_.data(), result.data());
    return result;
  }

  PointwiseShape shape;
  const ReluPointwiseKernels& kernels;
  int64_t images;
  Tensor input;  // [N, H, W, padded]

 private:
  static PointwiseShape check(const Tensor& x, const std::vector<Tensor>& weights, int64_t stride) {
    STD_TORCH_CHECK(x.dim() == 4, kName, ": x must be [N, C, H, W]; got ", x.dim(), " dimensions");
    const int64_t channels = x.size(1), count = static_cast<int64_t>(weights.size());
    check_tensor(kName, "x", x, {x.size(0), channels, x.size(2), x.size(3)});
    STD_TORCH_CHECK(channels > 0 && x.size(2) > 0 && x.size(3) > 0, kName,
                    ": C, H and W must be at least 1; got x of ",
                    text({x.size(0), channels, x.size(2), x.size(3)}));
    STD_TORCH_CHECK(stride == 1 || stride == 2, kName, ": stride must be 1 or 2; got ", stride);
    STD_TORCH_CHECK(count >= 1 && count <= stride, kName, ": weights must hold 1 to ", stride,
                    " tensors at stride ", stride, "; got ", count);
    PointwiseShape s{x.size(2), x.size(3), channels, 0, stride, 0, count, {}};
    for (int64_t i = 0; i < count; ++i) {
      const Tensor& weight = weights[i];
      STD_TORCH_CHECK(weight.dim() == 4, kName, ": weights must be [C_i, C, 1, 1]; got ", weight.dim(),
                      " dimensions");
      STD_TORCH_CHECK(weight.size(0) > 0, kName, ": C_i must be at least 1; got 0");
      check_tensor(kName, "weights", weight, {weight.size(0), channels, 1, 1});
      s.first[i + 1] = s.first[i] + weight.size(0);
    }
    const int64_t lanes = active_kernels(s.first[count]).relu_pointwise.lanes;
    s.padded = (channels + lanes - 1) / lanes * lanes;
    s.out_padded = (s.first[count] + lanes - 1) / lanes * lanes;
    return s;
  }

  std::vector<Tensor> held_;
  std::vector<const float*> weights_;
};

Tensor relu_pointwise(const Tensor& x, const std::vector<Tensor>& weights, int64_t stride) {
  const Arguments args(x, weights, stride);
  const PointwiseShape& s = args.shape;
  const Tensor raw = torch::stable::new_empty(x, {args.images, s.out_height(), s.out_width(), s.out_padded});
  const Matrix packed = args.packed();
  run(args.images, ScratchSpace(args.kernels.scratch(s)), [&](int64_t n, float* scratch) {
    args.kernels.forward(
        {s, floats(args.input) + n * s.in().floats(), packed.data(), floats(raw) + n * s.out().floats()},
        scratch);
  });
  return channels_second(raw, args.out_channels());
}

// The sums of all parts [count][out_padded][padded] to gradients [C_i, C, 1, 1], in the order of the parts.
void write_weights(const Arguments& args, const std::vector<Matrix>& parts,
                   const std::vector<float*>& wanted) {
  const PointwiseShape& s = args.shape;
  for (int64_t i = 0; i < s.count; ++i) {
    for (int64_t out = 0; out < args.out_channels(i); ++out) {
      const int64_t from = (i * s.out_padded + s.first[i] + out) * s.padded;
      for (int64_t in = 0; in < s.channels; ++in) {
        float sum = 0;
        for (const Matrix& part : parts) sum += part.empty() ? 0 : part[from + in];
        wanted[i][out * s.channels + in] = sum;
      }
    }
  }
}

std::tuple<Tensor, std::vector<Tensor>> relu_pointwise_backward(const Tensor& gradient, const Tensor& x,
                                                                const std::vector<Tensor>& weights,
                                                                int64_t stride, bool wants_x,
                                                                bool wants_weights) {
  const Arguments args(x, weights, stride);
  const PointwiseShape& s = args.shape;
  check_tensor(kName, "gradient", gradient,
               {args.images, args.out_channels(), s.out_height(), s.out_width()});
  const Tensor down = images_of(gradient, s.out_padded);
  const Tensor of_x = torch::stable::new_empty(x, {wants_x ? args.images : 0, s.height, s.width, s.padded});
  std::vector<Tensor> of_weights;
  std::vector<float*> to;
  for (int64_t i = 0; i < s.count; ++i) {
    const int64_t rows = wants_weights ? args.out_channels(i) : 0;
    of_weights.push_back(torch::stable::new_empty(x, {rows, s.channels, 1, 1}));
    to.push_back(floats(of_weights.back()));
  }
  const Matrix transposed = wants_x ? args.transposed() : Matrix();
  const ScratchSpace scratch(args.kernels.scratch(s));
  std::vector<Matrix> parts(static_cast<size_t>(wants_weights ? scratch.threads() : 0));
  if (wants_x || wants_weights) {
    run_in_parts(args.images, scratch, [&](int64_t n, int64_t part, float* memory) {
      if (wants_weights && parts[part].empty())
        parts[part] = Matrix(static_cast<size_t>(s.count * s.out_padded * s.padded));
      args.kernels.backward({s, floats(args.input) + n * s.in().floats(), floats(down) + n * s.out().floats(),
                             transposed.data(), wants_x ? floats(of_x) + n * s.in().floats() : nullptr,
                             wants_weights ? parts[part].data() : nullptr},
                            memory);
    });
  }
  if (wants_weights) write_weights(args, parts, to);
  return {channels_second(of_x, s.channels), of_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpdarts_fast, CPU, m) {
  m.impl("relu_pointwise", TORCH_BOX(&relu_pointwise));
  m.impl("relu_pointwise_backward", TORCH_BOX(&relu_pointwise_backward));
}

}  // namespace vpdarts::cpu
