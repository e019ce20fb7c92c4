// masked_cell: fold batch norms and alphas into weights, then each block takes its images through the cell.
//
// A node's value is a map in shared memory: rows of W + 1 pixels, the last of them zero, so that it borders
// its row and the next one; a row of zeros between two images; `stride` channels a pixel. So all pixels of
// all images of a block lie in one line, a tap of the convolution is a fixed distance along it, and any 16
// neighbours are a tile for a tensor core. What is computed for the zero pixels is not stored.
#include <algorithm>

#include "launch.h"
#include "masked_cell.h"
#include "pack.h"
#include "product.h"

namespace vpdarts::cuda {
namespace {

constexpr int kWarps = 8, kTaps = 9;
constexpr int kTilesAtOnce = 3;  // of a warp, so that it reads weights once for all of them

// Where everything lies. Position 0 is the first pixel of the first image.
struct Maps {
  int images;      // of a block
  int row, image;  // positions from one to the next
  int positions;   // to compute
  int tiles;       // of kTile positions
  int stride;      // values of a pixel
  int lead, size;  // pixels before position 0; from one map to the next, whose lead ends this one

  Maps(const CellShape& s, int images) : images(images), row(s.width + 1), image((s.height + 1) * row) {
    positions = (images - 1) * image + (s.height - 1) * row + s.width;
    tiles = (positions + kTile - 1) / kTile;
    // An odd number of tiles: neighbouring pixels begin in different banks.
    stride = s.padded() + (s.padded() / kTile % 2 == 0 ? kTile : 0);
    lead = row + 1;
    size = lead + tiles * kTile;
  }

  // From one map to the next, and of all nodes but the last.
  __host__ __device__ int64_t values() const { return static_cast<int64_t>(size) * stride; }
  __host__ __device__ int64_t values(int nodes) const { return (nodes - 1) * values() + lead * stride; }
  // Of the maps and a tile of sums for each warp.
  int64_t shared_bytes(const CellShape& s) const {
    return values(s.nodes) * bytes_of(s.number) + kWarps * kTile * kTile * 4;
  }
};

// The largest group that leaves room for a second block; at least one image, and enough blocks for a GPU.
Maps choose_maps(const CellShape& s, int64_t limit) {
  int images = 1;
  while (images < 16 && images * 2 <= s.images &&
         static_cast<int64_t>(s.images) * s.variants >= 512 * images &&
         Maps(s, images * 2).shared_bytes(s) <= limit / 2 - 1024)
    images *= 2;
  return Maps(s, images);
}

// Device memory: weights [V, E, 9, padded in, padded out], bias [V, nodes - 1, padded], first [V, E].
template <typename T>
struct Folded {
  T* weights;
  float* bias;
  int* first;  // the first variant with this edge's alphas, whose weights are used

  Folded(const CellShape& s, void* memory) {
    const int64_t edges = static_cast<int64_t>(s.variants) * s.edges();
    weights = static_cast<T*>(memory);
    bias = reinterpret_cast<float*>(weights + edges * kTaps * s.padded() * s.padded());
    first = reinterpret_cast<int*>(bias + static_cast<int64_t>(s.variants) * (s.nodes - 1) * s.padded());
  }
};

// Where the statistics of a channel of convolution o of an edge lie.
__device__ __forceinline__ int64_t statistic_at(const MaskedCell& args, int v, int e, int o, int c) {
  const int64_t edge = args.own ? static_cast<int64_t>(v) * args.shape.edges() + e : e;
  return (edge * 2 + o) * args.shape.channels + c;
}

__device__ __forceinline__ float factor(const MaskedCell& args, int v, int e, int o, int c) {
  return args.alpha[(v * args.shape.edges() + e) * 5 + 2 + o] /
         sqrtf(args.variance[statistic_at(args, v, e, o, c)] + args.eps);
}

// first and bias. Grid: V.
template <typename T>
__global__ void prepare_kernel(MaskedCell args, Folded<T> folded) {
  const CellShape& s = args.shape;
  const int v = static_cast<int>(blockIdx.x), edges = s.edges();
  for (int e = static_cast<int>(threadIdx.x); e < edges; e += static_cast<int>(blockDim.x)) {
    const auto bits = [&](int u, int o) {
      return __float_as_uint(args.alpha[(static_cast<int64_t>(u) * edges + e) * 5 + 2 + o]);
    };
    int u = args.own ? v : 0;
    while (u < v && (bits(u, 0) != bits(v, 0) || bits(u, 1) != bits(v, 1))) ++u;
    folded.first[v * edges + e] = u;
  }
  const int biases = (s.nodes - 1) * s.padded();
  for (int i = static_cast<int>(threadIdx.x); i < biases; i += static_cast<int>(blockDim.x)) {
    const int node = 1 + i / s.padded(), c = i % s.padded();
    float bias = 0;
    for (int e = node * (node - 1) / 2; e < node * (node + 1) / 2 && c < s.channels; ++e) {
      for (int o = 0; o < 2; ++o)
        bias -= factor(args, v, e, o, c) * args.mean[statistic_at(args, v, e, o, c)];
    }
    folded.bias[static_cast<int64_t>(v) * biases + i] = bias;
  }
}

// The weights of one edge under one variant's alphas. Grid: blocks, E, V.
template <typename T>
__global__ void fold_kernel(MaskedCell args, Folded<T> folded) {
  const CellShape& s = args.shape;
  const int e = static_cast<int>(blockIdx.y), v = static_cast<int>(blockIdx.z);
  const int64_t edge = static_cast<int64_t>(v) * s.edges() + e;
  if (folded.first[edge] != v) return;
  const int padded = s.padded(), count = kTaps * padded * padded;
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < count;
       i += static_cast<int>(gridDim.x * blockDim.x)) {
    const int out = i % padded, in = i / padded % padded, tap = i / (padded * padded);
    float weight = 0;
    if (out < s.channels && in < s.channels) {
      const int64_t pair = (static_cast<int64_t>(e) * s.channels + out) * s.channels + in;
      weight = factor(args, v, e, 1, out) * args.weight_3x3[pair * kTaps + tap];
      if (tap == kTaps / 2) weight += factor(args, v, e, 0, out) * args.weight_1x1[pair];
    }
    assign(folded.weights[edge * count + i], weight);
  }
}

// A position's pixel.
struct Pixel {
  int image, y, x;
  bool inside;  // else it is one of the zeros
};

__device__ __forceinline__ Pixel pixel_at(const CellShape& s, const Maps& maps, int images, int position) {
  if (position < 0) return {0, 0, 0, false};
  const int image = position / maps.image, rest = position % maps.image;
  const int y = rest / maps.row, x = rest % maps.row;
  return {image, y, x, image < images && y < s.height && x < s.width};
}

template <typename T, int kPack>
__device__ __forceinline__ void load_tail(const T* from, int count, float (&to)[kPack]) {
#pragma unroll
  for (int i = 0; i < kPack; ++i) to[i] = i < count ? to_float(from[i]) : 0.0f;
}

// The maps of all nodes: the first one's pixels, zeros else. x [images, H, W, C].
template <typename T, int kPack, bool kAligned>
__device__ __forceinline__ void fill_maps(const CellShape& s, const Maps& maps, int images, const T* x,
                                          T* map) {
  const int packs = maps.stride / kPack, all = (s.nodes - 1) * maps.size + maps.lead;
  for (int i = static_cast<int>(threadIdx.x); i < all * packs; i += kWarps * 32) {
    const int place = i / packs, channel = i % packs * kPack;
    const Pixel pixel = pixel_at(s, maps, images, place - maps.lead);
    float value[kPack] = {};
    if (place < maps.size && pixel.inside && channel < s.channels) {
      const int64_t at = (static_cast<int64_t>(pixel.image) * s.height + pixel.y) * s.width + pixel.x;
      const T* from = x + at * s.channels + channel;
      if (kAligned) {
        load<T, kPack>(from, value);
      } else {
        load_tail<T, kPack>(from, s.channels - channel, value);
      }
    }
    store<T, kPack>(map + static_cast<int64_t>(place) * maps.stride + channel, value);
  }
}

// sums = the convolutions of all edges into node i, for the warp's tiles from `tile` on and 16 output
// channels. `map` is position 0 of the tile in node 0's map, `weights` [edges] what the variant uses.
template <typename Product>
__device__ __forceinline__ void convolve(const CellShape& s, const Maps& maps, int node, int tiles,
                                         const typename Product::T* map, const typename Product::T* weights,
                                         const int* first, typename Product::Sums (&sums)[kTilesAtOnce]) {
  const int padded = s.padded(), edge = node * (node - 1) / 2, edges = s.edges();
#pragma unroll
  for (int t = 0; t < kTilesAtOnce; ++t) Product::clear(sums[t]);
  for (int j = 0; j < node; ++j) {
    const int64_t folded = static_cast<int64_t>(first[edge + j]) * edges + edge + j;
    const typename Product::T* edge_weights = weights + folded * kTaps * padded * padded;
    for (int tap = 0; tap < kTaps; ++tap) {
      const int shift = (tap / 3 - 1) * maps.row + tap % 3 - 1;
      const typename Product::T* from = map + j * maps.values() + shift * maps.stride;
      for (int k = 0; k < padded; k += Product::kDepth) {
        typename Product::Weights some;
        Product::load(some, edge_weights + (tap * padded + k) * padded, padded);
#pragma unroll
        for (int t = 0; t < kTilesAtOnce; ++t) {
          if (t < tiles) Product::multiply(from + t * kTile * maps.stride + k, maps.stride, some, sums[t]);
        }
      }
    }
  }
}

// value += skip x_j + pool pool(x_j) of all sources; map is the pixel's pack in node 0's map. The zeros
// around an image make the pool's sum right, `share` its count.
template <typename T, int kPack>
__device__ __forceinline__ void add_beside(const Maps& maps, int node, const float* alpha, float share,
                                           const T* map, float (&value)[kPack]) {
  for (int j = 0; j < node; ++j, map += maps.values()) {
    float x[kPack];
    load<T, kPack>(map, x);
    add(alpha[5 * j + 1], x, value);
    const float pool = alpha[5 * j + 4];
    if (pool == 0) continue;
    float box[kPack] = {};
#pragma unroll
    for (int tap = 0; tap < kTaps; ++tap) {
      load<T, kPack>(map + ((tap / 3 - 1) * maps.row + tap % 3 - 1) * maps.stride, x);
      add(1.0f, x, box);
    }
    add(pool * share, box, value);
  }
}

// Grid: groups of images, V. Shared memory: the maps of nodes 0..nodes-2, a tile of sums for each warp.
template <typename Product, bool kAligned>
__global__ __launch_bounds__(kWarps * 32) void cell_kernel(MaskedCell args, Maps maps,
                                                           Folded<typename Product::T> folded) {
  using T = typename Product::T;
  constexpr int kPack = 16 / sizeof(T), kPacks = kTile / kPack;
  const CellShape& s = args.shape;
  const int v = static_cast<int>(blockIdx.y), first_image = static_cast<int>(blockIdx.x) * maps.images;
  const int images = min(maps.images, s.images - first_image);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int64_t image_values = static_cast<int64_t>(s.height) * s.width * s.channels;
  T* map = shared_memory<T>();
  float* sums_tile = reinterpret_cast<float*>(map + maps.values(s.nodes)) + warp * kTile * kTile;
  const int64_t variant_images = static_cast<int64_t>(v) * s.images;
  fill_maps<T, kPack, kAligned>(
      s, maps, images,
      static_cast<const T*>(args.x) + ((args.shared ? 0 : variant_images) + first_image) * image_values, map);
  T* const out = static_cast<T*>(args.out) + (variant_images + first_image) * image_values;
  const int groups = (maps.tiles + kTilesAtOnce - 1) / kTilesAtOnce, columns = s.padded() / kTile;
  for (int node = 1; node < s.nodes; ++node) {
    __syncthreads();
    const int64_t edge = static_cast<int64_t>(v) * s.edges() + node * (node - 1) / 2;
    const float* bias = folded.bias + (static_cast<int64_t>(v) * (s.nodes - 1) + node - 1) * s.padded();
    for (int task = warp; task < groups * columns; task += kWarps) {
      const int tile = task / columns * kTilesAtOnce, column = task % columns * kTile;
      const int tiles = min(kTilesAtOnce, maps.tiles - tile);
      typename Product::Sums sums[kTilesAtOnce];
      T* const from = map + static_cast<int64_t>(maps.lead + tile * kTile) * maps.stride;
      convolve<Product>(s, maps, node, tiles, from, folded.weights + column,
                        folded.first + static_cast<int64_t>(v) * s.edges(), sums);
#pragma unroll
      for (int t = 0; t < kTilesAtOnce; ++t) {
        if (t >= tiles) continue;
        __syncwarp();
        Product::store(sums_tile, sums[t]);
        __syncwarp();
        for (int i = lane; i < kTile * kPacks; i += 32) {
          const int position = (tile + t) * kTile + i / kPacks, channel = column + i % kPacks * kPack;
          const Pixel pixel = pixel_at(s, maps, images, position);
          if (!pixel.inside) continue;
          float value[kPack], term[kPack];
          load<float, kPack>(sums_tile + i * kPack, value);
          load<float, kPack>(bias + channel, term);
          add(1.0f, term, value);
          T* const at = map + static_cast<int64_t>(maps.lead + position) * maps.stride + channel;
          add_beside<T, kPack>(maps, node, args.alpha + edge * 5,
                               box_share(pixel.y, s.height) * box_share(pixel.x, s.width), at, value);
          if (node + 1 < s.nodes) {
            store<T, kPack>(at + node * maps.values(), value);
            continue;
          }
          const int64_t pixels = (static_cast<int64_t>(pixel.image) * s.height + pixel.y) * s.width + pixel.x;
          T* const to = out + pixels * s.channels + channel;
          if (kAligned && channel < s.channels) store<T, kPack>(to, value);
#pragma unroll
          for (int c = 0; c < kPack; ++c) {
            if (!kAligned && channel + c < s.channels) assign(to[c], value[c]);
          }
        }
      }
    }
  }
}

template <typename Product>
void launch_all(const MaskedCell& args, void* stream) {
  using T = typename Product::T;
  const CellShape& s = args.shape;
  const unsigned variants = static_cast<unsigned>(s.variants), edges = static_cast<unsigned>(s.edges());
  const Folded<T> folded(s, args.workspace);
  const Maps maps = choose_maps(s, shared_bytes_limit());
  launch("masked_cell prepare", prepare_kernel<T>, variants, 128, size_t{0}, stream, args, folded);
  const int per_edge = kTaps * s.padded() * s.padded();
  launch("masked_cell fold", fold_kernel<T>,
         {static_cast<unsigned>((per_edge + 1023) / 1024), edges, variants}, 256, size_t{0}, stream, args,
         folded);
  const bool in_packs = aligned(s.number, s.channels) && aligned(args.x) && aligned(args.out);
  const unsigned groups = static_cast<unsigned>((s.images + maps.images - 1) / maps.images);
  launch("masked_cell", in_packs ? cell_kernel<Product, true> : cell_kernel<Product, false>,
         {groups, variants}, kWarps * 32, static_cast<size_t>(maps.shared_bytes(s)), stream, args, maps,
         folded);
}

}  // namespace

const char* masked_cell_refuses(const CellShape& s) {
  if (s.nodes > kMostNodes) return "has too many nodes";
  if (s.variants > 65535) return "has too many variants for one launch";
  const bool large =
      static_cast<int64_t>(s.height) * s.width > 1 << 20 || s.channels > 1 << 14;  // for an int
  if (large || Maps(s, 1).shared_bytes(s) > shared_bytes_limit())
    return "has values that do not fit in a block's shared memory";
  return nullptr;
}

int64_t cell_workspace(const CellShape& s) {
  const int64_t edges = static_cast<int64_t>(s.variants) * s.edges();
  return edges * (kTaps * s.padded() * s.padded() * bytes_of(s.number) + 4) +
         static_cast<int64_t>(s.variants) * (s.nodes - 1) * s.padded() * 4;
}

void launch_masked_cell(const MaskedCell& args, void* stream) {
  switch (args.shape.number) {
    case Number::kFloat16:
      return launch_all<TensorCores<__half>>(args, stream);
    case Number::kBFloat16:
      return launch_all<TensorCores<__nv_bfloat16>>(args, stream);
    case Number::kFloat32:
      return args.tf32 ? launch_all<RoundedTensorCores>(args, stream) : launch_all<PlainFloat>(args, stream);
  }
}

}  // namespace vpdarts::cuda
