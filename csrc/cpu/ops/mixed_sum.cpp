// mixed_sum on the CPU: validate, lay out, cut the variants into blocks of images, call the kernels.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "check.h"
#include "cpu/kernels.h"
#include "cpu/ops/batch_norm.h"
#include "cpu/ops/layout.h"
#include "cpu/ops/parallel.h"

namespace vpdarts::cpu {
namespace {

using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using Sources = std::vector<Source>;

constexpr const char* kName = "mixed_sum";

// The arguments as the kernels take them.
struct Terms {
  int64_t variants, edges, channels;
  Block batch;  // of one variant
  Sources x, raw[2], keep;
  Tensor alpha;

  float* of(const Tensor& tensor, int64_t variant) const { return floats(tensor) + variant * batch.floats(); }
  const float* row(int64_t v, int64_t e) const { return floats(alpha) + 5 * (v * edges + e); }
};

Sources sources(const char* name, const Tensors& tensors, const Tensor& like, int64_t count,
                const Block& batch) {
  STD_TORCH_CHECK(static_cast<int64_t>(tensors.size()) == count, kName, ": ", name, " must hold ", count,
                  " tensors; got ", tensors.size());
  Sources result;
  for (const Tensor& tensor : tensors) {
    check_tensor(kName, name, tensor, {like.size(0), like.size(1), like.size(2), like.size(3), like.size(4)});
    result.emplace_back(tensor, batch);
  }
  return result;
}

Terms checked(const Tensors& xs, const Tensors& raw_1x1, const Tensors& raw_3x3, const Tensor& alpha,
              const Tensors& skip_scale, double eps) {
  check_eps(kName, eps);
  const int64_t edges = static_cast<int64_t>(xs.size());
  STD_TORCH_CHECK(edges > 0, kName, ": xs must hold at least one tensor");
  const Tensor& x = xs[0];
  STD_TORCH_CHECK(x.dim() == 5, kName, ": xs must be [V, N, C, H, W]; got ", x.dim(), " dimensions");
  const int64_t variants = x.size(0), channels = x.size(2), lanes = active_kernels(channels).relu_conv.lanes;
  const Block batch{x.size(1), x.size(3), x.size(4), (channels + lanes - 1) / lanes * lanes};
  STD_TORCH_CHECK(variants > 0 && channels > 0 && batch.images * batch.height * batch.width >= 2, kName,
                  ": xs must hold a variant, and two values per channel; got V, N, C, H, W = ",
                  text({variants, batch.images, channels, batch.height, batch.width}));
  check_tensor(kName, "alpha", alpha, {variants, edges, 5});
  check_count(kName, "variants", variants);
  const int64_t scales = skip_scale.empty() ? 0 : edges;
  return {variants,
          edges,
          channels,
          batch,
          sources("xs", xs, x, edges, batch),
          {sources("raw_1x1", raw_1x1, x, edges, batch), sources("raw_3x3", raw_3x3, x, edges, batch)},
          sources("skip_scale", skip_scale, x, scales, batch),
          torch::stable::contiguous(alpha)};
}

// Mean and variance of every raw output, [V][k][2][padded] each; the padding is 0.
struct Statistics {
  explicit Statistics(const Terms& t)
      : mean(zeros(2 * t.variants * t.edges * t.batch.padded)), variance(mean) {}
  Matrix mean, variance;
};

// Batch norm of raw output o of an edge under its alpha.
Normalised normalised(const Terms& t, const Statistics& statistics, double eps, int64_t v, int64_t e,
                      int64_t o) {
  const int64_t at = ((v * t.edges + e) * 2 + o) * t.batch.padded;
  return {t.row(v, e)[2 + o], eps, statistics.mean.data() + at, statistics.variance.data() + at};
}

// Scratch memory for a unit of work: copies of the terms that do not lie as the kernels take them, and of the
// gradient, then what the kernels need.
ScratchSpace scratch_space(const Terms& t, const Blocks& blocks, int64_t gradient) {
  const int64_t copies = scratch_of(t.x, blocks) + scratch_of(t.raw[0], blocks) +
                         scratch_of(t.raw[1], blocks) + scratch_of(t.keep, blocks);
  return ScratchSpace(copies + gradient + active_kernels(t.channels).mixed_sum.scratch(blocks[0], t.edges));
}

Statistics measure(const Terms& t, const Blocks& blocks, const ScratchSpace& scratch) {
  const MixedSumKernels& kernels = active_kernels(t.channels).mixed_sum;
  const int64_t raws = 2 * t.edges, floats_of_block = raws * 2 * t.batch.padded;
  Matrix sums = zeros(t.variants * blocks.count() * floats_of_block);
  run(t.variants * blocks.count(), scratch, [&](int64_t unit, float* memory) {
    const int64_t v = unit / blocks.count(), b = unit % blocks.count();
    for (int64_t i = 0; i < raws; ++i) {
      float* next = memory;
      kernels.statistics(blocks[b], t.raw[i % 2][i / 2].block(blocks, v, b, next),
                         sums.data() + unit * floats_of_block + i * 2 * t.batch.padded);
    }
  });
  Statistics result(t);
  const std::vector<int64_t> pixels = blocks.pixels();
  run_each(t.variants * raws, [&](int64_t i) {
    const int64_t v = i / raws, at = i * t.batch.padded;
    combine_statistics(t.batch.padded,
                       sums.data() + v * blocks.count() * floats_of_block + (i % raws) * 2 * t.batch.padded,
                       floats_of_block, pixels, result.mean.data() + at, result.variance.data() + at);
  });
  return result;
}

void add_up(const Terms& t, const Blocks& blocks, const ScratchSpace& scratch, const Statistics& statistics,
            double eps, const Tensor& node) {
  const MixedSumKernels& kernels = active_kernels(t.channels).mixed_sum;
  const int64_t padded = t.batch.padded;
  Matrix scale = zeros(t.variants * t.edges * 2 * padded), shift = zeros(t.variants * padded);
  for (int64_t v = 0; v < t.variants; ++v) {
    for (int64_t i = 0; i < 2 * t.edges; ++i) {
      const Normalised norm = normalised(t, statistics, eps, v, i / 2, i % 2);
      for (int64_t c = 0; c < t.channels; ++c) {
        scale[(v * t.edges * 2 + i) * padded + c] = norm.scale(c);
        shift[v * padded + c] += norm.shift(c);
      }
    }
  }
  run(t.variants * blocks.count(), scratch, [&](int64_t unit, float* memory) {
    const int64_t v = unit / blocks.count(), b = blocks.turned(unit % blocks.count(), 1),
                  offset = blocks.offset(b);
    std::vector<MixedSumEdge> edges;
    for (int64_t e = 0; e < t.edges; ++e) {
      const float* scales = scale.data() + (v * t.edges + e) * 2 * padded;
      edges.push_back({t.x[e].block(blocks, v, b, memory),
                       t.keep.empty() ? nullptr : t.keep[e].block(blocks, v, b, memory),
                       {t.raw[0][e].block(blocks, v, b, memory), t.raw[1][e].block(blocks, v, b, memory)},
                       {scales, scales + padded},
                       t.row(v, e)[1],
                       t.row(v, e)[4]});
    }
    kernels.forward({blocks[b], t.edges, edges.data(), shift.data() + v * padded, t.of(node, v) + offset},
                    memory);
  });
}

std::tuple<Tensor, Tensor, Tensor> mixed_sum(const Tensors& xs, const Tensors& raw_1x1,
                                             const Tensors& raw_3x3, const Tensor& alpha,
                                             const Tensors& skip_scale, double eps) {
  const Terms t = checked(xs, raw_1x1, raw_3x3, alpha, skip_scale, eps);
  const Block& s = t.batch;
  const Tensor node = torch::stable::new_empty(alpha, {t.variants, s.images, s.height, s.width, s.padded});
  const Tensor mean = torch::stable::new_empty(alpha, {t.variants, t.edges, 2, t.channels});
  const Tensor variance = torch::stable::new_empty(alpha, {t.variants, t.edges, 2, t.channels});
  const Blocks blocks(s);
  const ScratchSpace scratch = scratch_space(t, blocks, 0);
  const Statistics statistics = measure(t, blocks, scratch);
  for (int64_t i = 0; i < 2 * t.variants * t.edges; ++i) {
    std::copy_n(statistics.mean.data() + i * s.padded, t.channels, floats(mean) + i * t.channels);
    std::copy_n(statistics.variance.data() + i * s.padded, t.channels, floats(variance) + i * t.channels);
  }
  add_up(t, blocks, scratch, statistics, eps, node);
  return {channels_second(node, t.channels), mean, variance};
}

// Where gradients go, [edges] each; null, or an empty list, where nobody wants them.
struct Wanted {
  std::vector<float*> x, raw[2], keep;
  float* alpha;

  bool sums(int64_t o, int64_t e) const { return alpha != nullptr || raw[o][e] != nullptr; }
};

// The sums over the pixels that batch norms and alpha need, for each edge, [5 * edges + 1][padded].
struct Sums {
  enum Kind { kRaw1x1, kRaw3x3, kSkip, kPool, kKinds };
  static int64_t floats(const Terms& t) { return (kKinds * t.edges + 1) * t.batch.padded; }
  static float* of(const Terms& t, float* sums, int64_t e, int64_t kind) {
    return sums + (1 + kKinds * e + kind) * t.batch.padded;
  }
};

// Of all variants, [V] sums; writes the gradients of xs and of skip_scale on the way.
Matrix reduce(const Terms& t, const Blocks& blocks, const ScratchSpace& scratch, const Statistics& statistics,
              const Source& gradient, const Wanted& wanted) {
  const MixedSumKernels& kernels = active_kernels(t.channels).mixed_sum;
  const int64_t count = Sums::floats(t);
  Matrix sums = zeros(t.variants * blocks.count() * count);
  run(t.variants * blocks.count(), scratch, [&](int64_t unit, float* memory) {
    const int64_t v = unit / blocks.count(), b = unit % blocks.count(), offset = blocks.offset(b);
    float* block = sums.data() + unit * count;
    const auto target = [&](float* data) {
      return data != nullptr ? data + v * t.batch.floats() + offset : nullptr;
    };
    // A term that a wanted gradient needs; else null, so that it is not copied either.
    const auto term = [&](bool needed, const Source& source) {
      return needed ? source.block(blocks, v, b, memory) : nullptr;
    };
    const float* g = gradient.block(blocks, v, b, memory);
    std::vector<MixedSumReducedEdge> edges;
    for (int64_t e = 0; e < t.edges; ++e) {
      const bool drops = !t.keep.empty(), with_alpha = wanted.alpha != nullptr;
      const bool with_x = wanted.x[e] != nullptr, with_keep = drops && wanted.keep[e] != nullptr;
      const auto sum = [&](bool wants, int64_t kind) {
        return wants ? Sums::of(t, block, e, kind) : nullptr;
      };
      const float* mean = statistics.mean.data() + (v * t.edges + e) * 2 * t.batch.padded;
      edges.push_back({term(with_alpha || with_keep, t.x[e]),
                       drops ? term(with_alpha || with_x, t.keep[e]) : nullptr,
                       {term(wanted.sums(0, e), t.raw[0][e]), term(wanted.sums(1, e), t.raw[1][e])},
                       {mean, mean + t.batch.padded},
                       t.row(v, e)[1],
                       t.row(v, e)[4],
                       target(wanted.x[e]),
                       drops ? target(wanted.keep[e]) : nullptr,
                       {sum(wanted.sums(0, e), Sums::kRaw1x1), sum(wanted.sums(1, e), Sums::kRaw3x3)},
                       sum(with_alpha, Sums::kSkip),
                       sum(with_alpha, Sums::kPool)});
    }
    kernels.reduce({blocks[b], t.edges, edges.data(), g, block}, memory);
  });
  Matrix totals = zeros(t.variants * count);
  for (int64_t v = 0; v < t.variants; ++v) {
    std::vector<double> total(static_cast<size_t>(count));
    for (int64_t b = 0; b < blocks.count(); ++b) {
      for (int64_t i = 0; i < count; ++i) total[i] += sums[(v * blocks.count() + b) * count + i];
    }
    for (int64_t i = 0; i < count; ++i) totals[v * count + i] = static_cast<float>(total[i]);
  }
  return totals;
}

// What the sums say of each raw output, [V][k][2]; writes alpha's gradient.
std::vector<NormalisedGradient> normalised_gradients(const Terms& t, const Statistics& statistics, double eps,
                                                     Matrix& sums, const Wanted& wanted) {
  std::vector<NormalisedGradient> result;
  for (int64_t v = 0; v < t.variants; ++v) {
    float* mine = sums.data() + v * Sums::floats(t);
    for (int64_t e = 0; e < t.edges; ++e) {
      for (int64_t o = 0; o < 2; ++o)
        result.push_back(normalised_gradient(t.channels, normalised(t, statistics, eps, v, e, o),
                                             t.batch.pixels(), mine, Sums::of(t, mine, e, o)));
      if (wanted.alpha == nullptr) continue;
      const auto total = [&](int64_t kind) {
        double sum = 0;
        for (int64_t c = 0; c < t.channels; ++c) sum += Sums::of(t, mine, e, kind)[c];
        return static_cast<float>(sum);
      };
      const float row[5] = {0, total(Sums::kSkip), result[result.size() - 2].alpha, result.back().alpha,
                            total(Sums::kPool)};
      std::copy_n(row, 5, wanted.alpha + 5 * (v * t.edges + e));
    }
  }
  for (NormalisedGradient& gradient : result) {
    for (Matrix* some : {&gradient.node_scale, &gradient.raw_scale, &gradient.shift})
      some->resize(t.batch.padded);
  }
  return result;
}

void differentiate_raws(const Terms& t, const Blocks& blocks, const ScratchSpace& scratch,
                        const std::vector<NormalisedGradient>& norms, const Source& gradient,
                        const Wanted& wanted) {
  const auto wants = [](const std::vector<float*>& some) {
    return std::any_of(some.begin(), some.end(), [](const float* data) { return data != nullptr; });
  };
  if (!wants(wanted.raw[0]) && !wants(wanted.raw[1])) return;
  run(t.variants * blocks.count(), scratch, [&](int64_t unit, float* memory) {
    const int64_t v = unit / blocks.count(), b = blocks.turned(unit % blocks.count(), 1),
                  offset = blocks.offset(b);
    const float* g = gradient.block(blocks, v, b, memory);
    std::vector<RawGradient> gradients;
    std::vector<float*> out;
    for (int64_t i = 0; i < 2 * t.edges; ++i) {
      const int64_t e = i / 2, o = i % 2;
      if (wanted.raw[o][e] == nullptr) continue;
      const NormalisedGradient& norm = norms[v * 2 * t.edges + i];
      gradients.push_back({g, t.raw[o][e].block(blocks, v, b, memory), norm.node_scale.data(),
                           norm.raw_scale.data(), norm.shift.data()});
      out.push_back(wanted.raw[o][e] + v * t.batch.floats() + offset);
    }
    active_kernels(t.channels)
        .mixed_sum.raw_gradients(blocks[b], static_cast<int64_t>(out.size()), gradients.data(), out.data());
  });
}

// Tensors for the wanted gradients of a list; `data` where they lie.
Tensors allocate_gradients(const Terms& t, const char* name, const std::vector<bool>& wants, int64_t count,
                           std::vector<float*>& data) {
  STD_TORCH_CHECK(static_cast<int64_t>(wants.size()) == count, kName, ": ", name, " must hold ", count,
                  " values; got ", wants.size());
  Tensors result;
  for (const bool wanted : wants) {
    const Tensor storage = torch::stable::new_empty(
        t.alpha, {wanted ? t.variants : 0, t.batch.images, t.batch.height, t.batch.width, t.batch.padded});
    data.push_back(wanted ? floats(storage) : nullptr);
    result.push_back(channels_second(storage, t.channels));
  }
  return result;
}

std::tuple<Tensors, Tensors, Tensors, Tensor, Tensors> mixed_sum_backward(
    const Tensor& gradient, const Tensors& xs, const Tensors& raw_1x1, const Tensors& raw_3x3,
    const Tensor& alpha, const Tensors& skip_scale, double eps, const Tensor& mean, const Tensor& variance,
    const std::vector<bool>& wants_xs, const std::vector<bool>& wants_1x1, const std::vector<bool>& wants_3x3,
    bool wants_alpha, const std::vector<bool>& wants_scale) {
  const Terms t = checked(xs, raw_1x1, raw_3x3, alpha, skip_scale, eps);
  const Block& s = t.batch;
  check_tensor(kName, "gradient", gradient, {t.variants, s.images, t.channels, s.height, s.width});
  check_tensor(kName, "mean", mean, {t.variants, t.edges, 2, t.channels});
  check_tensor(kName, "variance", variance, {t.variants, t.edges, 2, t.channels});
  const Tensor means = torch::stable::contiguous(mean), variances = torch::stable::contiguous(variance);
  Statistics statistics(t);
  for (int64_t i = 0; i < 2 * t.variants * t.edges; ++i) {
    std::copy_n(floats(means) + i * t.channels, t.channels, statistics.mean.data() + i * s.padded);
    std::copy_n(floats(variances) + i * t.channels, t.channels, statistics.variance.data() + i * s.padded);
  }
  Wanted wanted;
  const Tensors x = allocate_gradients(t, "wants_xs", wants_xs, t.edges, wanted.x);
  const Tensors of_1x1 = allocate_gradients(t, "wants_1x1", wants_1x1, t.edges, wanted.raw[0]);
  const Tensors of_3x3 = allocate_gradients(t, "wants_3x3", wants_3x3, t.edges, wanted.raw[1]);
  const Tensors scale =
      allocate_gradients(t, "wants_scale", wants_scale, static_cast<int64_t>(skip_scale.size()), wanted.keep);
  const Tensor of_alpha = torch::stable::new_empty(alpha, {wants_alpha ? t.variants : 0, t.edges, 5});
  wanted.alpha = wants_alpha ? floats(of_alpha) : nullptr;

  const Blocks blocks(s);
  const Source g(gradient, s);
  const ScratchSpace scratch = scratch_space(t, blocks, g.scratch(blocks));
  Matrix sums = reduce(t, blocks, scratch, statistics, g, wanted);
  const auto norms = normalised_gradients(t, statistics, eps, sums, wanted);
  differentiate_raws(t, blocks, scratch, norms, g, wanted);
  return {x, of_1x1, of_3x3, of_alpha, scale};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(vpdarts_fast, CPU, m) {
  m.impl("mixed_sum", TORCH_BOX(&mixed_sum));
  m.impl("mixed_sum_backward", TORCH_BOX(&mixed_sum_backward));
}

}  // namespace vpdarts::cpu
