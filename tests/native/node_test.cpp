// The kernels of gather, relu_conv's 1x1 convolutions and mixed_sum against the textbook in double precision,
// without PyTorch, so that they can run under sanitizers. Every buffer has exactly the size that the
// interface asks for and holds NaN before it is written. Exit status 0 if all is well.
#include <cmath>
#include <cstdio>
#include <random>
#include <vector>

#include "cpu/kernels/gather.h"
#include "cpu/kernels/mixed_sum.h"
#include "cpu/kernels/relu_conv.h"
#include "cpu/ops/parallel.h"

using namespace vpdarts::cpu;

namespace {

const ReluConvKernels& kReluConv = VPDARTS_ISA::relu_conv_kernels();
const MixedSumKernels& kMixedSum = VPDARTS_ISA::mixed_sum_kernels();

using Values = std::vector<float>;
using Map = std::vector<double>;

std::mt19937 random_bits(0);
int failures = 0;

Values unwritten(int64_t count) { return Values(static_cast<size_t>(count), NAN); }

Floats scratch_of(int64_t floats) {
  Floats memory = allocate(floats);
  for (int64_t i = 0; i < floats; ++i) memory.get()[i] = NAN;
  return memory;
}

struct Case {
  Block block;
  int64_t edges, channels;
  int64_t pixels() const { return block.pixels(); }
};

// [pixels][padded], the padding 0.
Values normal(const Case& c, int64_t pixels) {
  std::normal_distribution<float> draw(0, 1);
  Values values(static_cast<size_t>(pixels * c.block.padded));
  for (int64_t i = 0; i < pixels * c.block.padded; ++i)
    if (i % c.block.padded < c.channels) values[i] = draw(random_bits);
  return values;
}

void check(const Case& c, const char* what, const Values& got, const Map& expected) {
  double worst = 0, largest = 1e-30;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = std::fabs(got[i] - expected[i]);
    worst = std::isfinite(error) ? std::fmax(worst, error) : INFINITY;
    largest = std::fmax(largest, std::fabs(expected[i]));
  }
  if (got.size() == expected.size() && worst < 2e-5 * largest) return;
  ++failures;
  std::printf("images %ld edges %ld channels %ld size %ldx%ld: %s: error %g\n", long(c.block.images),
              long(c.edges), long(c.channels), long(c.block.height), long(c.block.width), what,
              worst / largest);
}

// The 3x3 average pool, or its adjoint.
Map pool(const Case& c, const Values& x, bool adjoint) {
  const Block& s = c.block;
  const auto share = [&](int64_t i, int64_t size) { return 1.0 / (1 + (i > 0) + (i < size - 1)); };
  Map out(x.size());
  for (int64_t p = 0; p < s.pixels(); ++p) {
    const int64_t y = p / s.width % s.height, i = p % s.width;
    for (int64_t dy = -1; dy <= 1; ++dy)
      for (int64_t di = -1; di <= 1; ++di) {
        if (y + dy < 0 || y + dy >= s.height || i + di < 0 || i + di >= s.width) continue;
        const double factor = adjoint ? share(y + dy, s.height) * share(i + di, s.width)
                                      : share(y, s.height) * share(i, s.width);
        const int64_t q = p + dy * s.width + di;
        for (int64_t k = 0; k < s.padded; ++k) out[p * s.padded + k] += factor * x[q * s.padded + k];
      }
  }
  return out;
}

// NCHW, NHWC and W outermost of exactly their size.
void test_gather(const Case& c) {
  const Block& s = c.block;
  const int64_t n = s.images, k = c.channels, h = s.height, w = s.width;
  const int64_t layouts[][4] = {{k * h * w, w, 1, h * w}, {h * w * k, w * k, k, 1}, {h * k, k, n * h * k, 1}};
  for (const auto& [image, row, pixel, channel] : layouts) {
    Values x(static_cast<size_t>(n * h * w * k)), got = unwritten(s.floats());
    Map expected(got.size());
    for (size_t i = 0; i < x.size(); ++i) x[i] = float(i + 1);
    for (int64_t p = 0; p < s.pixels(); ++p)
      for (int64_t i = 0; i < k; ++i)
        expected[p * s.padded + i] = x[p / (h * w) * image + p / w % h * row + p % w * pixel + i * channel];
    VPDARTS_ISA::gather_kernels().images(s, k, {x.data(), image, row, pixel, channel}, got.data());
    check(c, "gathered images", got, expected);
  }
}

void test_1x1(const Case& c) {
  const int64_t padded = c.block.padded, square = padded * padded;
  const Values x = normal(c, c.pixels());
  std::vector<Values> weight, conv, transposed, raw, down;
  std::vector<const float*> convs, transposes, downs;
  std::vector<float*> raws;
  for (int64_t e = 0; e < c.edges; ++e) {
    weight.push_back(normal(c, c.channels));
    weight.back().resize(square);
    Values turned(square);
    for (int64_t i = 0; i < square; ++i) turned[i] = weight.back()[i % padded * padded + i / padded];
    conv.push_back(unwritten(square));
    transposed.push_back(unwritten(square));
    kReluConv.pack_1x1(padded, weight.back().data(), conv.back().data());
    kReluConv.pack_1x1(padded, turned.data(), transposed.back().data());
    raw.push_back(unwritten(c.block.floats()));
    down.push_back(normal(c, c.pixels()));
  }
  for (int64_t e = 0; e < c.edges; ++e) {
    convs.push_back(conv[e].data());
    transposes.push_back(transposed[e].data());
    downs.push_back(down[e].data());
    raws.push_back(raw[e].data());
  }
  const int64_t scratch = kReluConv.scratch_1x1(c.block, c.edges);
  kReluConv.forward_1x1({c.block, x.data(), c.edges, convs.data(), raws.data()}, scratch_of(scratch).get());
  const Values rectified(static_cast<size_t>(border_map(c.block).floats), 0.5f);
  Values x_gradient = unwritten(c.block.floats()), sums(c.edges * square);
  kReluConv.backward_1x1({c.block, x.data(), c.edges, downs.data(), transposes.data(), rectified.data(),
                          x_gradient.data(), sums.data()},
                         scratch_of(scratch).get());

  Map of_x(x.size()), of_weight(c.edges * square);
  for (int64_t e = 0; e < c.edges; ++e) {
    Map wanted(x.size());
    for (int64_t p = 0; p < c.pixels(); ++p)
      for (int64_t o = 0; o < padded; ++o)
        for (int64_t i = 0; i < padded; ++i) {
          const double w = weight[e][o * padded + i], r = std::fmax(x[p * padded + i], 0.0f);
          wanted[p * padded + o] += w * r;
          of_x[p * padded + i] += w * down[e][p * padded + o];
          of_weight[e * square + o * padded + i] += down[e][p * padded + o] * r;
        }
    check(c, "raw_1x1", raw[e], wanted);
  }
  for (size_t i = 0; i < x.size(); ++i) of_x[i] = x[i] > 0 ? of_x[i] + 0.5 : 0;
  check(c, "gradient of x", x_gradient, of_x);
  check(c, "gradient of the weights", sums, of_weight);
}

// One edge of a node and what is expected of it.
struct Edge {
  Values x, keep, raw[2], scale[2], mean[2];
  float skip, pool;
};

std::vector<Edge> random_edges(const Case& c) {
  std::vector<Edge> edges;
  for (int64_t e = 0; e < c.edges; ++e) {
    Edge edge{normal(c, c.pixels()), {}, {}, {}, {}, e == 1 ? 0.0f : 0.5f + float(e), e == 2 ? 0.0f : -0.7f};
    if (e % 2 == 0) edge.keep = normal(c, c.pixels());
    for (int o = 0; o < 2; ++o) {
      edge.raw[o] = normal(c, c.pixels());
      edge.scale[o] = normal(c, 1);
      edge.mean[o] = normal(c, 1);
    }
    edges.push_back(edge);
  }
  return edges;
}

void test_forward(const Case& c, const std::vector<Edge>& edges) {
  const int64_t padded = c.block.padded;
  const Values shift = normal(c, 1);
  Map node(static_cast<size_t>(c.block.floats()));
  for (size_t i = 0; i < node.size(); ++i) node[i] = shift[i % padded];
  std::vector<MixedSumEdge> terms;
  for (const Edge& edge : edges) {
    const Map pooled = pool(c, edge.x, false);
    for (size_t i = 0; i < node.size(); ++i) {
      node[i] += edge.skip * (edge.keep.empty() ? 1.0 : edge.keep[i]) * edge.x[i] + edge.pool * pooled[i];
      for (int o = 0; o < 2; ++o) node[i] += double(edge.scale[o][i % padded]) * edge.raw[o][i];
    }
    terms.push_back({edge.x.data(),
                     edge.keep.empty() ? nullptr : edge.keep.data(),
                     {edge.raw[0].data(), edge.raw[1].data()},
                     {edge.scale[0].data(), edge.scale[1].data()},
                     edge.skip,
                     edge.pool});
  }
  Values got = unwritten(c.block.floats());
  kMixedSum.forward({c.block, c.edges, terms.data(), shift.data(), got.data()},
                    scratch_of(kMixedSum.scratch(c.block, c.edges)).get());
  check(c, "node", got, node);

  Values statistics = unwritten(2 * padded);
  Map moments(static_cast<size_t>(2 * padded));
  const Values& raw = edges[0].raw[0];
  kMixedSum.statistics(c.block, raw.data(), statistics.data());
  for (size_t i = 0; i < raw.size(); ++i) moments[i % padded] += raw[i] / double(c.pixels());
  for (size_t i = 0; i < raw.size(); ++i)
    moments[padded + i % padded] += std::pow(raw[i] - moments[i % padded], 2);
  check(c, "statistics", statistics, moments);
}

void test_reduce(const Case& c, const std::vector<Edge>& edges, bool with_alpha) {
  const int64_t padded = c.block.padded, floats = c.block.floats();
  const Values g = normal(c, c.pixels());
  const Map pooled = pool(c, g, true);
  std::vector<std::vector<Values>> got;  // [edge]: of x, of keep, raw sums, skip, pool
  for (int64_t e = 0; e < c.edges; ++e)
    got.push_back({unwritten(floats), unwritten(floats), unwritten(padded), unwritten(padded),
                   unwritten(padded), unwritten(padded)});
  std::vector<MixedSumReducedEdge> terms;
  for (int64_t e = 0; e < c.edges; ++e) {
    const Edge& edge = edges[e];
    terms.push_back({edge.x.data(),
                     edge.keep.empty() ? nullptr : edge.keep.data(),
                     {edge.raw[0].data(), edge.raw[1].data()},
                     {edge.mean[0].data(), edge.mean[1].data()},
                     edge.skip,
                     edge.pool,
                     got[e][0].data(),
                     edge.keep.empty() ? nullptr : got[e][1].data(),
                     {got[e][2].data(), got[e][3].data()},
                     with_alpha ? got[e][4].data() : nullptr,
                     with_alpha ? got[e][5].data() : nullptr});
  }
  Values sum = unwritten(padded);
  kMixedSum.reduce({c.block, c.edges, terms.data(), g.data(), sum.data()},
                   scratch_of(kMixedSum.scratch(c.block, c.edges)).get());
  Map total(static_cast<size_t>(padded));
  for (int64_t i = 0; i < floats; ++i) total[i % padded] += g[i];
  check(c, "sum", sum, total);
  for (int64_t e = 0; e < c.edges; ++e) {
    const Edge& edge = edges[e];
    Map of_x(g.size()), of_keep(g.size()), sums[4];
    for (Map& some : sums) some.resize(padded);
    for (int64_t i = 0; i < floats; ++i) {
      const double kept = edge.keep.empty() ? 1.0 : edge.keep[i];
      of_x[i] = edge.skip * kept * g[i] + edge.pool * pooled[i];
      of_keep[i] = double(edge.skip) * edge.x[i] * g[i];
      for (int o = 0; o < 2; ++o)
        sums[o][i % padded] += double(g[i]) * (double(edge.raw[o][i]) - edge.mean[o][i % padded]);
      sums[2][i % padded] += kept * g[i] * edge.x[i];
      sums[3][i % padded] += pooled[i] * edge.x[i];
    }
    check(c, "gradient of x", got[e][0], of_x);
    if (!edge.keep.empty()) check(c, "gradient of keep", got[e][1], of_keep);
    for (int i = 0; i < (with_alpha ? 4 : 2); ++i) check(c, "sums of an edge", got[e][2 + i], sums[i]);
  }

  const Values shift = normal(c, 1);
  const RawGradient gradient{g.data(), edges[0].raw[0].data(), edges[0].scale[0].data(),
                             edges[0].scale[1].data(), shift.data()};
  Values of_raw = unwritten(floats);
  float* out[] = {of_raw.data()};
  kMixedSum.raw_gradients(c.block, 1, &gradient, out);
  Map wanted(g.size());
  for (int64_t i = 0; i < floats; ++i)
    wanted[i] = double(edges[0].scale[0][i % padded]) * g[i] +
                double(edges[0].scale[1][i % padded]) * edges[0].raw[0][i] + shift[i % padded];
  check(c, "gradient of a raw output", of_raw, wanted);
}

}  // namespace

int main() {
  const int64_t cases[][5] = {{1, 1, 1, 1, 2},  {1, 3, 1, 1, 6},    {3, 3, 3, 9, 3},  {2, 4, 8, 5, 7},
                              {4, 2, 12, 4, 4}, {1, 6, 16, 16, 16}, {5, 3, 24, 3, 5}, {2, 1, 40, 8, 8}};
  for (const auto& [images, edges, channels, height, width] : cases) {
    const int64_t padded = (channels + kReluConv.lanes - 1) / kReluConv.lanes * kReluConv.lanes;
    const Case c{{images, height, width, padded}, edges, channels};
    test_gather(c);
    test_1x1(c);
    const std::vector<Edge> terms = random_edges(c);
    test_forward(c, terms);
    for (const bool with_alpha : {false, true}) test_reduce(c, terms, with_alpha);
  }
  std::printf("%d failed\n", failures);
  return failures != 0;
}
