// Optimizer steps over flat arrays, and clipping by the global norm. Numbers come as double, computed on the host, and
// are rounded to T here, as array libraries round a Python number in an operation with an array. Names are those in
// gradflow/backend/optimizer_steps.py: first the options, then the scalars, which change with each step.
//
// In each step, row: the scalars on the device, instead of those that are passed, or null; half: gets the new
// parameters, rounded to float16 or bfloat16, or null; skip: unless it points to 0, nothing changes; nonfinite: is set
// to 1 if a gradient or a new parameter is not finite, or null.

// Half floats are computed in float: parameters, state and gradients are rounded once, when they are stored.

template <typename H, typename T, int N>
__device__ void store_rounded(H* half, index_t i, index_t n, const Pack<T, N>& values) {
    Pack<H, N> rounded;
#pragma unroll
    for (int k = 0; k < N; k++) rounded.at[k] = H((float)values.at[k]);
    store_pack(half, i, n, rounded);
}

template <typename T, int N>
__device__ bool is_finite(const Pack<T, N>& values) {
    bool finite = true;
#pragma unroll
    for (int k = 0; k < N; k++) finite &= (wide<T>)values.at[k] - (wide<T>)values.at[k] == 0;
    return finite;
}

// Stores new parameters; returns whether they and the gradients are finite.
template <typename T>
__device__ bool store_parameters(
    T* parameter, index_t i, index_t n, const Pack<T>& values, const Pack<T>& gradients, void* half, int is_bfloat16) {
    store_pack(parameter, i, n, values);
    if (half && is_bfloat16) store_rounded((__nv_bfloat16*)half, i, n, values);
    if (half && !is_bfloat16) store_rounded((__half*)half, i, n, values);
    return is_finite(values) && is_finite(gradients);
}

template <typename T>
__global__ void sgd_step(
    T* parameter, const T* gradient, T* velocity, index_t n, double momentum, double one_minus_dampening,
    double weight_decay, int nesterov, double lr, double first, const double* row, void* half, int is_bfloat16,
    const int* skip, int* nonfinite) {
    typedef wide<T> C;
    if (skip && *skip) return;
    if (row) lr = row[0], first = row[1];
    bool finite = true;
    FOR_EACH_PACK(T, i, n) {
        Pack<T> ps = load_pack(parameter, i, n), gs = load_pack(gradient, i, n), vs = load_pack(velocity, i, n);
        FOR_EACH_IN_PACK(T, k, i, n) {
            C p = (C)ps.at[k], d = (C)gs.at[k];
            if (weight_decay != 0) d += p * (C)weight_decay;
            if (velocity) {
                C v = first != 0 ? d : (C)vs.at[k] * (C)momentum + d * (C)one_minus_dampening;
                vs.at[k] = T(v);
                d = nesterov ? d + v * (C)momentum : v;
            }
            ps.at[k] = T(p - d * (C)lr);
        }
        if (velocity) store_pack(velocity, i, n, vs);
        finite &= store_parameters(parameter, i, n, ps, gs, half, is_bfloat16);
    }
    if (nonfinite && !finite) *nonfinite = 1;
}

// step_size: lr / bias_correction1. root_factor: 1 / bias_correction2_root. In a row on the device they are not yet
// divided: one thread of a block does that for all.
template <typename T>
__global__ void adam_step(
    T* parameter, const T* gradient, T* mean, T* square, index_t n, double beta1, double one_minus_beta1, double beta2,
    double one_minus_beta2, double epsilon, double weight_decay, double step_size, double root_factor,
    double decay_factor, const double* row, void* half, int is_bfloat16, const int* skip, int* nonfinite) {
    typedef wide<T> C;
    __shared__ double quotients[2];
    if (skip && *skip) return;
    if (row) {
        if (threadIdx.x == 0) quotients[0] = row[0] / row[1], quotients[1] = 1.0 / row[2];
        __syncthreads();
        step_size = quotients[0], root_factor = quotients[1], decay_factor = row[3];
    }
    bool finite = true;
    FOR_EACH_PACK(T, i, n) {
        Pack<T> ps = load_pack(parameter, i, n), gs = load_pack(gradient, i, n);
        Pack<T> ms = load_pack(mean, i, n), ss = load_pack(square, i, n);
        FOR_EACH_IN_PACK(T, k, i, n) {
            C p = (C)ps.at[k], d = (C)gs.at[k];
            if (decay_factor != 1) p *= (C)decay_factor;
            if (weight_decay != 0) d += p * (C)weight_decay;
            C m = (C)ms.at[k] * (C)beta1 + d * (C)one_minus_beta1;
            C s = (C)ss.at[k] * (C)beta2 + d * d * (C)one_minus_beta2;
            ms.at[k] = T(m);
            ss.at[k] = T(s);
            ps.at[k] = T(p - m * (C)step_size / (sqrt(s) * (C)root_factor + (C)epsilon));
        }
        store_pack(mean, i, n, ms);
        store_pack(square, i, n, ss);
        finite &= store_parameters(parameter, i, n, ps, gs, half, is_bfloat16);
    }
    if (nonfinite && !finite) *nonfinite = 1;
}

// mean: only in the centred form. velocity: only with momentum.
template <typename T>
__global__ void rmsprop_step(
    T* parameter, const T* gradient, T* square, T* mean, T* velocity, index_t n, double alpha, double one_minus_alpha,
    double epsilon, double weight_decay, double momentum, double lr, const double* row, void* half,
    int is_bfloat16, const int* skip, int* nonfinite) {
    typedef wide<T> C;
    if (skip && *skip) return;
    if (row) lr = row[0];
    bool finite = true;
    FOR_EACH_PACK(T, i, n) {
        Pack<T> ps = load_pack(parameter, i, n), gs = load_pack(gradient, i, n), ss = load_pack(square, i, n);
        Pack<T> ms = load_pack(mean, i, n), vs = load_pack(velocity, i, n);
        FOR_EACH_IN_PACK(T, k, i, n) {
            C p = (C)ps.at[k], d = (C)gs.at[k];
            if (weight_decay != 0) d += p * (C)weight_decay;
            C s = (C)ss.at[k] * (C)alpha + d * d * (C)one_minus_alpha;
            ss.at[k] = T(s);
            if (mean) {
                C m = (C)ms.at[k] * (C)alpha + d * (C)one_minus_alpha;
                ms.at[k] = T(m);
                s -= m * m;
                if (s < C(0)) s = C(0);  // by rounding
            }
            C update = d / (sqrt(s) + (C)epsilon);
            if (velocity) {
                update = (C)vs.at[k] * (C)momentum + update;
                vs.at[k] = T(update);
            }
            ps.at[k] = T(p - update * (C)lr);
        }
        store_pack(square, i, n, ss);
        if (mean) store_pack(mean, i, n, ms);
        if (velocity) store_pack(velocity, i, n, vs);
        finite &= store_parameters(parameter, i, n, ps, gs, half, is_bfloat16);
    }
    if (nonfinite && !finite) *nonfinite = 1;
}

// mean, square, largest: null where the step has none.
template <typename T>
__global__ void moment_step(
    T* parameter, const T* gradient, T* mean, T* square, T* largest, index_t n, double mean_decay,
    double one_minus_mean_decay, double square_decay, double square_gain, double weight_decay, double lr,
    double from_mean, double from_gradient, double root_factor, double epsilon, double decay_factor, const double* row,
    void* half, int is_bfloat16, const int* skip, int* nonfinite) {
    typedef wide<T> C;
    if (skip && *skip) return;
    if (row) {
        lr = row[0], from_mean = row[1], from_gradient = row[2];
        root_factor = row[3], epsilon = row[4], decay_factor = row[5];
    }
    bool finite = true;
    FOR_EACH_PACK(T, i, n) {
        Pack<T> ps = load_pack(parameter, i, n), gs = load_pack(gradient, i, n), ms = load_pack(mean, i, n);
        Pack<T> ss = load_pack(square, i, n), ws = load_pack(largest, i, n);
        FOR_EACH_IN_PACK(T, k, i, n) {
            C p = (C)ps.at[k], g = (C)gs.at[k];
            if (decay_factor != 1) p *= (C)decay_factor;
            if (weight_decay != 0) g += p * (C)weight_decay;
            C d = g * (C)from_gradient;
            if (mean) {
                C m = (C)ms.at[k];
                d = m * (C)from_mean + d;
                ms.at[k] = T(m * (C)mean_decay + g * (C)one_minus_mean_decay);
            }
            if (square) {
                C s = (C)ss.at[k] * (C)square_decay + g * g * (C)square_gain;
                ss.at[k] = T(s);
                if (largest) {
                    C w = (C)ws.at[k];
                    s = w >= s || w != w ? w : s;  // NaN stays
                    ws.at[k] = T(s);
                }
                d /= sqrt(s) * (C)root_factor + (C)epsilon;
            } else {
                d = d > C(0) ? C(1) : d < C(0) ? C(-1) : d;  // NaN stays
            }
            ps.at[k] = T(p - d * (C)lr);
        }
        if (mean) store_pack(mean, i, n, ms);
        if (square) store_pack(square, i, n, ss);
        if (largest) store_pack(largest, i, n, ws);
        finite &= store_parameters(parameter, i, n, ps, gs, half, is_bfloat16);
    }
    if (nonfinite && !finite) *nonfinite = 1;
}

// Clipping by the norm of several arrays: one launch for each. sums: the sums of squares of the blocks of earlier
// launches, `earlier` of them, and of this one. In the last launch, norm is not null: its last block adds them up, and
// norm receives their root, factor the factor for the gradients.
template <typename T>
__global__ void square_sums(
    const T* x, wide<T>* sums, T* norm, wide<T>* factor, void* scratch, index_t n, index_t earlier, double max_norm) {
    typedef wide<T> C;
    Sum<C> terms, total;
    FOR_EACH_PACK(T, i, n) {
        Pack<T> xs = load_pack(x, i, n);
        FOR_EACH_IN_PACK(T, k, i, n) terms.add((C)xs.at[k] * (C)xs.at[k]);
    }
    C sum = block_sum(terms.value());
    if (threadIdx.x == 0) sums[earlier + blockIdx.x] = sum;
    if (!norm || !is_last_block((unsigned int*)scratch, gridDim.x)) return;
    FOR_EACH_COLUMN(i, earlier + gridDim.x) total.add(((volatile C*)sums)[i]);
    sum = sqrt(block_sum(total.value()));
    if (threadIdx.x == 0) {
        C by = (C)max_norm / (sum + C(1e-6));
        *norm = T(sum);
        *factor = by > C(1) ? C(1) : by;  // NaN stays NaN
    }
}

// padding: the indices of `padded` elements that are 0 and stay so, or null.
template <typename T>
__global__ void scale_by(
    T* x, const wide<T>* factor, const index_t* padding, void* scratch, index_t n, index_t padded) {
    wide<T> by = *factor;
    if (by == 1) return;
    FOR_EACH_PACK(T, i, n) {
        Pack<T> xs = load_pack(x, i, n);
        FOR_EACH_IN_PACK(T, k, i, n) xs.at[k] = T((wide<T>)xs.at[k] * by);
        store_pack(x, i, n, xs);
    }
    // 0 times NaN is NaN
    if (by == by || !padding || !is_last_block((unsigned int*)scratch, gridDim.x)) return;
    FOR_EACH_COLUMN(i, padded) x[padding[i]] = T(0.0f);
}

template <typename T>
__global__ void unscale(T* gradient, const float* scale, int* found, index_t n) {
    wide<T> factor = (wide<T>)(1.0f / *scale);
    bool finite = true;
    FOR_EACH_PACK(T, i, n) {
        Pack<T> gs = load_pack(gradient, i, n);
        finite &= is_finite(gs);
        FOR_EACH_IN_PACK(T, k, i, n) gs.at[k] = T((wide<T>)gs.at[k] * factor);
        store_pack(gradient, i, n, gs);
    }
    if (!finite) *found = 1;
}

// One thread.
__global__ void update_scale(
    float* scale, int* growth, const int* found, double growth_factor, double backoff_factor, index_t interval) {
    if (*found) {
        *scale = (float)(*scale * backoff_factor);
        *growth = 0;
    } else if (++*growth == interval) {
        float larger = (float)(*scale * growth_factor);
        if (larger - larger == 0.0f) *scale = larger;
        *growth = 0;
    }
}

// One thread.
__global__ void count_step(index_t* count, const int* skip) {
    if (!*skip) ++*count;
}
