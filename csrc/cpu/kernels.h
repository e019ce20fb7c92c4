// The kernels of the instruction set in use.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/kernels/gather.h"
#include "cpu/kernels/masked_cell.h"
#include "cpu/kernels/mixed_cell.h"
#include "cpu/kernels/mixed_op.h"
#include "cpu/kernels/mixed_sum.h"
#include "cpu/kernels/relu_conv.h"
#include "cpu/kernels/relu_pointwise.h"
#include "cpu/kernels/residual_block.h"
#include "cpu/kernels/trained_residual_block.h"

// The one list of all tables: name and type. name_kernels(), in every instruction set, returns the table.
#define VPDARTS_KERNEL_TABLES(TABLE)          \
  TABLE(gather, GatherKernels)                \
  TABLE(relu_conv, ReluConvKernels)           \
  TABLE(relu_pointwise, ReluPointwiseKernels) \
  TABLE(mixed_sum, MixedSumKernels)           \
  TABLE(mixed_op, MixedOpKernels)             \
  TABLE(mixed_cell, MixedCellKernels)         \
  TABLE(masked_cell, MaskedCellKernels)       \
  TABLE(residual_block, ResidualBlockKernels) \
  TABLE(trained_residual_block, TrainedResidualBlockKernels)

namespace vpdarts::cpu {

struct Kernels {
#define VPDARTS_FIELD(name, Type) const Type& name;
  VPDARTS_KERNEL_TABLES(VPDARTS_FIELD)
#undef VPDARTS_FIELD
};

// Of active_isa(), but with narrower vectors where those hold all channels.
const Kernels& active_kernels(int64_t channels);

}  // namespace vpdarts::cpu
