// The part of CUDA that the kernels of gradflow_cupy use, for a C++ compiler, so that the same sources run on the CPU.
//
// Blocks run one after another in a random order. The threads of a block are fibres: they switch at __syncthreads(),
// and sometimes where a thread asks for its index, and continue in a random order, since a GPU guarantees none. A block
// in which some threads end while others wait at a barrier is an error, as in CUDA. Shared memory contains garbage when
// a block starts. This says nothing about speed, or about the code that the compiler for the GPU generates.

#pragma once

#include <math.h>
#include <stddef.h>
#include <string.h>
#include <ucontext.h>

#ifdef __SSE__
#include <xmmintrin.h>
#endif

#include <functional>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static

// Half floats: conversions that round to the nearest, ties to even.

struct __half {
    unsigned short bits;

    __half() = default;
    explicit __half(float x) {
        float size = fabsf(x);
        int exponent;
        frexpf(size, &exponent);
        if (size == 0 || exponent < -13) exponent = -13;  // of subnormal numbers
        int rounded = (int)nearbyintf(ldexpf(size < 65520 ? size : 0, 11 - exponent));
        bits = size < 65520 ? (unsigned short)(((exponent + 13) << 10) + rounded) : 0x7c00;
        if (x != x) bits = 0x7fff;
        if (signbit(x)) bits |= 0x8000;
    }
    explicit operator float() const {
        int exponent = bits >> 10 & 31, fraction = bits & 1023;
        float size = exponent ? ldexpf((float)(1024 + fraction), exponent - 25) : ldexpf((float)fraction, -24);
        if (exponent == 31) size = fraction ? NAN : INFINITY;
        return bits & 0x8000 ? -size : size;
    }
};

struct __nv_bfloat16 {
    unsigned short bits;

    __nv_bfloat16() = default;
    explicit __nv_bfloat16(float x) {
        unsigned int all;
        memcpy(&all, &x, sizeof all);
        bits = x != x ? 0x7fff : (unsigned short)((all + 0x7fff + (all >> 16 & 1)) >> 16);
    }
    explicit operator float() const {
        unsigned int all = (unsigned int)bits << 16;
        float x;
        memcpy(&x, &all, sizeof x);
        return x;
    }
};

inline void __threadfence() {}

inline unsigned int atomicInc(unsigned int* address, unsigned int top) {
    unsigned int old = *address;
    *address = old >= top ? 0 : old + 1;
    return old;
}

inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)(((unsigned __int128)a * b) >> 64);
}

namespace host {

constexpr size_t STACK = 1 << 16;
constexpr unsigned int SWITCH = 64;  // a thread is interrupted at one in so many requests for its index

enum State { READY, WAITING, DONE };

struct Fibre {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(STACK);
    State state = DONE;
};

static std::vector<Fibre> fibres;
static ucontext_t scheduler;
static size_t current;
static const std::function<void()>* kernel;
static size_t block_number;
static unsigned long long seed = 0x9E3779B97F4A7C15ULL;

inline unsigned int random_below(size_t n) {  // xorshift64*
    seed ^= seed >> 12;
    seed ^= seed << 25;
    seed ^= seed >> 27;
    return (unsigned int)(((seed * 0x2545F4914F6CDD1DULL) >> 33) % n);
}

inline void shuffle(std::vector<unsigned int>& order) {
    for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[random_below(i)]);
}

// Shared memory is not cleared for a block: it holds NaN until the block writes to it.
inline void poison(void* shared, size_t bytes, size_t& of) {
    if (of == block_number) return;
    of = block_number;
    memset(shared, 0xff, bytes);
}

inline void leave(State state) {
    size_t thread = current;
    fibres[thread].state = state;
    swapcontext(&fibres[thread].context, &scheduler);
}

static unsigned int threads_across;

inline size_t thread_index() {
    size_t thread = current;
    if (random_below(SWITCH) == 0) leave(READY);
    return thread;
}

struct ThreadIndexX {
    operator unsigned int() const { return (unsigned int)(thread_index() % threads_across); }
};

struct ThreadIndexY {
    operator unsigned int() const { return (unsigned int)(thread_index() / threads_across); }
};

static void run_thread() {
    (*kernel)();
    fibres[current].state = DONE;
}

// Runs the threads of a block to their end. False where they did not all reach the same barriers.
inline bool run_block(size_t threads) {
    for (size_t t = 0; t < threads; t++) {
        Fibre& fibre = fibres[t];
        fibre.state = READY;
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack.data();
        fibre.context.uc_stack.ss_size = STACK;
        fibre.context.uc_link = &scheduler;
        makecontext(&fibre.context, run_thread, 0);
    }
    std::vector<unsigned int> ready;
    for (;;) {
        size_t waiting = 0, done = 0;
        ready.clear();
        for (size_t t = 0; t < threads; t++) {
            if (fibres[t].state == READY) ready.push_back((unsigned int)t);
            waiting += fibres[t].state == WAITING;
            done += fibres[t].state == DONE;
        }
        if (done == threads) return true;
        if (waiting == threads) {  // all are at the barrier: let them pass
            for (size_t t = 0; t < threads; t++) fibres[t].state = READY;
            continue;
        }
        if (ready.empty()) return false;
        shuffle(ready);
        for (unsigned int t : ready) {
            current = t;
            swapcontext(&scheduler, &fibres[t].context);
        }
    }
}

}  // namespace host

struct Index3 {
    unsigned int x, y, z;
};

static Index3 blockIdx, blockDim, gridDim;

static struct {
    host::ThreadIndexX x;
    host::ThreadIndexY y;
} threadIdx;

inline void __syncthreads() { host::leave(host::WAITING); }

namespace host {

// Returns 0, or 1 where the threads of a block did not all reach the same barriers.
inline int launch(const unsigned int* grid, const unsigned int* block, bool flush, const std::function<void()>& body) {
    kernel = &body;
    gridDim = {grid[0], grid[1], 1};
    blockDim = {block[0], block[1], 1};
    threads_across = block[0];
    size_t threads = block[0] * block[1];
    if (fibres.size() < threads) fibres.resize(threads);
    std::vector<unsigned int> order(grid[0] * grid[1]);
    for (size_t b = 0; b < order.size(); b++) order[b] = (unsigned int)b;
    shuffle(order);
#ifdef __SSE__
    unsigned int mode = _mm_getcsr();
    if (flush) _mm_setcsr(mode | 0x8040);  // subnormal operands and results are zero
#endif
    bool meet = true;
    for (size_t i = 0; i < order.size() && meet; i++) {
        blockIdx = {order[i] % grid[0], order[i] / grid[0], 0};
        block_number++;
        meet = run_block(threads);
    }
#ifdef __SSE__
    _mm_setcsr(mode);
#endif
    return meet ? 0 : 1;
}

}  // namespace host
