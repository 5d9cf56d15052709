// Random bits and dropout by Philox4x64-10 (Salmon et al. 2011): the stream of numpy.random.Philox, bit for bit.

typedef unsigned long long word_t;

struct Block {
    word_t word[4];
};

// The four words of the block with the counter (c3 c2 c1 c0) + step, where c0 is the lowest of four 64-bit words.
__device__ inline Block philox(word_t c0, word_t c1, word_t c2, word_t c3, word_t k0, word_t k1, word_t step) {
    c0 += step;
    if (c0 < step && ++c1 == 0 && ++c2 == 0) ++c3;  // carry
    for (int round = 0; round < 10; round++) {
        word_t high0 = __umul64hi(c0, 0xD2E7470EE14C6C93ULL), low0 = c0 * 0xD2E7470EE14C6C93ULL;
        word_t high1 = __umul64hi(c2, 0xCA5A826395121157ULL), low1 = c2 * 0xCA5A826395121157ULL;
        c0 = high1 ^ c1 ^ k0;
        c1 = low1;
        c2 = high0 ^ c3 ^ k1;
        c3 = low0;
        k0 += 0x9E3779B97F4A7C15ULL;
        k1 += 0xBB67AE8584CAA73BULL;
    }
    return Block{{c0, c1, c2, c3}};
}

// In both kernels, words: the counter of the first block and the key on the device, instead of those that are passed, or
// null.

__global__ void random_bits(
    word_t* out, index_t n, word_t c0, word_t c1, word_t c2, word_t c3, word_t k0, word_t k1, const word_t* words) {
    if (words) c0 = words[0], c1 = words[1], c2 = words[2], c3 = words[3], k0 = words[4], k1 = words[5];
    FOR_EACH_ELEMENT(step, (n + 3) / 4) {
        Block bits = philox(c0, c1, c2, c3, k0, k1, step);
        for (int lane = 0; lane < 4 && 4 * step + lane < n; lane++) out[4 * step + lane] = bits.word[lane];
    }
}

// Each thread computes the bits of 8 adjacent elements; then the block writes its tile with coalesced writes. The bits
// are those of an array whose first `skip` elements, less than 8, come before x.
template <typename T>
__global__ void dropout(
    const T* x, T* out, bool* mask, index_t n, index_t skip, unsigned int threshold, double scale, word_t c0, word_t c1, word_t c2,
    word_t c3, word_t k0, word_t k1, const word_t* words) {
    if (words) c0 = words[0], c1 = words[1], c2 = words[2], c3 = words[3], k0 = words[4], k1 = words[5];
    __shared__ unsigned char keep[MAX_THREADS];
    index_t tile = 8 * (index_t)blockDim.x;
    for (index_t start = blockIdx.x * tile; start < n + skip; start += gridDim.x * tile) {
        Block bits = philox(c0, c1, c2, c3, k0, k1, start / 8 + threadIdx.x);
        unsigned int kept = 0;
        for (int lane = 0; lane < 4; lane++) {
            kept |= (unsigned int)((unsigned int)bits.word[lane] >= threshold) << (2 * lane);
            kept |= (unsigned int)((unsigned int)(bits.word[lane] >> 32) >= threshold) << (2 * lane + 1);
        }
        __syncthreads();  // until the previous tile is written
        keep[threadIdx.x] = (unsigned char)kept;
        __syncthreads();
        for (index_t k = threadIdx.x; k < tile && start + k < n + skip; k += blockDim.x) {
            bool on = keep[k / 8] >> (k % 8) & 1;
            index_t i = start + k - skip;
            if (i < 0) continue;
            mask[i] = on;
            out[i] = T(on ? (wide<T>)x[i] * (wide<T>)scale : 0);
        }
    }
}

template <typename T>
__global__ void dropout_backward(const T* g, const bool* mask, T* out, index_t n, double scale) {
    FOR_EACH_PACK(T, i, n) {
        Pack<T> gs = load_pack(g, i, n);
        Pack<bool, 16 / sizeof(T)> on = load_pack<bool, 16 / sizeof(T)>(mask, i, n);
        FOR_EACH_IN_PACK(T, k, i, n) gs.at[k] = T(on.at[k] ? (wide<T>)gs.at[k] * (wide<T>)scale : 0);
        store_pack(out, i, n, gs);
    }
}
