// Stands in for csrc/cuda/ops/device.h: tensors on the CPU are where emulated kernels run.
#pragma once

#include <torch/csrc/stable/tensor.h>

namespace vpdarts::cuda {

struct OnDeviceOf {
  explicit OnDeviceOf(const torch::stable::Tensor&) {}
  void* stream() const { return nullptr; }
};

}  // namespace vpdarts::cuda

// The ops behind this header are registered for CPU tensors.
#define CUDA CPU
