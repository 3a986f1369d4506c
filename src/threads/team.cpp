// Work on libtorch's own threads (team.rs). Another pool's threads would share the cores with these, which wait for their
// next work without sleeping.

#include <ATen/Parallel.h>

#include <cstdint>

// Calls `work` once on each thread of the team, and comes back when all are done.
extern "C" void diva_team(const void* state, void (*work)(const void* state)) {
  const int64_t threads = at::get_num_threads();
  at::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) work(state);
  });
}
