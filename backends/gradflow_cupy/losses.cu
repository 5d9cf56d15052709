// Squared error, sums of all elements, and one-hot rows.

// difference = x - target; partial[block] = the sum of its squares over the elements of that block.
template <typename T>
__global__ void squared_error(const T* x, const T* target, T* difference, T* partial, index_t n) {
    Sum<T> terms;
    FOR_EACH_ELEMENT(i, n) {
        T d = x[i] - target[i];
        difference[i] = d;
        terms.add(d * d);
    }
    T total = block_sum(terms.value());
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// g has one element (g_stride 0) or n (g_stride 1). gx or gt may be null.
template <typename T>
__global__ void squared_error_backward(
    const T* g, int g_stride, double factor, const T* difference, T* gx, T* gt, index_t n) {
    FOR_EACH_ELEMENT(i, n) {
        T value = difference[i] * (g[i * g_stride] * (T)factor);
        if (gx) gx[i] = value;
        if (gt) gt[i] = -value;
    }
}

// out[block] = the sum of x over the elements of that block / divisor.
template <typename T>
__global__ void sum_all(const T* x, T* out, index_t n, double divisor) {
    Sum<T> terms;
    FOR_EACH_ELEMENT(i, n) terms.add(x[i]);
    T total = block_sum(terms.value());
    if (threadIdx.x == 0) out[blockIdx.x] = total / (T)divisor;
}

template <typename T>
__global__ void one_hot(const index_t* labels, T* out, index_t rows, index_t classes) {
    index_t column = (index_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= classes) return;
    FOR_EACH_CELL_ROW(row, rows)
        out[row * classes + column] = labels[row] == column ? T(1) : T(0);
}
