// Sums over the middle one of three axes.

// x is (many, rows, columns); out, (many, columns), = its sums over rows. Adjacent threads read adjacent columns.
template <typename T>
__global__ void sum_rows(
    const T* x, T* out, void* scratch, index_t many, index_t rows, index_t columns, index_t chunk) {
    index_t i = (index_t)blockIdx.x * blockDim.x + threadIdx.x;
    Sum<wide<T>> total;
    if (i < many * columns) {
        const T* in = x + i / columns * rows * columns + i % columns;
        FOR_EACH_OF_CHUNK(first, stop, rows, chunk) {
            wide<T> value[AT_ONCE];
            for (int k = 0; k < AT_ONCE; k++) {
                index_t row = first + k * blockDim.y;
                value[k] = row < stop ? (wide<T>)in[row * columns] : 0;
            }
            for (int k = 0; k < AT_ONCE; k++) total.add(value[k]);
        }
    }
    wide<T> all[1] = {total.value()};
    if (sum_columns(all, scratch) && i < many * columns) out[i] = T(all[0]);
}
