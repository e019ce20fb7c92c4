// Runs CUDA kernels on a CPU: what the headers beside this file stand on.
//
// The threads of a block are fibers of one thread of the system; they change only where they wait for each
// other, in an order that VPDARTS_EMULATION_SCHEDULE names: forward, reverse, or random:SEED, which also
// shuffles the blocks. So a missing barrier gives another result than the right one, and always the same.
// Dynamic shared memory is exactly as large as asked for, and full of NaN when a block starts.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct uint3 {
  unsigned x, y, z;
};

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulation {

// Calls `thread` once for every thread of the grid. Raises std::runtime_error for what `fail` says.
void run(dim3 grid, dim3 block, size_t shared, const std::function<void()>& thread);

// Ends the launch with this message; to be called by a thread of a kernel.
[[noreturn]] void fail(const std::string& message);

// The block's dynamic shared memory; an error where the launch has asked for none.
void* shared_memory();

// Waits for all threads of the block; `line` is the caller's, and must be the same for all of them.
void block_barrier(int line);

// Waits for the lanes in `mask`. The last one to come calls act(lanes), lanes[i] what lane i gave as `mine`.
void collective(unsigned mask, void* mine, const std::function<void(void* const* lanes)>& act, int line);

// The thread's place in its warp.
unsigned lane();

}  // namespace emulation
