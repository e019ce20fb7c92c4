#include "emulation.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <stdexcept>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace emulation {
namespace {

int64_t launches = 0;  // so far

constexpr size_t kStackBytes = size_t{1} << 18;
constexpr unsigned kWarp = 32;

// A stack of execution, and what AddressSanitizer is told when it changes.
struct Context {
  ucontext_t registers;
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  void* fake_stack = nullptr;
};

void change(Context& from, Context& to, [[maybe_unused]] bool returns) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(returns ? &from.fake_stack : nullptr, to.stack, to.stack_bytes);
#endif
  swapcontext(&from.registers, &to.registers);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

// Where a fiber begins: AddressSanitizer learns of the stack that it came from.
void arrive([[maybe_unused]] Context& from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &from.stack, &from.stack_bytes);
#endif
}

enum class State { kReady, kAtBarrier, kInCollective, kDone };

struct Fiber {
  Context context;
  State state;
  int line;  // where it waits
};

// Lanes that wait for each other.
struct Collective {
  unsigned mask = 0, arrived = 0;
  int line = 0;
  void* mine[kWarp];
};

struct Schedule {
  enum class Order { kForward, kReverse, kRandom } order = Order::kForward;
  std::mt19937 random;

  Schedule() {
    const char* given = std::getenv("VPDARTS_EMULATION_SCHEDULE");
    const std::string name = given != nullptr ? given : "forward";
    if (name == "reverse") {
      order = Order::kReverse;
    } else if (name.rfind("random:", 0) == 0) {
      order = Order::kRandom;
      random.seed(static_cast<unsigned>(std::stoul(name.substr(7))));
    } else if (name != "forward") {
      throw std::runtime_error("VPDARTS_EMULATION_SCHEDULE must be forward, reverse or random:SEED; got " +
                               name);
    }
  }

  // One of the numbers 0..count-1 for which ready(i); count if there is none.
  template <typename Ready>
  unsigned choose(unsigned count, const Ready& ready) {
    const unsigned start = order == Order::kRandom ? random() % count : 0;
    for (unsigned i = 0; i < count; ++i) {
      const unsigned candidate = order == Order::kReverse ? count - 1 - i : (start + i) % count;
      if (ready(candidate)) return candidate;
    }
    return count;
  }
};

class Block;
Block* running = nullptr;

// The threads of one block.
class Block {
 public:
  Block(dim3 size, size_t shared, const std::function<void()>& thread, Schedule& schedule)
      : size_(size), count_(size.x * size.y * size.z), thread_(thread), schedule_(schedule) {
    if (shared > 0) {
      shared_.reset(static_cast<char*>(::operator new(shared, kAlignment)));
      std::memset(shared_.get(), 0xff, shared);
    }
    collectives_.resize((count_ + kWarp - 1) / kWarp);
    fibers_.resize(count_);
    for (unsigned i = 0; i < count_; ++i) start(i);
  }

  void run() {
    running = this;
    unsigned left = count_;
    while (left > 0 && error_.empty()) {
      current_ = schedule_.choose(count_, [&](unsigned i) { return fibers_[i].state == State::kReady; });
      if (current_ == count_) {
        error_ = deadlock();
        break;
      }
      threadIdx = {current_ % size_.x, current_ / size_.x % size_.y, current_ / (size_.x * size_.y)};
      change(main_, fibers_[current_].context, true);
      if (fibers_[current_].state == State::kDone) --left;
    }
    running = nullptr;
    if (!error_.empty()) throw std::runtime_error("CUDA emulation: " + error_);
  }

  [[noreturn]] void fail(const std::string& message) {
    error_ = message + " (thread " + std::to_string(current_) + ")";
    fibers_[current_].state = State::kDone;
    change(fibers_[current_].context, main_, false);
    std::abort();
  }

  void* shared() {
    if (!shared_) fail("the launch has asked for no shared memory");
    return shared_.get();
  }

  void barrier(int line) {
    if (at_barrier_ > 0 && line != barrier_line_)
      fail("threads wait at two barriers at once, lines " + std::to_string(barrier_line_) + " and " +
           std::to_string(line));
    barrier_line_ = line;
    if (++at_barrier_ < count_) return wait(State::kAtBarrier, line);
    at_barrier_ = 0;
    for (Fiber& fiber : fibers_) fiber.state = State::kReady;
    pause();
  }

  void collective(unsigned mask, void* mine, const std::function<void(void* const*)>& act, int line) {
    const unsigned lane = current_ % kWarp, warp = current_ / kWarp;
    const unsigned lanes = std::min(kWarp, count_ - warp * kWarp);
    Collective& meeting = collectives_[warp];
    if ((mask >> lane & 1) == 0 || (lanes < kWarp && mask >> lanes != 0))
      fail("a collective's mask without its own lane, or with lanes that are not there");
    if (meeting.arrived != 0 && (meeting.mask != mask || meeting.line != line))
      fail("lanes meet at two places at once, lines " + std::to_string(meeting.line) + " and " +
           std::to_string(line));
    meeting.mask = mask;
    meeting.line = line;
    meeting.mine[lane] = mine;
    meeting.arrived |= 1u << lane;
    if (meeting.arrived != mask) return wait(State::kInCollective, line);
    act(meeting.mine);
    meeting.arrived = 0;
    for (unsigned i = 0; i < lanes; ++i) {
      if (mask >> i & 1) fibers_[warp * kWarp + i].state = State::kReady;
    }
    pause();
  }

  unsigned current() const { return current_; }

 private:
  static constexpr std::align_val_t kAlignment{128};
  struct Free {
    void operator()(char* memory) const { ::operator delete(memory, kAlignment); }
  };

  // One stack per thread, kept for all launches.
  static char* stack(unsigned i) {
    static std::vector<char*> stacks;
    while (stacks.size() <= i) {
      void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (memory == MAP_FAILED) throw std::bad_alloc();
      stacks.push_back(static_cast<char*>(memory));
    }
    return stacks[i];
  }

  static void enter() {
    Block& block = *running;
    const unsigned i = block.current_;
    arrive(block.main_);
    block.thread_();
    block.fibers_[i].state = State::kDone;
    change(block.fibers_[i].context, block.main_, false);
  }

  void start(unsigned i) {
    Context& context = fibers_[i].context;
    fibers_[i].state = State::kReady;
    context.stack = stack(i);
    context.stack_bytes = kStackBytes;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(context.stack, kStackBytes);
#endif
    getcontext(&context.registers);
    context.registers.uc_stack.ss_sp = stack(i);
    context.registers.uc_stack.ss_size = kStackBytes;
    makecontext(&context.registers, &Block::enter, 0);
  }

  // Lets another thread run.
  void pause() { change(fibers_[current_].context, main_, true); }

  void wait(State state, int line) {
    fibers_[current_].state = state;
    fibers_[current_].line = line;
    pause();
  }

  std::string deadlock() const {
    for (unsigned i = 0; i < count_; ++i) {
      if (fibers_[i].state != State::kDone)
        return "thread " + std::to_string(i) + " waits at line " + std::to_string(fibers_[i].line) +
               " for threads that do not come";
    }
    return "no thread to run";
  }

  dim3 size_;
  unsigned count_, current_ = 0, at_barrier_ = 0;
  int barrier_line_ = 0;
  const std::function<void()>& thread_;
  Schedule& schedule_;
  Context main_;
  std::unique_ptr<char, Free> shared_;
  std::vector<Collective> collectives_;
  std::vector<Fiber> fibers_;
  std::string error_;
};

}  // namespace

void run(dim3 grid, dim3 block, size_t shared, const std::function<void()>& thread) {
  ++launches;
  Schedule schedule;
  std::vector<size_t> order(size_t{grid.x} * grid.y * grid.z);
  std::iota(order.begin(), order.end(), size_t{0});
  if (schedule.order == Schedule::Order::kReverse) std::reverse(order.begin(), order.end());
  if (schedule.order == Schedule::Order::kRandom) std::shuffle(order.begin(), order.end(), schedule.random);
  gridDim = grid;
  blockDim = block;
  for (const size_t i : order) {
    blockIdx = {static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y),
                static_cast<unsigned>(i / (size_t{grid.x} * grid.y))};
    Block(block, shared, thread, schedule).run();
  }
}

extern "C" int64_t emulated_launches() { return launches; }

void fail(const std::string& message) { running->fail(message); }

void* shared_memory() { return running->shared(); }

void block_barrier(int line) { running->barrier(line); }

void collective(unsigned mask, void* mine, const std::function<void(void* const*)>& act, int line) {
  running->collective(mask, mine, act, line);
}

unsigned lane() { return running->current() % kWarp; }

}  // namespace emulation
