// The kernels of the instruction set in use.
#pragma once

#include "cpu/dispatch.h"
#include "cpu/kernels/gather.h"
#include "cpu/kernels/masked_cell.h"
#include "cpu/kernels/mixed_cell.h"
#include "cpu/kernels/mixed_op.h"
#include "cpu/kernels/mixed_sum.h"
#include "cpu/kernels/relu_conv.h"
#include "cpu/kernels/residual_block.h"
#include "cpu/kernels/trained_residual_block.h"

namespace vpdarts::cpu {

struct Kernels {
  const GatherKernels& gather;
  const ReluConvKernels& relu_conv;
  const MixedCellKernels& mixed_cell;
  const MixedSumKernels& mixed_sum;
  const MaskedCellKernels& masked_cell;
  const ResidualBlockKernels& residual_block;
  const TrainedResidualBlockKernels& trained_residual_block;
  const MixedOpKernels& mixed_op;
};

// Of active_isa(), but with narrower vectors where those hold all channels.
const Kernels& active_kernels(int64_t channels);

}  // namespace vpdarts::cpu
