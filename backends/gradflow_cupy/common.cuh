// Definitions that all kernels share: this text is put before that of each .cu file.
//
// Sums are computed in a fixed order, by a tree over the threads of a block, never by atomic additions: the same input
// gives the same bits. Where several blocks share a sum, the last of them to finish adds up theirs, so it is one launch.
// A block is (x, y) threads, together at most MAX_THREADS: x is a power of two; y is 1, except in kernels that work on
// y rows at a time, one with each x threads, and in `sum_columns`.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef long long index_t;

// What kernels of T compute in: float for half floats, which are rounded once, when they are stored.
template <typename T>
struct Wide {
    typedef float type;
};
template <>
struct Wide<double> {
    typedef double type;
};
template <typename T>
using wide = typename Wide<T>::type;

#define MAX_THREADS 256
#define AT_ONCE 4     // rows that a thread loads before it needs the first of them
#define TICKETS 1024  // the first 32-bit words of the scratch memory, all 0 between launches; sums of blocks follow

#define FOR_EACH_ELEMENT(i, n)                                                            \
    for (index_t i = (index_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n);             \
         i += (index_t)gridDim.x * blockDim.x)

// The x threads with the same threadIdx.y share a row. All threads of a block make the same number of turns, so they
// meet at barriers: those without a row of their own do the last one too, and write what is there already.
#define FOR_EACH_ROW(row, rows)                                                                            \
    for (index_t first = (index_t)blockIdx.x * blockDim.y, row = at_most(first + threadIdx.y, (rows)-1);   \
         first < (rows);                                                                                   \
         first += (index_t)gridDim.x * blockDim.y, row = at_most(first + threadIdx.y, (rows)-1))

// Of kernels with one thread for each column of several rows.
#define FOR_EACH_CELL_ROW(row, rows)                                                     \
    for (index_t row = (index_t)blockIdx.y * blockDim.y + threadIdx.y; row < (rows);    \
         row += (index_t)gridDim.y * blockDim.y)

#define FOR_EACH_COLUMN(i, columns) for (index_t i = threadIdx.x; i < (columns); i += blockDim.x)

// ---------------------------------------------------------------- several elements at once

// N adjacent elements, in arrays of T 16 bytes of them. Kernels that do the same with each element load and store packs.
template <typename T, int N = 16 / sizeof(T)>
struct alignas(N * sizeof(T)) Pack {
    T at[N];
};

// The index of the first element of each pack in arrays of n elements, of which the last may be partial.
#define FOR_EACH_PACK(T, i, n)                                                                              \
    for (index_t i = ((index_t)blockIdx.x * blockDim.x + threadIdx.x) * (16 / sizeof(T)); i < (n);          \
         i += (index_t)gridDim.x * blockDim.x * (16 / sizeof(T)))

#define FOR_EACH_IN_PACK(T, k, i, n)                                     \
    _Pragma("unroll") for (int k = 0; k < (int)(16 / sizeof(T)); k++)    \
        if (i + k < (n))

template <int N, typename T>
__device__ bool is_whole_pack(const T* x, index_t i, index_t n) {
    return i + N <= n && (size_t)x % sizeof(Pack<T, N>) == 0;
}

// The pack from x[i] on, 0 beyond x[n - 1], and where x is null.
template <typename T, int N = 16 / sizeof(T)>
__device__ Pack<T, N> load_pack(const T* x, index_t i, index_t n) {
    if (x && is_whole_pack<N>(x, i, n)) return *(const Pack<T, N>*)(x + i);
    Pack<T, N> pack;
#pragma unroll
    for (int k = 0; k < N; k++) pack.at[k] = x && i + k < n ? x[i + k] : T(0.0f);
    return pack;
}

template <typename T, int N>
__device__ void store_pack(T* x, index_t i, index_t n, const Pack<T, N>& pack) {
    if (is_whole_pack<N>(x, i, n)) {
        *(Pack<T, N>*)(x + i) = pack;
        return;
    }
#pragma unroll
    for (int k = 0; k < N; k++)
        if (i + k < n) x[i + k] = pack.at[k];
}

__device__ inline index_t at_most(index_t i, index_t top) { return i < top ? i : top; }

// A compensated sum: a running sum and the sum of its rounding errors (Knuth 1997, volume 2, section 4.2.2, theorem B).
// However many terms a thread adds, the error of the result is about that of rounding it once.
template <typename T>
struct Sum {
    T total = T(0), lost = T(0);

    __device__ void add(T x) {
        T before = total;
        total = before + x;
        T added = total - before;
        lost += (before - (total - added)) + (x - added);
    }

    // The rounding errors of an infinite sum are NaN.
    __device__ T value() const { return lost - lost == T(0) ? total + lost : total; }
};

// The sum over the x threads of a row; in a block without rows, over all threads.
template <typename T>
__device__ T block_sum(T value) {
    __shared__ T all[MAX_THREADS];
    T* shared = all + threadIdx.y * blockDim.x;
    __syncthreads();  // until every thread has read the result of an earlier call
    shared[threadIdx.x] = value;
    __syncthreads();
    for (unsigned int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        __syncthreads();
    }
    return shared[0];
}

template <typename T>
__device__ T block_max(T value) {
    __shared__ T all[MAX_THREADS];
    T* shared = all + threadIdx.y * blockDim.x;
    __syncthreads();
    shared[threadIdx.x] = value;
    __syncthreads();
    for (unsigned int half = blockDim.x / 2; half > 0; half /= 2) {
        if (threadIdx.x < half && shared[threadIdx.x + half] > shared[threadIdx.x])
            shared[threadIdx.x] = shared[threadIdx.x + half];
        __syncthreads();
    }
    return shared[0];
}

// ---------------------------------------------------------------- sums over several blocks

// True in the last of `blocks` blocks to come here, which sees what all of them wrote before. The ticket is 0 again then.
__device__ inline bool is_last_block(unsigned int* ticket, unsigned int blocks) {
    __shared__ bool last[1];
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0 && threadIdx.y == 0) last[0] = atomicInc(ticket, blocks - 1) == blocks - 1;
    __syncthreads();
    return last[0];
}

// The sum over all threads of a block, whatever its form.
template <typename C>
__device__ C whole_block_sum(C value) {
    __shared__ C all[MAX_THREADS];
    unsigned int thread = threadIdx.y * blockDim.x + threadIdx.x, n = blockDim.x * blockDim.y;
    __syncthreads();
    all[thread] = value;
    __syncthreads();
    while (n > 1) {
        unsigned int half = (n + 1) / 2;
        if (thread + half < n) all[thread] += all[thread + half];
        __syncthreads();
        n = half;
    }
    return all[0];
}

// Replaces the sum of each thread by that over a grid of one dimension. False in all blocks but one, which has it.
template <typename C>
__device__ bool sum_grid(C& sum, void* scratch) {
    sum = whole_block_sum(sum);
    if (gridDim.x == 1) return true;
    volatile C* sums = (volatile C*)((unsigned int*)scratch + TICKETS);
    unsigned int thread = threadIdx.y * blockDim.x + threadIdx.x;
    if (thread == 0) sums[blockIdx.x] = sum;
    if (!is_last_block((unsigned int*)scratch, gridDim.x)) return false;
    Sum<C> total;
    for (unsigned int k = thread; k < gridDim.x; k += blockDim.x * blockDim.y) total.add(sums[k]);
    sum = whole_block_sum(total.value());
    return true;
}

// Replaces N sums of each thread by those over the y threads with the same x.
template <typename C, int N>
__device__ void sum_groups(C (&sums)[N]) {
    __shared__ C all[N * MAX_THREADS];
    unsigned int thread = threadIdx.y * blockDim.x + threadIdx.x;
    __syncthreads();
    for (int k = 0; k < N; k++) all[k * MAX_THREADS + thread] = sums[k];
    __syncthreads();
    for (unsigned int half = blockDim.y / 2; half > 0; half /= 2) {
        if (threadIdx.y < half)
            for (int k = 0; k < N; k++) {
                C* own = all + k * MAX_THREADS + thread;
                own[0] += own[half * blockDim.x];
            }
        __syncthreads();
    }
    for (int k = 0; k < N; k++) sums[k] = all[k * MAX_THREADS + threadIdx.x];
}

// Replaces N sums of each thread by those over all threads of the grid with the same column, which is given by x: over
// the y threads of a block (a power of two), and over blocks. True in the threads that have them, one for each column.
template <typename C, int N>
__device__ bool sum_columns(C (&sums)[N], void* scratch) {
    sum_groups(sums);
    if (gridDim.y == 1) return threadIdx.y == 0;
    volatile C* parts = (volatile C*)((unsigned int*)scratch + TICKETS);
    index_t width = (index_t)gridDim.x * blockDim.x;
    parts += (index_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (threadIdx.y == 0)
        for (int k = 0; k < N; k++) parts[(k * gridDim.y + blockIdx.y) * width] = sums[k];
    if (!is_last_block((unsigned int*)scratch + blockIdx.x, gridDim.y)) return false;
    for (int k = 0; k < N; k++) {
        Sum<C> total;
        for (unsigned int y = threadIdx.y; y < gridDim.y; y += blockDim.y) total.add(parts[(k * gridDim.y + y) * width]);
        sums[k] = total.value();
    }
    sum_groups(sums);
    return threadIdx.y == 0;
}

// The rows of a block in a sum over rows: `chunk` of them, of which each y thread loads every blockDim.y-th.
#define FOR_EACH_OF_CHUNK(first, stop, rows, chunk)                                                      \
    for (index_t stop = at_most(((index_t)blockIdx.y + 1) * (chunk), rows),                              \
                 first = (index_t)blockIdx.y * (chunk) + threadIdx.y;                                    \
         first < stop; first += AT_ONCE * blockDim.y)

// Stores a loss. nonfinite: is set to 1 if it is not finite, or null.
template <typename T>
__device__ void store_loss(T* loss, wide<T> value, int* nonfinite) {
    *loss = T(value);
    value = (wide<T>)*loss;
    if (nonfinite && !(value - value == 0)) *nonfinite = 1;
}
