// Preloaded beside ThreadSanitizer: the kernels' parallel_for on four threads of the C++ library, and torch's own work
// on one. OpenMP's threads wait for each other by means that ThreadSanitizer does not know, so it reports races that
// are none.
#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

extern "C" int32_t torch_get_num_threads(uint32_t* count) {
  *count = 4;
  return 0;
}

extern "C" int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t grain, void (*run)(int64_t, int64_t, void*),
                                      void* context) {
  const int64_t share = std::max((end - begin + 3) / 4, std::max<int64_t>(grain, 1));
  std::vector<std::thread> threads;
  for (; begin < end; begin += share) threads.emplace_back(run, begin, std::min(end, begin + share), context);
  for (std::thread& thread : threads) thread.join();
  return 0;
}

extern "C" void GOMP_parallel(void (*run)(void*), void* data, unsigned, unsigned) { run(data); }
