// The fibers that stand for the threads of a block, and what they wait for. cuda_runtime.h includes this file after the
// types of CUDA that it needs.
#pragma once

namespace cuda_on_cpu {

// An error in a kernel. The launch throws it.
struct KernelError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Switches between stacks. (The C library's swapcontext makes a system call each time.)
extern "C" void cuda_on_cpu_switch(void** save_stack, void* load_stack);
asm(R"(
.text
.weak cuda_on_cpu_switch
.type cuda_on_cpu_switch, @function
cuda_on_cpu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size cuda_on_cpu_switch, .-cuda_on_cpu_switch
)");

constexpr size_t kStack = 128 << 10;

// An asynchronous copy that a thread has started. It is carried out at the wait, so that tests detect a missing wait.
struct Copy {
  void* to;
  const void* from;
  size_t bytes, valid;
  void run() const {
    std::memcpy(to, from, valid);
    std::memset(static_cast<char*>(to) + valid, 0, bytes - valid);
  }
};

struct Thread {
  std::unique_ptr<char[]> stack{new char[kStack]};
  void* stack_pointer = nullptr;
  uint3 index;
  std::function<bool()> waits_for;  // The thread can run if this is empty or returns true.
  const char* where = "";           // the function that it waits in
  bool done = false;
  std::vector<Copy> asked;
  std::deque<std::vector<Copy>> groups;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
#endif
};

// The lanes of one mask in a warp, which exchange values.
struct Group {
  unsigned arrived = 0, round = 0;
  std::vector<char> values[2][32];
};

struct Block {
  std::vector<std::unique_ptr<Thread>> threads;  // reused by later blocks, to keep their stacks
  size_t size = 0, alive = 0, at_barrier = 0, barriers = 0;
  std::map<std::pair<size_t, unsigned>, Group> groups;                        // by warp and mask
  std::map<const void*, std::unique_ptr<char, decltype(&std::free)>> shared;  // by the address of a static key
  size_t dynamic_bytes = 0;
  size_t current = 0;
  std::function<void()> kernel;
  std::exception_ptr error;
  void* scheduler = nullptr;  // its stack pointer while a thread runs
  std::mt19937_64 random;
  uint64_t order = 0;  // 0: threads run in the order of their indices; otherwise the seed of a random order
#if defined(__SANITIZE_ADDRESS__)
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_size = 0;
#endif
};
inline Block block;
inline Thread& self() { return *block.threads[block.current]; }

inline void to_scheduler(bool last = false) {
#if defined(__SANITIZE_ADDRESS__)
  Thread& me = self();
  __sanitizer_start_switch_fiber(last ? nullptr : &me.fake_stack, block.scheduler_stack, block.scheduler_stack_size);
#endif
  cuda_on_cpu_switch(&self().stack_pointer, block.scheduler);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(me.fake_stack, &block.scheduler_stack, &block.scheduler_stack_size);
#endif
  (void)last;
}

inline void to_thread(Thread& thread) {
  threadIdx = thread.index;
#if defined(__SANITIZE_ADDRESS__)
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, thread.stack.get(), kStack);
#endif
  cuda_on_cpu_switch(&block.scheduler, thread.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

// Run other threads until `ready` returns true.
inline void wait(const char* where, std::function<bool()> ready) {
  Thread& me = self();
  me.where = where;
  me.waits_for = std::move(ready);
  to_scheduler();
  if (block.error) throw KernelError("stopped");  // unwinds this thread; the first error is reported
}

inline void thread_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack, &block.scheduler_stack_size);
#endif
  try {
    block.kernel();
    if (!self().asked.empty() || !self().groups.empty())
      throw KernelError("a thread ended without waiting for its asynchronous copies");
  } catch (...) {
    if (!block.error) block.error = std::current_exception();
  }
  self().done = true;
  --block.alive;
  to_scheduler(true);
}

inline void run_block() {
  block.groups.clear();
  block.shared.clear();
  block.alive = block.size;
  block.at_barrier = block.barriers = 0;
  block.error = nullptr;
  while (block.threads.size() < block.size) block.threads.push_back(std::make_unique<Thread>());
  for (size_t i = 0; i < block.size; ++i) {
    Thread& thread = *block.threads[i];
    const unsigned n = static_cast<unsigned>(i);
    thread.index = {n % blockDim.x, n / blockDim.x % blockDim.y, n / blockDim.x / blockDim.y};
    thread.waits_for = nullptr;
    thread.done = false;
    thread.asked.clear();
    thread.groups.clear();
    auto** top = reinterpret_cast<void**>(thread.stack.get() + kStack);
    *--top = nullptr;  // stack alignment, as after a call
    *--top = reinterpret_cast<void*>(&thread_main);
    std::fill(top - 6, top, nullptr);  // the registers that the switch pops
    thread.stack_pointer = top - 6;
  }
  std::vector<size_t> order(block.size);
  std::iota(order.begin(), order.end(), 0);
  while (block.alive) {
    if (block.order) std::shuffle(order.begin(), order.end(), block.random);
    bool moved = false;
    for (size_t i : order) {
      Thread& thread = *block.threads[i];
      if (thread.done || (thread.waits_for && !block.error && !thread.waits_for())) continue;
      thread.waits_for = nullptr;
      block.current = i;
      to_thread(thread);
      moved = true;
    }
    if (!moved) {
      std::string waiting;
      for (size_t i : order) {
        const Thread& thread = *block.threads[i];
        if (!thread.done && waiting.find(thread.where) == std::string::npos) waiting += std::string(" ") + thread.where;
      }
      block.error = std::make_exception_ptr(KernelError("threads wait for others that never come, in:" + waiting));
    }
  }
  if (block.error) std::rethrow_exception(block.error);
}

inline uint64_t collectives = 0;

// Exchange values between the lanes of `mask`. Returns 32 values, empty for lanes outside the mask. They stay valid
// until the lane's second exchange after this one.
inline const std::vector<char>* exchange(const char* where, unsigned mask, const void* value, size_t bytes) {
  const size_t lane = block.current % 32;
  if (!(mask >> lane & 1)) throw KernelError(std::string(where) + ": the calling lane is not in its mask");
  Group& group = block.groups[{block.current / 32, mask}];
  const unsigned round = group.round;
  const auto* bytes_of_value = static_cast<const char*>(value);
  group.values[round % 2][lane].assign(bytes_of_value, bytes_of_value + bytes);
  if (++group.arrived == static_cast<unsigned>(__builtin_popcount(mask))) {
    group.arrived = 0;
    ++group.round;
    ++collectives;
  } else {
    wait(where, [&group, round] { return group.round != round; });
  }
  return group.values[round % 2];
}

template <typename T>
T shuffle(const char* where, unsigned mask, T value, int from, int width) {
  const int lane = static_cast<int>(block.current % 32), first = lane / width * width;
  const auto* values = exchange(where, mask, &value, sizeof(T));
  if (from < first || from >= first + width) return value;
  if (!(mask >> from & 1)) throw KernelError(std::string(where) + ": reads a lane that is not in its mask");
  std::memcpy(&value, values[from].data(), sizeof(T));
  return value;
}

// Shared memory of this block, filled with 0xff, which reads as NaN. `key` identifies the allocation.
inline void* shared(const void* key, size_t bytes) {
  auto [found, fresh] = block.shared.try_emplace(key, nullptr, &std::free);
  if (fresh) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 128, bytes) != 0) throw std::bad_alloc();
    found->second.reset(static_cast<char*>(std::memset(memory, 0xff, bytes)));
  }
  return found->second.get();
}

inline void copy_async(void* to, const void* from, size_t bytes, size_t valid) {
  self().asked.push_back({to, from, bytes, valid});
}
inline void copy_commit() {
  self().groups.push_back(std::move(self().asked));
  self().asked.clear();
}
inline void copy_wait(size_t on_their_way) {
  for (auto& groups = self().groups; groups.size() > on_their_way; groups.pop_front())
    for (const Copy& copy : groups.front()) copy.run();
}

// For the tests. 0: threads run in the order of their indices; otherwise the seed of a random order.
extern "C" __attribute__((used, weak, visibility("default"))) void cuda_on_cpu_order(uint64_t seed) {
  block.order = seed;
  block.random.seed(seed);
}

// For the tests: the number of multiprocessors that launches are sized for.
inline int multiprocessors = 1;
extern "C" __attribute__((used, weak, visibility("default"))) void cuda_on_cpu_multiprocessors(int count) {
  multiprocessors = count;
}

// For the tests: the bytes of shared memory that a block may use.
inline size_t shared_bytes_of_block = 227 << 10;
extern "C" __attribute__((used, weak, visibility("default"))) void cuda_on_cpu_shared_bytes(int bytes) {
  shared_bytes_of_block = static_cast<size_t>(bytes);
}

// For the tests: warp collectives since the program began, counted once for all lanes.
extern "C" __attribute__((used, weak, visibility("default"))) uint64_t cuda_on_cpu_collectives() { return collectives; }

}  // namespace cuda_on_cpu
