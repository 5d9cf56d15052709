// The rows of batches, copied from up to three arrays in one launch: inputs, targets and weights.

struct alignas(16) Quad {
    unsigned int word[4];
};

template <typename Word>
__device__ void copy_words(const void* x, index_t from, void* out, index_t to, index_t words) {
    FOR_EACH_COLUMN(i, words) ((Word*)out)[to * words + i] = ((const Word*)x)[from * words + i];
}

// Copies row `from` of x to row `to` of out. A row has so many words, each of `width` bytes.
__device__ inline void copy_row(const void* x, index_t from, void* out, index_t to, index_t words, int width) {
    if (width == 16) copy_words<Quad>(x, from, out, to, words);
    if (width == 8) copy_words<unsigned long long>(x, from, out, to, words);
    if (width == 4) copy_words<unsigned int>(x, from, out, to, words);
    if (width == 2) copy_words<unsigned short>(x, from, out, to, words);
    if (width == 1) copy_words<unsigned char>(x, from, out, to, words);
}

// Row rows[k] of each array x that is not null becomes row k % size of batch k / size; a batch in out has `stride` rows.
__global__ void take_rows(
    const index_t* rows, index_t n, index_t size, const void* x0, void* out0, index_t words0, int width0,
    index_t stride0, const void* x1, void* out1, index_t words1, int width1, index_t stride1, const void* x2,
    void* out2, index_t words2, int width2, index_t stride2) {
    for (index_t k = (index_t)blockIdx.x * blockDim.y + threadIdx.y; k < n; k += (index_t)gridDim.x * blockDim.y) {
        index_t from = rows[k], batch = k / size, place = k % size;
        if (x0 != nullptr) copy_row(x0, from, out0, batch * stride0 + place, words0, width0);
        if (x1 != nullptr) copy_row(x1, from, out1, batch * stride1 + place, words1, width1);
        if (x2 != nullptr) copy_row(x2, from, out2, batch * stride2 + place, words2, width2);
    }
}
