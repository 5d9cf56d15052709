// Normalization of rows (layer norm, Ba et al. 2016) and of columns (batch norm, Ioffe and Szegedy 2015), and the gradients
// for the input, the weight and the bias.

// ---------------------------------------------------------------- rows

// weight and bias may be null. stats, (rows, 2), receives the mean and 1 / sqrt(var + epsilon) of each row.
// centred: whether the mean is subtracted; if not, it counts as 0 (RMS norm).
template <typename T>
__global__ void layer_norm(
    const T* x, const T* weight, const T* bias, T* out, wide<T>* stats, index_t rows, index_t columns,
    double epsilon, int centred) {
    FOR_EACH_ROW(row, rows) {
        const T* in = x + row * columns;
        Sum<wide<T>> total, squares;
        if (centred) FOR_EACH_COLUMN(i, columns) total.add((wide<T>)in[i]);
        wide<T> mean = centred ? block_sum(total.value()) / (wide<T>)columns : 0;
        FOR_EACH_COLUMN(i, columns) {
            wide<T> away = (wide<T>)in[i] - mean;
            squares.add(away * away);
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
    const T* g, const T* x, const T* weight, const wide<T>* stats, T* gx, index_t rows, index_t columns,
    int centred) {
    FOR_EACH_ROW(row, rows) {
        const T *in = x + row * columns, *gradient = g + row * columns;
        wide<T> mean = stats[2 * row], scale = stats[2 * row + 1];
        Sum<wide<T>> sum_g, sum_gn;
        FOR_EACH_COLUMN(i, columns) {
            wide<T> gn = (wide<T>)gradient[i] * (weight ? (wide<T>)weight[i] : 1);
            sum_g.add(gn);
            sum_gn.add(gn * (((wide<T>)in[i] - mean) * scale));
        }
        wide<T> mean_g = centred ? block_sum(sum_g.value()) / (wide<T>)columns : 0;
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

// ---------------------------------------------------------------- columns

// A block works on blockDim.x columns, whose rows are shared by its y threads. Threads beyond the last column have no row.
#define FOR_EACH_OF_COLUMN(first, rows) for (index_t first = threadIdx.y; first < (rows); first += AT_ONCE * blockDim.y)

// `values` are AT_ONCE elements of a column from row `first` on, 0 beyond the last row.
template <typename T>
__device__ void load_rows(wide<T> (&values)[AT_ONCE], const T* column, index_t first, index_t rows, index_t columns) {
    for (int k = 0; k < AT_ONCE; k++) {
        index_t row = first + k * blockDim.y;
        values[k] = row < rows ? (wide<T>)column[row * columns] : 0;
    }
}

// weight and bias may be null. stats, (columns, 2), receives the mean and 1 / sqrt(var + epsilon) of each column.
// means, variances: null, or what moves to the mean and the unbiased variance by `momentum`, or by 1 / (*count + 1) if that
// is negative. count: is increased by 1, or null.
template <typename T>
__global__ void batch_norm(
    const T* x, const wide<T>* weight, const wide<T>* bias, T* out, wide<T>* stats, wide<T>* means, wide<T>* variances,
    index_t* count, void* scratch, index_t rows, index_t columns, double epsilon, double momentum) {
    index_t column = (index_t)blockIdx.x * blockDim.x + threadIdx.x, own = column < columns ? rows : 0;
    const T* in = x + column;
    wide<T> values[AT_ONCE], sum[1];
    Sum<wide<T>> total, squares;
    FOR_EACH_OF_COLUMN(first, own) {
        load_rows(values, in, first, rows, columns);
        for (int k = 0; k < AT_ONCE; k++) total.add(values[k]);
    }
    sum[0] = total.value();
    sum_groups(sum);
    wide<T> mean = sum[0] / (wide<T>)rows;
    FOR_EACH_OF_COLUMN(first, own) {
        load_rows(values, in, first, rows, columns);
        for (int k = 0; k < AT_ONCE; k++) {
            wide<T> away = first + k * blockDim.y < rows ? values[k] - mean : 0;
            squares.add(away * away);
        }
    }
    sum[0] = squares.value();
    sum_groups(sum);
    wide<T> variance = sum[0] / (wide<T>)rows, scale = 1 / sqrt(variance + (wide<T>)epsilon);
    wide<T> factor = weight && own ? (wide<T>)weight[column] : 1, shift = bias && own ? (wide<T>)bias[column] : 0;
    FOR_EACH_OF_COLUMN(first, own) {
        load_rows(values, in, first, rows, columns);
        for (int k = 0; k < AT_ONCE; k++) {
            index_t row = first + k * blockDim.y;
            if (row < rows) out[row * columns + column] = T((values[k] - mean) * scale * factor + shift);
        }
    }
    if (own && threadIdx.y == 0) {
        stats[2 * column] = mean;
        stats[2 * column + 1] = scale;
        if (means) {
            wide<T> rate = momentum >= 0 ? (wide<T>)momentum : 1 / (wide<T>)(*count + 1);
            variance = sum[0] / (wide<T>)(rows - 1);
            means[column] = means[column] * (1 - rate) + mean * rate;
            variances[column] = variances[column] * (1 - rate) + variance * rate;
        }
    }
    if (count && is_last_block((unsigned int*)scratch, gridDim.x) && threadIdx.x == 0 && threadIdx.y == 0)
        *count += 1;  // all blocks have read it
}

// gw and gb, (columns,), receive the sums over rows of g * normal and of g, where normal is the normalized input; gx, the
// gradient of the input. Each may be null.
template <typename T>
__global__ void batch_norm_backward(
    const T* g, const T* x, const wide<T>* weight, const wide<T>* stats, T* gx, wide<T>* gw, wide<T>* gb, index_t rows,
    index_t columns) {
    index_t column = (index_t)blockIdx.x * blockDim.x + threadIdx.x, own = column < columns ? rows : 0;
    wide<T> mean = own ? stats[2 * column] : 0, scale = own ? stats[2 * column + 1] : 0;
    wide<T> gradients[AT_ONCE], values[AT_ONCE];
    Sum<wide<T>> sum_g, sum_gn;
    FOR_EACH_OF_COLUMN(first, own) {
        load_rows(gradients, g + column, first, rows, columns);
        load_rows(values, x + column, first, rows, columns);
        for (int k = 0; k < AT_ONCE; k++) {
            sum_g.add(gradients[k]);
            sum_gn.add(gradients[k] * ((values[k] - mean) * scale));
        }
    }
    wide<T> sums[2] = {sum_g.value(), sum_gn.value()};
    sum_groups(sums);
    if (own && threadIdx.y == 0) {
        if (gb) gb[column] = sums[0];
        if (gw) gw[column] = sums[1];
    }
    if (!gx) return;
    wide<T> factor = (weight && own ? (wide<T>)weight[column] : 1) * scale;
    FOR_EACH_OF_COLUMN(first, own) {
        load_rows(gradients, g + column, first, rows, columns);
        load_rows(values, x + column, first, rows, columns);
        for (int k = 0; k < AT_ONCE; k++) {
            index_t row = first + k * blockDim.y;
            wide<T> normal = (values[k] - mean) * scale;
            if (row < rows)
                gx[row * columns + column] =
                    T((gradients[k] - (sums[0] + normal * sums[1]) / (wide<T>)rows) * factor);
        }
    }
}

// Normalizes each column by the mean and the variance that are given. weight and bias may be null.
template <typename T>
__global__ void normalize_columns(
    const T* x, const wide<T>* mean, const wide<T>* variance, const wide<T>* weight, const wide<T>* bias, T* out,
    index_t rows, index_t columns, double epsilon) {
    index_t column = (index_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    wide<T> centre = mean[column], factor = 1 / sqrt(variance[column] + (wide<T>)epsilon);
    if (weight) factor *= weight[column];
    wide<T> shift = bias ? bias[column] : 0;
    FOR_EACH_CELL_ROW(row, rows) {
        index_t i = row * columns + column;
        out[i] = T(((wide<T>)x[i] - centre) * factor + shift);
    }
}
