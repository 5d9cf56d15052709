// As much of CUDA as the kernels of gradflow_cupy use, for a C++ compiler: so that the same sources run on the CPU.
//
// Blocks run one after another, and the threads of a block as fibres that change at __syncthreads(). A block in which
// some threads end while others wait at a barrier is an error, as it is on a GPU. Nothing here says anything about
// speed, or about what the compiler for the GPU makes of the sources.

#pragma once

#include <math.h>
#include <stddef.h>
#include <ucontext.h>

#include <functional>
#include <vector>

#define __global__
#define __device__
#define __shared__ static

struct Index3 {
    unsigned int x, y, z;
};

static Index3 threadIdx, blockIdx, blockDim, gridDim;

inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}

namespace host {

constexpr size_t STACK = 1 << 16;

struct Fibre {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(STACK);
    bool done = false;
};

static std::vector<Fibre> fibres;
static ucontext_t scheduler;
static size_t current;
static const std::function<void()>* kernel;

static void run_thread() {
    (*kernel)();
    fibres[current].done = true;
}

// Returns 0, or 1 where the threads of a block did not all reach the same barriers.
inline int launch(const unsigned int* grid, const unsigned int* block, const std::function<void()>& body) {
    kernel = &body;
    gridDim = {grid[0], grid[1], 1};
    blockDim = {block[0], 1, 1};
    if (fibres.size() < block[0]) fibres.resize(block[0]);
    for (unsigned int b = 0; b < grid[0] * grid[1]; b++) {
        blockIdx = {b % grid[0], b / grid[0], 0};
        for (size_t t = 0; t < block[0]; t++) {
            Fibre& fibre = fibres[t];
            fibre.done = false;
            getcontext(&fibre.context);
            fibre.context.uc_stack.ss_sp = fibre.stack.data();
            fibre.context.uc_stack.ss_size = STACK;
            fibre.context.uc_link = &scheduler;
            makecontext(&fibre.context, run_thread, 0);
        }
        size_t done = 0;
        while (done == 0) {  // from one barrier to the next
            for (current = 0; current < block[0]; current++) {
                threadIdx = {(unsigned int)current, 0, 0};
                swapcontext(&scheduler, &fibres[current].context);
                done += fibres[current].done;
            }
        }
        if (done != block[0]) return 1;
    }
    return 0;
}

}  // namespace host

inline void __syncthreads() {
    size_t thread = host::current;
    swapcontext(&host::fibres[thread].context, &host::scheduler);
}
