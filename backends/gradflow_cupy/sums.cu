// Partial sums over the middle one of three axes.

// x is (many, rows, columns), out is (many, parts, columns): out[i, k, j] = x[i, k, j] + x[i, k + parts, j] + ...
// Adjacent threads compute adjacent elements of out, so that reads are coalesced.
template <typename T>
__global__ void sum_rows(const T* x, T* out, index_t many, index_t rows, index_t columns, index_t parts) {
    index_t width = parts * columns, length = rows * columns;
    FOR_EACH_ELEMENT(i, many * width) {
        const T* in = x + i / width * length;
        Sum<T> total;
        for (index_t k = i % width; k < length; k += width) total.add(in[k]);
        out[i] = total.value();
    }
}
