// Sums over the middle one of three axes: for each thread every so many of its terms, down the memory.

// x is (many, rows, columns), out is (many, parts, columns): out[i, k, j] = x[i, k, j] + x[i, k + parts, j] + ...
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
