// Softmax along rows, and softmax cross-entropy. A block computes one row, or several narrow ones.

template <typename T>
__device__ wide<T> row_max(const T* x, index_t columns) {
    wide<T> top = (wide<T>)x[0];
    FOR_EACH_COLUMN(i, columns) {
        if ((wide<T>)x[i] > top) top = (wide<T>)x[i];
    }
    return block_max(top);
}

template <typename T>
__device__ wide<T> row_total(const T* x, index_t columns, wide<T> top) {
    Sum<wide<T>> total;
    FOR_EACH_COLUMN(i, columns) total.add(exp((wide<T>)x[i] - top));
    return block_sum(total.value());
}

template <typename T>
__global__ void softmax(const T* x, T* out, index_t rows, index_t columns) {
    FOR_EACH_ROW(row, rows) {
        const T* in = x + row * columns;
        wide<T> top = row_max(in, columns), total = row_total(in, columns, top);
        FOR_EACH_COLUMN(i, columns) out[row * columns + i] = T(exp((wide<T>)in[i] - top) / total);
    }
}

template <typename T>
__global__ void log_softmax(const T* x, T* out, index_t rows, index_t columns) {
    FOR_EACH_ROW(row, rows) {
        const T* in = x + row * columns;
        wide<T> top = row_max(in, columns), log_total = log(row_total(in, columns, top));
        FOR_EACH_COLUMN(i, columns) out[row * columns + i] = T((wide<T>)in[i] - top - log_total);
    }
}

// Writes the losses, if `losses` is not null, and the gradient of the logits for g, if `gradient` is not null. The
// targets are labels, or weights of all classes. g is null for 1. each: whether there is a loss for each row, and so an
// element of g; otherwise there is one, their sum / divisor. The rows of the label `ignored` have losses and gradients
// of 0; a divisor of 0 stands for the number of the other rows. smoothing is the share of a label that all classes get.
// The loss of another label out of range is NaN; nothing out of bounds is read.
template <typename T>
__global__ void cross_entropy(
    const T* logits, const index_t* labels, const T* weights, const T* g, int each, double divisor, index_t ignored,
    double smoothing, T* losses, T* gradient, void* scratch, int* nonfinite, index_t rows, index_t columns) {
    if (divisor == 0) {  // each block counts all labels: it needs their number for its first gradient
        index_t kept = 0;
        for (index_t i = threadIdx.y * blockDim.x + threadIdx.x; i < rows; i += blockDim.x * blockDim.y)
            kept += labels[i] != ignored;
        divisor = (double)whole_block_sum(kept);
    }
    Sum<wide<T>> own;  // the losses of the rows that this thread comes first in
    FOR_EACH_ROW(row, rows) {
        const T* in = logits + row * columns;
        wide<T> top = row_max(in, columns), total = row_total(in, columns, top), log_total = log(total);
        wide<T> weight = 1, loss = 0, spread = (wide<T>)smoothing / (wide<T>)columns, rest = 1 - (wide<T>)smoothing;
        index_t label = -1;
        if (weights) {
            Sum<wide<T>> all, terms;
            FOR_EACH_COLUMN(i, columns) {
                wide<T> w = (wide<T>)weights[row * columns + i];
                all.add(w);
                terms.add(w * ((wide<T>)in[i] - top - log_total));
            }
            weight = block_sum(all.value());
            loss = -block_sum(terms.value());
        } else {
            label = labels[row];
            bool known = label >= 0 && label < columns;
            if (smoothing > 0) {
                Sum<wide<T>> terms;
                FOR_EACH_COLUMN(i, columns) terms.add(log_total - ((wide<T>)in[i] - top));
                loss = block_sum(terms.value()) * spread;
            }
            if (label == ignored)
                loss = weight = spread = rest = 0;
            else
                loss = known ? rest * (log_total - ((wide<T>)in[label] - top)) + loss : (loss - loss) / (loss - loss);
        }
        if (gradient) {
            wide<T> scale = (g ? (wide<T>)g[each ? row : 0] : 1) / (wide<T>)(divisor == 0 ? 1 : divisor);
            FOR_EACH_COLUMN(i, columns) {
                wide<T> target = weights ? (wide<T>)weights[row * columns + i] : (i == label ? rest : 0) + spread;
                gradient[row * columns + i] = T((exp((wide<T>)in[i] - top) / total * weight - target) * scale);
            }
        }
        if (losses && threadIdx.x == 0 && first + threadIdx.y < rows) {
            if (each)
                store_loss(losses + row, loss, nonfinite);
            else
                own.add(loss);
        }
    }
    if (!losses || each) return;
    wide<T> total = own.value();
    if (sum_grid(total, scratch) && threadIdx.x == 0 && threadIdx.y == 0)
        store_loss(losses, total / (wide<T>)divisor, nonfinite);
}
