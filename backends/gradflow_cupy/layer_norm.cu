// Layer normalization over rows (Ba et al. 2016), and its gradients for the input, the weight and the bias.

// weight and bias may be null. stats, (rows, 2), receives the mean and 1 / sqrt(var + epsilon) of each row.
template <typename T>
__global__ void layer_norm(
    const T* x, const T* weight, const T* bias, T* out, T* stats, index_t rows, index_t columns, double epsilon) {
    FOR_EACH_ROW(row, rows) {
        const T* in = x + row * columns;
        Sum<T> total, squares;
        FOR_EACH_COLUMN(i, columns) total.add(in[i]);
        T mean = block_sum(total.value()) / (T)columns;
        FOR_EACH_COLUMN(i, columns) squares.add((in[i] - mean) * (in[i] - mean));
        T scale = T(1) / sqrt(block_sum(squares.value()) / (T)columns + (T)epsilon);
        FOR_EACH_COLUMN(i, columns) {
            T value = (in[i] - mean) * scale;
            if (weight) value *= weight[i];
            if (bias) value += bias[i];
            out[row * columns + i] = value;
        }
        if (threadIdx.x == 0) {
            stats[2 * row] = mean;
            stats[2 * row + 1] = scale;
        }
    }
}

template <typename T>
__global__ void layer_norm_backward(
    const T* g, const T* x, const T* weight, const T* stats, T* gx, index_t rows, index_t columns) {
    FOR_EACH_ROW(row, rows) {
        const T *in = x + row * columns, *gradient = g + row * columns;
        T mean = stats[2 * row], scale = stats[2 * row + 1];
        Sum<T> sum_g, sum_gn;
        FOR_EACH_COLUMN(i, columns) {
            T gn = weight ? gradient[i] * weight[i] : gradient[i];
            sum_g.add(gn);
            sum_gn.add(gn * ((in[i] - mean) * scale));
        }
        T mean_g = block_sum(sum_g.value()) / (T)columns, mean_gn = block_sum(sum_gn.value()) / (T)columns;
        FOR_EACH_COLUMN(i, columns) {
            T gn = weight ? gradient[i] * weight[i] : gradient[i];
            gx[row * columns + i] = (gn - mean_g - (in[i] - mean) * scale * mean_gn) * scale;
        }
    }
}

// sums, (2, gridDim.y, columns), receives the sums of g * normal and of g over each chunk of rows, where normal is the
// normalized input: the partial gradients of weight and bias.
template <typename T>
__global__ void layer_norm_columns(
    const T* g, const T* x, const T* stats, T* sums, index_t rows, index_t columns, index_t chunk) {
    __shared__ T shared_weight[MAX_THREADS], shared_bias[MAX_THREADS];
    int lane = threadIdx.x % TILE_COLUMNS, group = threadIdx.x / TILE_COLUMNS, groups = blockDim.x / TILE_COLUMNS;
    index_t column = (index_t)blockIdx.x * TILE_COLUMNS + lane;
    index_t start = (index_t)blockIdx.y * chunk, stop = start + chunk < rows ? start + chunk : rows;
    Sum<T> weight, bias;
    if (column < columns) {
        for (index_t row = start + group; row < stop; row += groups) {
            index_t i = row * columns + column;
            weight.add(g[i] * ((x[i] - stats[2 * row]) * stats[2 * row + 1]));
            bias.add(g[i]);
        }
    }
    shared_weight[threadIdx.x] = weight.value();
    shared_bias[threadIdx.x] = bias.value();
    __syncthreads();
    if (group == 0 && column < columns) {
        for (int k = 1; k < groups; k++) {
            weight.add(shared_weight[k * TILE_COLUMNS + lane]);
            bias.add(shared_bias[k * TILE_COLUMNS + lane]);
        }
        sums[blockIdx.y * columns + column] = weight.value();
        sums[(gridDim.y + blockIdx.y) * columns + column] = bias.value();
    }
}
