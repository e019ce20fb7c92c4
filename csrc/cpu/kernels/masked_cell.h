// The torch-free interface of the masked_cell kernels; one table of functions per instruction set.
//
// Inside, channels are padded to `padded` = a multiple of the lane count, and images are padded NHWC
// maps: 4*ceil(H/4) + 2 rows of 4*ceil(W/4) + 2 pixels, the image at (1, 1), zeros around it. A 3x3
// convolution is Winograd F(4x4, 3x3): 36 products of [tiles, C] x [C, C] matrices.
#pragma once

#include <cstdint>

#include "block.h"
#include "isas.h"

namespace vpdarts::cpu {

// Sizes of one unit of work: a block of images.
struct BlockShape {
  int64_t images, height, width, channels, padded;
};

// One edge under one row of alphas: its folded convolution, and the coefficients beside it.
struct EdgeTerm {
  const float* weight;  // transformed, [36][padded / block][padded][block]; null where it has no convolution
  const float* bias;    // [padded]
  float skip, pool;
};

// A convolution of one value of the source node, computed once for all node values that contain it.
struct Product {
  int64_t edge;    // position among the node's incoming edges, and so the source node
  int64_t source;  // which value of the source node
  EdgeTerm term;
};

// What a node value adds up: per incoming edge a product and what its skip and pool differ by.
struct Addend {
  int64_t product;
  float skip, pool;
};

// A cell whose input all variants share. Node i (from 1) has values[i] distinct values; addends[i] holds
// i addends for each of them.
struct SharedPlan {
  int64_t nodes;
  const int64_t* values;          // [nodes]
  const int64_t* products;        // [nodes], how many
  const Product* const* product;  // [nodes][products[i]]
  const Addend* const* addends;   // [nodes][values[i] * i]
};

struct MaskedCellKernels {
  int64_t lanes;
  // Floats of transformed weight of one edge.
  int64_t (*weight_floats)(int64_t padded);
  // weight = G W G^T of W = conv_1x1 (centre tap) * scale_1x1[c_out] + conv_3x3 * scale_3x3[c_out].
  // conv_1x1 [C, C], conv_3x3 [C, C, 3, 3], c_out first.
  void (*transform_weight)(int64_t channels, int64_t padded, const float* conv_1x1, const float* conv_3x3,
                           const float* scale_1x1, const float* scale_3x3, float* weight);
  // Floats of scratch memory, 64-byte aligned, for one thread.
  int64_t (*single_scratch)(const BlockShape& shape, int64_t nodes);
  // The cell of one variant: terms [E] in edge order.
  void (*single)(const BlockShape& shape, int64_t nodes, const EdgeTerm* terms, ConstImageView x,
                 ImageView out, float* scratch);
  int64_t (*shared_scratch)(const BlockShape& shape, const SharedPlan& plan);
  // The cell of all variants: out[u] for each value of the last node.
  void (*shared)(const BlockShape& shape, const SharedPlan& plan, ConstImageView x, const ImageView* out,
                 float* scratch);
};

VPDARTS_IN_EVERY_ISA(const MaskedCellKernels& masked_cell_kernels();)

}  // namespace vpdarts::cpu
