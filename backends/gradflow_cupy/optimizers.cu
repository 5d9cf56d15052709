// Steps of optimizers over flat arrays, and clipping by the global norm. Factors that depend on the step alone come
// ready from the host; they are rounded to T here, as a Python number is when it meets an array.

template <typename T>
__global__ void sgd_step(
    T* parameter, const T* gradient, T* velocity, index_t n, double lr, double momentum, double undamped, int nesterov,
    double weight_decay, int first) {
    FOR_EACH_ELEMENT(i, n) {
        T p = parameter[i], d = gradient[i];
        if (weight_decay != 0) d += p * (T)weight_decay;
        if (velocity) {
            T v = first ? d : velocity[i] * (T)momentum + d * (T)undamped;
            velocity[i] = v;
            d = nesterov ? d + v * (T)momentum : v;
        }
        parameter[i] = p - d * (T)lr;
    }
}

// shrink: the factor of the parameter (1 if its decay is not decoupled); decay: what is added to the gradient.
template <typename T>
__global__ void adam_step(
    T* parameter, const T* gradient, T* mean, T* square, index_t n, double rate, double beta1, double rest1,
    double beta2, double rest2, double correction, double epsilon, double shrink, double decay) {
    FOR_EACH_ELEMENT(i, n) {
        T p = parameter[i], g = gradient[i];
        if (shrink != 1) p *= (T)shrink;
        if (decay != 0) g += p * (T)decay;
        T m = mean[i] * (T)beta1 + g * (T)rest1;
        T s = square[i] * (T)beta2 + g * g * (T)rest2;
        mean[i] = m;
        square[i] = s;
        parameter[i] = p - m * (T)rate / (sqrt(s) * (T)correction + (T)epsilon);
    }
}

// mean is given for the centred form, velocity for the form with momentum.
template <typename T>
__global__ void rmsprop_step(
    T* parameter, const T* gradient, T* square, T* mean, T* velocity, index_t n, double lr, double alpha, double rest,
    double epsilon, double weight_decay, double momentum) {
    FOR_EACH_ELEMENT(i, n) {
        T p = parameter[i], g = gradient[i];
        if (weight_decay != 0) g += p * (T)weight_decay;
        T s = square[i] * (T)alpha + g * g * (T)rest;
        square[i] = s;
        if (mean) {
            T m = mean[i] * (T)alpha + g * (T)rest;
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

// One block: result[0] is the norm, result[1] what to multiply by.
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
