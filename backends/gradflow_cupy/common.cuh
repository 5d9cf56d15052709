// What all kernels share. The text stands before that of each .cu file when it is compiled.
//
// Sums are made in a fixed order, by a tree over the threads of a block, and never by atomic additions: the same
// input gives the same bits. A block has a power of two of threads, at most MAX_THREADS.

typedef long long index_t;

#define MAX_THREADS 256
#define TILE_COLUMNS 32  // of the kernels that sum over rows: neighbouring threads read neighbouring columns

#define FOR_EACH_ELEMENT(i, n)                                                            \
    for (index_t i = (index_t)blockIdx.x * blockDim.x + threadIdx.x; i < (n);             \
         i += (index_t)gridDim.x * blockDim.x)

#define FOR_EACH_ROW(row, rows) for (index_t row = blockIdx.x; row < (rows); row += gridDim.x)

#define FOR_EACH_COLUMN(i, columns) for (index_t i = threadIdx.x; i < (columns); i += blockDim.x)

// A running sum and that of its rounding errors (Knuth 1997, volume 2, section 4.2.2, theorem B): however many terms
// a thread adds, the error of the sum is about that of rounding it.
template <typename T>
struct Sum {
    T total = T(0), lost = T(0);

    __device__ void add(T x) {
        T before = total;
        total = before + x;
        T added = total - before;
        lost += (before - (total - added)) + (x - added);
    }

    __device__ T value() const { return lost - lost == T(0) ? total + lost : total; }  // of infinite terms, no errors
};

template <typename T>
__device__ T block_sum(T value) {
    __shared__ T shared[MAX_THREADS];
    __syncthreads();  // every thread has read the result of the call before
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
    __shared__ T shared[MAX_THREADS];
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
