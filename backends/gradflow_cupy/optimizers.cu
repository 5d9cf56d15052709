// Optimizer steps over flat arrays, and clipping by the global norm. Numbers come as double, computed on the host, and
// are rounded to T here, as array libraries round a Python number in an operation with an array. Names are those in
// gradflow/backend/optimizer_steps.py: first the options, then the scalars, which change with each step.
//
// In each step, row: the scalars on the device, instead of those that are passed, or null; half: gets the new
// parameters, rounded to float16 or bfloat16, or null; skip: unless it points to 0, nothing changes; nonfinite: is set
// to 1 if a gradient or a new parameter is not finite, or null.

typedef unsigned short half_t;  // the bits of a float16 or bfloat16

__device__ inline unsigned int bits_of(float x) {
    unsigned int bits;
    memcpy(&bits, &x, 4);
    return bits;
}

__device__ inline float float_of(unsigned int bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// The bits of the nearest half float, of two the one whose last bit is 0.
__device__ inline half_t half_bits(float x, int is_bfloat16) {
    unsigned int bits = bits_of(x), sign = bits >> 16 & 0x8000u;
    if (is_bfloat16) return (half_t)(x == x ? (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16 : 0x7fc0u);
    bits &= 0x7fffffffu;
    if (x != x) return (half_t)(sign | 0x7e00u);
    if (bits >= 0x477ff000u) return (half_t)(sign | 0x7c00u);  // 65520 and more: infinity
    if (bits >= 0x38800000u) return (half_t)(sign | (bits - 0x38000000u + 0xfffu + (bits >> 13 & 1u)) >> 13);
    // below 2^-14, a multiple of 2^-24: so are the last bits of its sum with 0.5
    return (half_t)(sign | (bits_of(float_of(bits) + 0.5f) - 0x3f000000u));
}

// Stores a new parameter; returns whether it and the gradient are finite.
template <typename T>
__device__ inline bool store(
    T* parameter, index_t i, T value, T gradient, half_t* half, int is_bfloat16) {
    parameter[i] = value;
    if (half) half[i] = half_bits((float)value, is_bfloat16);
    return value - value == T(0) && gradient - gradient == T(0);
}

template <typename T>
__global__ void sgd_step(
    T* parameter, const T* gradient, T* velocity, index_t n, double momentum, double one_minus_dampening,
    double weight_decay, int nesterov, double lr, double first, const double* row, half_t* half,
    int is_bfloat16, const int* skip, int* nonfinite) {
    if (skip && *skip) return;
    if (row) lr = row[0], first = row[1];
    bool finite = true;
    FOR_EACH_ELEMENT(i, n) {
        T p = parameter[i], g = gradient[i], d = g;
        if (weight_decay != 0) d += p * (T)weight_decay;
        if (velocity) {
            T v = first != 0 ? d : velocity[i] * (T)momentum + d * (T)one_minus_dampening;
            velocity[i] = v;
            d = nesterov ? d + v * (T)momentum : v;
        }
        finite &= store(parameter, i, p - d * (T)lr, g, half, is_bfloat16);
    }
    if (nonfinite && !finite) *nonfinite = 1;
}

// step_size: lr / bias_correction1. root_factor: 1 / bias_correction2_root. In a row on the device they are not yet
// divided: one thread of a block does that for all.
template <typename T>
__global__ void adam_step(
    T* parameter, const T* gradient, T* mean, T* square, index_t n, double beta1, double one_minus_beta1, double beta2,
    double one_minus_beta2, double epsilon, double weight_decay, double step_size, double root_factor,
    double decay_factor, const double* row, half_t* half, int is_bfloat16, const int* skip, int* nonfinite) {
    __shared__ double quotients[2];
    if (skip && *skip) return;
    if (row) {
        if (threadIdx.x == 0) quotients[0] = row[0] / row[1], quotients[1] = 1.0 / row[2];
        __syncthreads();
        step_size = quotients[0], root_factor = quotients[1], decay_factor = row[3];
    }
    bool finite = true;
    FOR_EACH_ELEMENT(i, n) {
        T p = parameter[i], g = gradient[i], d = g;
        if (decay_factor != 1) p *= (T)decay_factor;
        if (weight_decay != 0) d += p * (T)weight_decay;
        T m = mean[i] * (T)beta1 + d * (T)one_minus_beta1;
        T s = square[i] * (T)beta2 + d * d * (T)one_minus_beta2;
        mean[i] = m;
        square[i] = s;
        p -= m * (T)step_size / (sqrt(s) * (T)root_factor + (T)epsilon);
        finite &= store(parameter, i, p, g, half, is_bfloat16);
    }
    if (nonfinite && !finite) *nonfinite = 1;
}

// mean: only in the centred form. velocity: only with momentum.
template <typename T>
__global__ void rmsprop_step(
    T* parameter, const T* gradient, T* square, T* mean, T* velocity, index_t n, double alpha, double one_minus_alpha,
    double epsilon, double weight_decay, double momentum, double lr, const double* row, half_t* half,
    int is_bfloat16, const int* skip, int* nonfinite) {
    if (skip && *skip) return;
    if (row) lr = row[0];
    bool finite = true;
    FOR_EACH_ELEMENT(i, n) {
        T p = parameter[i], g = gradient[i], d = g;
        if (weight_decay != 0) d += p * (T)weight_decay;
        T s = square[i] * (T)alpha + d * d * (T)one_minus_alpha;
        square[i] = s;
        if (mean) {
            T m = mean[i] * (T)alpha + d * (T)one_minus_alpha;
            mean[i] = m;
            s -= m * m;
            if (s < T(0)) s = T(0);  // by rounding
        }
        T update = d / (sqrt(s) + (T)epsilon);
        if (velocity) {
            update = velocity[i] * (T)momentum + update;
            velocity[i] = update;
        }
        finite &= store(parameter, i, p - update * (T)lr, g, half, is_bfloat16);
    }
    if (nonfinite && !finite) *nonfinite = 1;
}

// Clipping by the norm of several arrays: one launch for each. sums: the sums of squares of the blocks of earlier
// launches, `earlier` of them, and of this one. In the last launch, result is not null: its last block adds them up, and
// result[0] receives the norm, result[1] the factor for the gradients.
template <typename T>
__global__ void square_sums(
    const T* x, T* sums, T* result, void* scratch, index_t n, index_t earlier, double max_norm) {
    Sum<T> terms, total;
    FOR_EACH_ELEMENT(i, n) terms.add(x[i] * x[i]);
    T sum = block_sum(terms.value());
    if (threadIdx.x == 0) sums[earlier + blockIdx.x] = sum;
    if (!result || !is_last_block((unsigned int*)scratch, gridDim.x)) return;
    FOR_EACH_COLUMN(i, earlier + gridDim.x) total.add(((volatile T*)sums)[i]);
    T norm = sqrt(block_sum(total.value()));
    if (threadIdx.x == 0) {
        T factor = (T)max_norm / (norm + T(1e-6));
        result[0] = norm;
        result[1] = factor > T(1) ? T(1) : factor;  // NaN stays NaN
    }
}

template <typename T>
__global__ void scale_by(T* x, const T* factor, index_t n) {
    T by = factor[0];
    if (by == T(1)) return;
    FOR_EACH_ELEMENT(i, n) x[i] *= by;
}

template <typename T>
__global__ void unscale(T* gradient, const float* scale, int* found, index_t n) {
    T factor = (T)(1.0f / *scale);
    bool finite = true;
    FOR_EACH_ELEMENT(i, n) {
        T g = gradient[i];
        finite &= g - g == T(0);
        gradient[i] = g * factor;
    }
    if (!finite) *found = 1;
}

// One thread.
__global__ void update_scale(
    float* scale, int* growth, int* found, double growth_factor, double backoff_factor, index_t interval) {
    if (*found) {
        *scale *= (float)backoff_factor;
        *growth = 0;
    } else if (++*growth == interval) {
        float larger = *scale * (float)growth_factor;
        if (larger - larger == 0.0f) *scale = larger;
        *growth = 0;
    }
    *found = 0;
}
