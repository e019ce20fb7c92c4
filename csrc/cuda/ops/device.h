// Where an op's kernels run.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

// In the library of a PyTorch with CUDA; null under any other, which has no CUDA tensors either.
extern "C" __attribute__((weak)) int32_t aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace vpdarts::cuda {

// While it lives, a tensor's device is the current one.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const torch::stable::Tensor& tensor)
      : device_(tensor.get_device_index()), guard_(device_) {}

  // PyTorch's current stream of that device.
  void* stream() const {
    void* result = nullptr;
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr &&
                        aoti_torch_get_current_cuda_stream(device_, &result) == 0,
                    "this PyTorch has no current CUDA stream");
    return result;
  }

 private:
  int32_t device_;
  torch::stable::accelerator::DeviceGuard guard_;
};

}  // namespace vpdarts::cuda
