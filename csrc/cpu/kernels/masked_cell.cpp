// masked_cell: every node is  sum_e [ W_e * relu(x_e) + b_e + skip_e x_e + pool_e pool(x_e) ], batch norm
// and alpha folded into W_e and b_e. See masked_cell.h for the layout inside.
//
// Compiled once per instruction set; VPDARTS_ISA names the namespace.
#include "masked_cell.h"

#include <cstddef>

#include "winograd.h"

namespace {

using vpdarts::cpu::Addend;
using vpdarts::cpu::BlockShape;
using vpdarts::cpu::ConstImageView;
using vpdarts::cpu::EdgeTerm;
using vpdarts::cpu::ImageView;
using vpdarts::cpu::Product;
using vpdarts::cpu::SharedPlan;

constexpr int64_t kMaxNodes = 6;

int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

// Sizes that follow from a block's shape; in floats where they are sizes of memory.
struct Layout {
  explicit Layout(const BlockShape& s)
      : shape(s),
        tile_rows((s.height + 3) / 4),
        tile_columns((s.width + 3) / 4),
        tiles(s.images * tile_rows * tile_columns),
        map_row((4 * tile_columns + 2) * s.padded),
        map_image((4 * tile_rows + 2) * map_row),
        map_floats(round_up(s.images * map_image, 16)),
        point_stride(tiles * s.padded + kCacheLine),
        transformed_floats(round_up(kPoints * point_stride, 16)),
        product_floats(round_up(kPoints * product_stride(2), 16)) {}

  // Floats between the points of products of a block of `vecs` vectors.
  int64_t product_stride(int64_t vecs) const { return tiles * vecs * kLanes + kCacheLine; }

  // The first pixel of the image inside a map.
  float* inside(float* map) const { return map + map_row + shape.padded; }
  ImageView view(float* map) const { return {inside(map), map_image, map_row, shape.padded, 1}; }

  BlockShape shape;
  int64_t tile_rows, tile_columns, tiles, map_row, map_image, map_floats, point_stride, transformed_floats,
      product_floats;
};

// A value of a node: the map, its pool and its transformed rectification.
struct Node {
  float* map;
  float* pool;
  float* transformed;
};

void zero(float* p, int64_t count) {
  __builtin_memset(p, 0, sizeof(float) * static_cast<std::size_t>(count));
}

// Copies images of any strides into a map whose border is zero already.
void read_images(const Layout& layout, ConstImageView x, float* map) {
  const BlockShape& s = layout.shape;
  const ImageView out = layout.view(map);
  for (int64_t b = 0; b < s.images; ++b) {
    for (int64_t y = 0; y < s.height; ++y) {
      const float* from = x.data + b * x.image + y * x.row;
      float* to = out.data + b * out.image + y * out.row;
      if (x.channel == 1 && x.pixel == s.padded && s.channels == s.padded) {
        __builtin_memcpy(to, from, sizeof(float) * static_cast<std::size_t>(s.width * s.padded));
        continue;
      }
      for (int64_t c = 0; c < s.channels; ++c) {
        for (int64_t i = 0; i < s.width; ++i) to[i * s.padded + c] = from[i * x.pixel + c * x.channel];
      }
    }
  }
}

// Of pixels i-1, i, i+1, how many are inside 0..size-1.
inline float box(int64_t i, int64_t size) { return static_cast<float>(1 + (i > 0) + (i < size - 1)); }

// out = the 3x3 average of x in the tile whose 6x6 pixels begin at x; out is its place in the map of pools.
inline __attribute__((always_inline)) void pool_tile(const Layout& layout, const float* x, int64_t y,
                                                     int64_t column, float* out) {
  const BlockShape& s = layout.shape;
  Vec rows[24];
  for (int i = 0; i < 6; ++i) {
    Vec pixel[6];
    for (int r = 0; r < 6; ++r) pixel[r] = load(x + r * layout.map_row + i * s.padded);
    for (int r = 0; r < 4; ++r) rows[6 * r + i] = pixel[r] + pixel[r + 1] + pixel[r + 2];
  }
  for (int r = 0; r < 4; ++r) {
    const Vec* row = rows + 6 * r;
    for (int i = 0; i < 4; ++i) {
      const float count = box(y + r, s.height) * box(column + i, s.width);
      store(out + r * layout.map_row + i * s.padded, (row[i] + row[i + 1] + row[i + 2]) * (1.0f / count));
    }
  }
}

// node.transformed = B^T relu(x) B of every tile, and node.pool = the 3x3 average of x.
void transform_node(const Layout& layout, const Node& node) {
  const BlockShape& s = layout.shape;
  int64_t tile = 0;
  for (int64_t b = 0; b < s.images; ++b) {
    for (int64_t ty = 0; ty < layout.tile_rows; ++ty) {
      for (int64_t tx = 0; tx < layout.tile_columns; ++tx, ++tile) {
        const int64_t corner = b * layout.map_image + 4 * ty * layout.map_row + 4 * tx * s.padded;
        for (int64_t c = 0; c < s.padded; c += kLanes) {
          const float* x = node.map + corner + c;
          Vec half[36];
          for (int i = 0; i < 6; ++i) {
            Vec column[6];
            for (int r = 0; r < 6; ++r) column[r] = relu(load(x + r * layout.map_row + i * s.padded));
            transform_input_6(column, 1, half + i, 6);
          }
          float* out = node.transformed + tile * s.padded + c;
          for (int r = 0; r < 6; ++r) {
            Vec done[6];
            transform_input_6(half + 6 * r, 1, done, 1);
            for (int i = 0; i < 6; ++i) store(out + (6 * r + i) * layout.point_stride, done[i]);
          }
          pool_tile(layout, x, 4 * ty, 4 * tx, node.pool + corner + layout.map_row + s.padded + c);
        }
      }
    }
  }
}

// What is added to a convolution's output at each pixel.
struct Beside {
  const float* map;  // of the source node, or its pool
  float factor;
};

// out = the inverse transform of m (one block of kVecs vectors from channel c0) + bias + beside.
template <int kVecs>
void write_block(const Layout& layout, const float* m, int64_t c0, const float* bias, const Beside* beside,
                 int64_t beside_count, ImageView out) {
  const BlockShape& s = layout.shape;
  constexpr int64_t kBlock = kVecs * kLanes;
  int64_t tile = 0;
  for (int64_t b = 0; b < s.images; ++b) {
    for (int64_t ty = 0; ty < layout.tile_rows; ++ty) {
      for (int64_t tx = 0; tx < layout.tile_columns; ++tx, ++tile) {
        const int64_t rows = s.height - 4 * ty < 4 ? s.height - 4 * ty : 4;
        const int64_t columns = s.width - 4 * tx < 4 ? s.width - 4 * tx : 4;
        const int64_t corner = b * layout.map_image + (4 * ty + 1) * layout.map_row + (4 * tx + 1) * s.padded;
        for (int n = 0; n < kVecs; ++n) {
          const int64_t c = c0 + n * kLanes;
          Vec half[24];
          const float* from = m + tile * kBlock + n * kLanes;
          for (int i = 0; i < 6; ++i) {
            const float* column = from + i * layout.product_stride(kVecs);
            const int64_t step = 6 * layout.product_stride(kVecs);
            transform_output_4(load(column), load(column + step), load(column + 2 * step),
                               load(column + 3 * step), load(column + 4 * step), load(column + 5 * step),
                               half + i, 6);
          }
          const Vec offset = load(bias + c);
          for (int64_t r = 0; r < rows; ++r) {
            const Vec* h = half + 6 * r;
            Vec done[4];
            transform_output_4(h[0], h[1], h[2], h[3], h[4], h[5], done, 1);
            for (int i = 0; i < 4; ++i) done[i] += offset;
            const int64_t pixel = corner + r * layout.map_row + c;
            float* to = out.data + b * out.image + (4 * ty + r) * out.row + 4 * tx * out.pixel + c;
            for (int64_t k = 0; k < beside_count; ++k) {
              const float* map = beside[k].map + pixel;  // has room for whole tiles
              for (int i = 0; i < 4; ++i) done[i] += beside[k].factor * load(map + i * s.padded);
            }
            if (columns == 4) {
              for (int i = 0; i < 4; ++i) store(to + i * out.pixel, done[i]);
            } else {
              for (int64_t i = 0; i < columns; ++i) store(to + i * out.pixel, done[i]);
            }
          }
        }
      }
    }
  }
}

// out = sum over k edges of their convolution, bias, skip and pool. sources [k], terms [k].
void sum_edges(const Layout& layout, const Node* sources, const EdgeTerm* terms, int64_t k, ImageView out,
               float* m, float* bias) {
  const BlockShape& s = layout.shape;
  Operand operands[kMaxNodes];
  Beside beside[2 * kMaxNodes];
  int64_t convolutions = 0, beside_count = 0;
  zero(bias, s.padded);
  for (int64_t e = 0; e < k; ++e) {
    if (terms[e].weight != nullptr) {
      operands[convolutions++] = {sources[e].transformed, terms[e].weight};
      for (int64_t c = 0; c < s.padded; ++c) bias[c] += terms[e].bias[c];
    }
    if (terms[e].skip != 0) beside[beside_count++] = {sources[e].map, terms[e].skip};
    if (terms[e].pool != 0) beside[beside_count++] = {sources[e].pool, terms[e].pool};
  }
  for (int64_t c = 0; c < s.padded; c += 2 * kLanes) {
    const bool two = c + 2 * kLanes <= s.padded;
    for (int64_t point = 0; point < kPoints; ++point) {
      const int64_t tiles = point * layout.point_stride, weight = (point * s.padded + c) * s.padded;
      float* to = m + point * layout.product_stride(two ? 2 : 1);
      if (two) {
        products<2>(operands, convolutions, layout.tiles, tiles, weight, s.padded, s.padded, to, 2 * kLanes);
      } else {
        products<1>(operands, convolutions, layout.tiles, tiles, weight, s.padded, s.padded, to, kLanes);
      }
    }
    if (two) {
      write_block<2>(layout, m, c, bias, beside, beside_count, out);
    } else {
      write_block<1>(layout, m, c, bias, beside, beside_count, out);
    }
  }
}

// out = sum of maps times factors, pixel by pixel.
void sum_maps(const Layout& layout, const Beside* terms, int64_t count, ImageView out) {
  const BlockShape& s = layout.shape;
  for (int64_t b = 0; b < s.images; ++b) {
    for (int64_t y = 0; y < s.height; ++y) {
      const int64_t from = b * layout.map_image + (y + 1) * layout.map_row + s.padded;
      float* to = out.data + b * out.image + y * out.row;
      for (int64_t i = 0; i < s.width; ++i) {
        for (int64_t c = 0; c < s.padded; c += kLanes) {
          const int64_t at = from + i * s.padded + c;
          Vec value = terms[0].factor * load(terms[0].map + at);
          for (int64_t k = 1; k < count; ++k) value += terms[k].factor * load(terms[k].map + at);
          store(to + i * out.pixel + c, value);
        }
      }
    }
  }
}

// Takes pieces off the scratch memory. Maps are handed out with a zero border.
class Arena {
 public:
  Arena(const Layout& layout, float* scratch) : layout_(layout), next_(scratch) {}
  float* take(int64_t floats) {
    float* piece = next_;
    next_ += floats;
    return piece;
  }
  float* map() {
    float* piece = take(layout_.map_floats);
    zero(piece, layout_.map_floats);
    return piece;
  }
  Node node() {
    float* map = this->map();
    float* pool = take(layout_.map_floats);
    return {map, pool, take(layout_.transformed_floats)};
  }

 private:
  const Layout& layout_;
  float* next_;
};

int64_t node_floats(const Layout& layout) { return 2 * layout.map_floats + layout.transformed_floats; }

void transform_weight(int64_t channels, int64_t padded, const float* conv_1x1, const float* conv_3x3,
                      const float* scale_1x1, const float* scale_3x3, float* weight) {
  pack_weight(channels, padded, weight, [&](int64_t from, int64_t to, float* w) {
    const int64_t pair = to * channels + from;
    for (int64_t i = 0; i < 9; ++i) w[i] = conv_3x3[pair * 9 + i] * scale_3x3[to];
    w[4] += conv_1x1[pair] * scale_1x1[to];
  });
}

int64_t single_scratch(const BlockShape& shape, int64_t nodes) {
  const Layout layout(shape);
  return (nodes - 1) * node_floats(layout) + layout.product_floats + round_up(shape.padded, 16);
}

void single(const BlockShape& shape, int64_t nodes, const EdgeTerm* terms, ConstImageView x, ImageView out,
            float* scratch) {
  const Layout layout(shape);
  Arena arena(layout, scratch);
  float* m = arena.take(layout.product_floats);
  float* bias = arena.take(round_up(shape.padded, 16));
  Node node[kMaxNodes];
  for (int64_t i = 0; i + 1 < nodes; ++i) {
    node[i] = arena.node();
    if (i == 0) {
      read_images(layout, x, node[0].map);
    } else {
      sum_edges(layout, node, terms, i, layout.view(node[i].map), m, bias);
      terms += i;
    }
    transform_node(layout, node[i]);
  }
  sum_edges(layout, node, terms, nodes - 1, out, m, bias);
}

int64_t shared_scratch(const BlockShape& shape, const SharedPlan& plan) {
  const Layout layout(shape);
  int64_t values = 0, products = 0;
  for (int64_t i = 0; i + 1 < plan.nodes; ++i) values += plan.values[i];
  for (int64_t i = 1; i < plan.nodes; ++i)
    products = plan.products[i] > products ? plan.products[i] : products;
  // A Node takes three pointers: six floats.
  return values * node_floats(layout) + products * layout.map_floats + layout.product_floats +
         round_up(shape.padded, 16) + round_up(6 * values, 16) + 16;
}

void shared(const BlockShape& shape, const SharedPlan& plan, ConstImageView x, const ImageView* out,
            float* scratch) {
  const Layout layout(shape);
  Arena arena(layout, scratch);
  float* m = arena.take(layout.product_floats);
  float* bias = arena.take(round_up(shape.padded, 16));
  int64_t values = 0, most_products = 0;
  for (int64_t i = 0; i + 1 < plan.nodes; ++i) values += plan.values[i];
  for (int64_t i = 1; i < plan.nodes; ++i) {
    most_products = plan.products[i] > most_products ? plan.products[i] : most_products;
  }
  Node* const all = reinterpret_cast<Node*>(arena.take(round_up(6 * values, 16)));
  float* const products = arena.take(most_products * layout.map_floats);
  Node* node[kMaxNodes];  // node[i][u]
  node[0] = all;
  node[0][0] = arena.node();
  read_images(layout, x, node[0][0].map);
  transform_node(layout, node[0][0]);
  for (int64_t i = 1; i < plan.nodes; ++i) {
    for (int64_t p = 0; p < plan.products[i]; ++p) {
      const Product& product = plan.product[i][p];
      sum_edges(layout, &node[product.edge][product.source], &product.term, 1,
                layout.view(products + p * layout.map_floats), m, bias);
    }
    const bool last = i + 1 == plan.nodes;
    if (!last) node[i] = node[i - 1] + plan.values[i - 1];
    for (int64_t u = 0; u < plan.values[i]; ++u) {
      Beside terms[3 * kMaxNodes];
      int64_t count = 0;
      for (int64_t j = 0; j < i; ++j) {
        const Addend& addend = plan.addends[i][u * i + j];
        const Node& source = node[j][plan.product[i][addend.product].source];
        terms[count++] = {products + addend.product * layout.map_floats, 1.0f};
        if (addend.skip != 0) terms[count++] = {source.map, addend.skip};
        if (addend.pool != 0) terms[count++] = {source.pool, addend.pool};
      }
      if (last) {
        sum_maps(layout, terms, count, out[u]);
        continue;
      }
      node[i][u] = arena.node();
      sum_maps(layout, terms, count, layout.view(node[i][u].map));
      transform_node(layout, node[i][u]);
    }
  }
}

}  // namespace

namespace vpdarts::cpu::VPDARTS_ISA {

const MaskedCellKernels& masked_cell_kernels() {
  static const MaskedCellKernels kernels = {
      kLanes, weight_floats, transform_weight, single_scratch, single, shared_scratch, shared};
  return kernels;
}

}  // namespace vpdarts::cpu::VPDARTS_ISA
