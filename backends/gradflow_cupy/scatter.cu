// Sums of rows with the same destination: the gradient of indexing with repeated indices.

// Adds to each row of out the rows of values that belong there. order sorts the rows of values by their destination, and
// targets are the destinations in that order; equal ones are a run. The block of the first of a run adds up all of it:
// its threads are lanes of width columns, each of which adds every so many rows, and then the lanes are added.
template <typename T>
__global__ void scatter_rows(
    const T* values, const index_t* order, const index_t* targets, T* out, index_t n, index_t columns, int width) {
    __shared__ T shared[MAX_THREADS];
    int lane = threadIdx.x / width, lanes = blockDim.x / width;
    FOR_EACH_ROW(first, n) {
        index_t target = targets[first];
        if (first > 0 && targets[first - 1] == target) continue;
        for (index_t left = (index_t)blockIdx.y * width; left < columns; left += (index_t)gridDim.y * width) {
            index_t column = left + threadIdx.x % width;
            Sum<T> total;
            if (column < columns)
                for (index_t i = first + lane; i < n && targets[i] == target; i += lanes)
                    total.add(values[order[i] * columns + column]);
            shared[threadIdx.x] = total.value();
            __syncthreads();
            for (int half = lanes / 2; half > 0; half /= 2) {
                if (lane < half) shared[threadIdx.x] += shared[threadIdx.x + half * width];
                __syncthreads();
            }
            if (lane == 0 && column < columns) out[target * columns + column] += shared[threadIdx.x];
        }
    }
}
