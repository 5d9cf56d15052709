// Optimizer steps over flat arrays, and clipping by the global norm. Numbers come as double, computed on the host, and
// are rounded to T here, as array libraries round a Python number in an operation with an array. Names are those in
// gradflow/backend/optimizer_steps.py: first the options, then the scalars, which change with each step.

template <typename T>
__global__ void sgd_step(
    T* parameter, const T* gradient, T* velocity, index_t n, double momentum, double one_minus_dampening,
    double weight_decay, int nesterov, double lr, double first) {
    FOR_EACH_ELEMENT(i, n) {
        T p = parameter[i], d = gradient[i];
        if (weight_decay != 0) d += p * (T)weight_decay;
        if (velocity) {
            T v = first != 0 ? d : velocity[i] * (T)momentum + d * (T)one_minus_dampening;
            velocity[i] = v;
            d = nesterov ? d + v * (T)momentum : v;
        }
        parameter[i] = p - d * (T)lr;
    }
}

// step_size: lr / bias_correction1. root_factor: 1 / bias_correction2_root.
template <typename T>
__global__ void adam_step(
    T* parameter, const T* gradient, T* mean, T* square, index_t n, double beta1, double one_minus_beta1, double beta2,
    double one_minus_beta2, double epsilon, double weight_decay, double step_size, double root_factor,
    double decay_factor) {
    FOR_EACH_ELEMENT(i, n) {
        T p = parameter[i], g = gradient[i];
        if (decay_factor != 1) p *= (T)decay_factor;
        if (weight_decay != 0) g += p * (T)weight_decay;
        T m = mean[i] * (T)beta1 + g * (T)one_minus_beta1;
        T s = square[i] * (T)beta2 + g * g * (T)one_minus_beta2;
        mean[i] = m;
        square[i] = s;
        parameter[i] = p - m * (T)step_size / (sqrt(s) * (T)root_factor + (T)epsilon);
    }
}

// mean: only in the centred form. velocity: only with momentum.
template <typename T>
__global__ void rmsprop_step(
    T* parameter, const T* gradient, T* square, T* mean, T* velocity, index_t n, double alpha, double one_minus_alpha,
    double epsilon, double weight_decay, double momentum, double lr) {
    FOR_EACH_ELEMENT(i, n) {
        T p = parameter[i], g = gradient[i];
        if (weight_decay != 0) g += p * (T)weight_decay;
        T s = square[i] * (T)alpha + g * g * (T)one_minus_alpha;
        square[i] = s;
        if (mean) {
            T m = mean[i] * (T)alpha + g * (T)one_minus_alpha;
            mean[i] = m;
            s -= m * m;
            if (s < T(0)) s = T(0);  // by rounding
        }
        T update = g / (sqrt(s) + (T)epsilon);
        if (velocity) {
            update = velocity[i] * (T)momentum + update;
            velocity[i] = update;
        }
        parameter[i] = p - update * (T)lr;
    }
}

template <typename T>
__global__ void square_sums(const T* x, T* partial, index_t n) {
    Sum<T> terms;
    FOR_EACH_ELEMENT(i, n) terms.add(x[i] * x[i]);
    T total = block_sum(terms.value());
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// One block. result[0]: the norm; result[1]: the factor for the gradients.
template <typename T>
__global__ void clip_factor(const T* partial, T* result, index_t n, double max_norm) {
    Sum<T> total;
    FOR_EACH_COLUMN(i, n) total.add(partial[i]);
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
