// Definitions that all kernels share: this text is put before that of each .cu file.
//
// Sums are computed in a fixed order, by a tree over the threads of a block, never by atomic additions: the same input
// gives the same bits. A block is (x, y) threads, together at most MAX_THREADS: x is a power of two; y is 1, except in
// kernels that work on y rows at a time, one with each x threads.

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
#define TILE_COLUMNS 32  // columns per block in kernels that sum over rows: a warp reads adjacent elements

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
