// Squared error, and one-hot rows. Cross-entropy is in softmax.cu.

// Writes the losses, if `losses` is not null, and the gradients for g that are not null: of x and of the target. g is
// null for 1. each: whether there is a loss for each element, and so an element of g; otherwise there is one, the sum of
// all squares / divisor. factor: by which the gradient of that sum is multiplied, as well as by g.
template <typename T>
__global__ void squared_error(
    const T* x, const T* target, const T* g, int each, double factor, double divisor, T* losses, T* gx, T* gt,
    void* scratch, int* nonfinite, index_t n) {
    Sum<wide<T>> squares;
    FOR_EACH_ELEMENT(i, n) {
        wide<T> d = (wide<T>)x[i] - (wide<T>)target[i];
        wide<T> value = d * ((g ? (wide<T>)g[each ? i : 0] : 1) * (wide<T>)factor);
        if (gx) gx[i] = T(value);
        if (gt) gt[i] = T(-value);
        if (losses && each) store_loss(losses + i, d * d, nonfinite);
        squares.add(d * d);
    }
    if (!losses || each) return;
    wide<T> total = squares.value();
    if (sum_grid(total, scratch) && threadIdx.x == 0) store_loss(losses, total / (wide<T>)divisor, nonfinite);
}

template <typename T>
__global__ void one_hot(const index_t* labels, T* out, index_t rows, index_t classes) {
    index_t column = (index_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= classes) return;
    FOR_EACH_CELL_ROW(row, rows)
        out[row * classes + column] = labels[row] == column ? T(1.0f) : T(0.0f);
}
