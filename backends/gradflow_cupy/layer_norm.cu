// Layer normalization over rows (Ba et al. 2016), and its gradients for the input, the weight and the bias.

// weight and bias may be null. stats, (rows, 2), receives the mean and 1 / sqrt(var + epsilon) of each row.
template <typename T>
__global__ void layer_norm(
    const T* x, const T* weight, const T* bias, T* out, wide<T>* stats, index_t rows, index_t columns,
    double epsilon) {
    FOR_EACH_ROW(row, rows) {
        const T* in = x + row * columns;
        Sum<wide<T>> total, squares;
        FOR_EACH_COLUMN(i, columns) total.add((wide<T>)in[i]);
        wide<T> mean = block_sum(total.value()) / (wide<T>)columns;
        FOR_EACH_COLUMN(i, columns) {
            wide<T> centred = (wide<T>)in[i] - mean;
            squares.add(centred * centred);
        }
        wide<T> scale = 1 / sqrt(block_sum(squares.value()) / (wide<T>)columns + (wide<T>)epsilon);
        FOR_EACH_COLUMN(i, columns) {
            wide<T> value = ((wide<T>)in[i] - mean) * scale;
            if (weight) value *= (wide<T>)weight[i];
            if (bias) value += (wide<T>)bias[i];
            out[row * columns + i] = T(value);
        }
        if (threadIdx.x == 0) {
            stats[2 * row] = mean;
            stats[2 * row + 1] = scale;
        }
    }
}

template <typename T>
__global__ void layer_norm_backward(
    const T* g, const T* x, const T* weight, const wide<T>* stats, T* gx, index_t rows, index_t columns) {
    FOR_EACH_ROW(row, rows) {
        const T *in = x + row * columns, *gradient = g + row * columns;
        wide<T> mean = stats[2 * row], scale = stats[2 * row + 1];
        Sum<wide<T>> sum_g, sum_gn;
        FOR_EACH_COLUMN(i, columns) {
            wide<T> gn = (wide<T>)gradient[i] * (weight ? (wide<T>)weight[i] : 1);
            sum_g.add(gn);
            sum_gn.add(gn * (((wide<T>)in[i] - mean) * scale));
        }
        wide<T> mean_g = block_sum(sum_g.value()) / (wide<T>)columns;
        wide<T> mean_gn = block_sum(sum_gn.value()) / (wide<T>)columns;
        FOR_EACH_COLUMN(i, columns) {
            wide<T> gn = (wide<T>)gradient[i] * (weight ? (wide<T>)weight[i] : 1);
            gx[row * columns + i] = T((gn - mean_g - ((wide<T>)in[i] - mean) * scale * mean_gn) * scale);
        }
    }
}

// gw and gb, (columns,), receive the sums over rows of g * normal and of g, where normal is the normalized input: the
// gradients of weight and bias. Either may be null.
template <typename T>
__global__ void layer_norm_columns(
    const T* g, const T* x, const wide<T>* stats, T* gw, T* gb, void* scratch, index_t rows, index_t columns,
    index_t chunk) {
    index_t column = (index_t)blockIdx.x * blockDim.x + threadIdx.x;
    Sum<wide<T>> weight, bias;
    if (column < columns) {
        FOR_EACH_OF_CHUNK(first, stop, rows, chunk) {
            wide<T> gradient[AT_ONCE], in[AT_ONCE], mean[AT_ONCE], scale[AT_ONCE];
            for (int k = 0; k < AT_ONCE; k++) {
                index_t row = first + k * blockDim.y;
                bool on = row < stop;
                gradient[k] = on ? (wide<T>)g[row * columns + column] : 0;
                in[k] = on ? (wide<T>)x[row * columns + column] : 0;
                mean[k] = on ? stats[2 * row] : 0;
                scale[k] = on ? stats[2 * row + 1] : 0;
            }
            for (int k = 0; k < AT_ONCE; k++) {
                weight.add(gradient[k] * ((in[k] - mean[k]) * scale[k]));
                bias.add(gradient[k]);
            }
        }
    }
    wide<T> sums[2] = {weight.value(), bias.value()};
    if (sum_columns(sums, scratch) && column < columns) {
        if (gw) gw[column] = T(sums[0]);
        if (gb) gb[column] = T(sums[1]);
    }
}
