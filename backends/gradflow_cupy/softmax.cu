// Softmax along rows, and softmax cross-entropy. A block computes one row, or several narrow ones.

template <typename T>
__device__ T row_max(const T* x, index_t columns) {
    T top = x[0];
    FOR_EACH_COLUMN(i, columns) {
        if (x[i] > top) top = x[i];
    }
    return block_max(top);
}

template <typename T>
__device__ T row_total(const T* x, index_t columns, T top) {
    Sum<T> total;
    FOR_EACH_COLUMN(i, columns) total.add(exp(x[i] - top));
    return block_sum(total.value());
}

template <typename T>
__global__ void softmax(const T* x, T* out, index_t rows, index_t columns) {
    FOR_EACH_ROW(row, rows) {
        const T* in = x + row * columns;
        T top = row_max(in, columns), total = row_total(in, columns, top);
        FOR_EACH_COLUMN(i, columns) out[row * columns + i] = exp(in[i] - top) / total;
    }
}

template <typename T>
__global__ void log_softmax(const T* x, T* out, index_t rows, index_t columns) {
    FOR_EACH_ROW(row, rows) {
        const T* in = x + row * columns;
        T top = row_max(in, columns), log_total = log(row_total(in, columns, top));
        FOR_EACH_COLUMN(i, columns) out[row * columns + i] = in[i] - top - log_total;
    }
}

// stats, (rows, 2), receives the maximum and the sum of exponentials of each row, for the backward pass. The loss of a
// label out of range is NaN; nothing out of bounds is read.
template <typename T>
__global__ void cross_entropy(
    const T* logits, const index_t* labels, const T* weights, T* losses, T* stats, index_t rows, index_t columns) {
    FOR_EACH_ROW(row, rows) {
        const T* in = logits + row * columns;
        T top = row_max(in, columns), total = row_total(in, columns, top), log_total = log(total), loss;
        if (weights) {
            Sum<T> terms;
            FOR_EACH_COLUMN(i, columns) terms.add(weights[row * columns + i] * (in[i] - top - log_total));
            loss = -block_sum(terms.value());
        } else {
            index_t label = labels[row];
            bool known = label >= 0 && label < columns;
            T zero = T(0);
            loss = known ? log_total - (in[label] - top) : zero / zero;
        }
        if (threadIdx.x == 0) {
            losses[row] = loss;
            stats[2 * row] = top;
            stats[2 * row + 1] = total;
        }
    }
}

// g has one element (g_stride 0) or one for each row (g_stride 1); divisor: the number of rows for a mean, else 1.
template <typename T>
__global__ void cross_entropy_backward(
    const T* g, int g_stride, double divisor, const T* logits, const index_t* labels, const T* weights,
    const T* stats, T* out, index_t rows, index_t columns) {
    FOR_EACH_ROW(row, rows) {
        const T* in = logits + row * columns;
        T scale = g[row * g_stride] / (T)divisor, top = stats[2 * row], total = stats[2 * row + 1];
        T weight = T(1);
        index_t label = -1;
        if (weights) {
            Sum<T> part;
            FOR_EACH_COLUMN(i, columns) part.add(weights[row * columns + i]);
            weight = block_sum(part.value());
        } else {
            label = labels[row];
        }
        FOR_EACH_COLUMN(i, columns) {
            T p = exp(in[i] - top) / total;
            T target = weights ? weights[row * columns + i] : (i == label ? T(1) : T(0));
            out[row * columns + i] = (p * weight - target) * scale;
        }
    }
}
