// Activations, bias and activation of a linear layer, and their backward passes. The formulas are those of
// gradflow.backend.ACTIVATIONS; the numbers of the activations are those of gradflow_cupy.network.CODES. ERF, which is not
// one of them, is for the kernel `activate` alone.

enum Activation { IDENTITY, RELU, LEAKY_RELU, ELU, GELU, SILU, SIGMOID, SOFTPLUS, TANH, GELU_EXACT, SELU, MISH,
                  HARDTANH, SOFTSIGN, ERF };

template <typename T>
__device__ T sigmoid(T x) {
    T decay = exp(-fabs(x));  // never above 1
    return (x >= T(0) ? T(1) : decay) / (decay + T(1));
}

constexpr double GELU_A = 0.7978845608028654, GELU_B = 0.044715;

template <typename T>
__device__ T gelu_tanh(T x) {
    return tanh((x * x * x * T(GELU_B) + x) * T(GELU_A));
}

template <typename T>
__device__ T normal_cdf(T x) {
    return (erf(x * T(0.7071067811865476)) + T(1)) * T(0.5);
}

constexpr double SELU_SCALE = 1.0507009873554805, SELU_ALPHA = 1.6732632423543772;

template <typename T>
__device__ T tanh_softplus(T s, T q) {  // s = sigmoid(x), q = 1 - s
    return s * (q + T(1)) / (q * q + T(1));
}

template <typename T>
__device__ T activation(T x, int code, T parameter) {
    switch (code) {
        case RELU: return x > T(0) ? x : (x == x ? T(0) : x);  // NaN stays NaN
        case LEAKY_RELU: return x > T(0) ? x : x * parameter;
        case ELU: return x > T(0) ? x : expm1(x) * parameter;
        case GELU: return x * T(0.5) * (gelu_tanh(x) + T(1));
        case SILU: return x * sigmoid(x);
        case SIGMOID: return sigmoid(x);
        case SOFTPLUS: return (x > T(0) ? x : T(0)) + log1p(exp(-fabs(x)));
        case TANH: return tanh(x);
        case GELU_EXACT: return x * normal_cdf(x);
        case SELU: return x > T(0) ? x * T(SELU_SCALE) : expm1(x) * T(SELU_SCALE * SELU_ALPHA);
        case MISH: {
            T s = sigmoid(x);
            return x * tanh_softplus(s, T(1) - s);
        }
        case HARDTANH: return x > T(1) ? T(1) : (x < T(-1) ? T(-1) : x);  // NaN stays NaN
        case SOFTSIGN: return x / (fabs(x) + T(1));
        case ERF: return erf(x);
        default: return x;
    }
}

template <typename T>
__device__ T activation_vjp(T g, T saved, int code, T parameter) {
    switch (code) {
        case RELU: return saved == T(0) ? T(0) : g;  // g where saved is NaN
        case LEAKY_RELU: return saved > T(0) ? g : g * parameter;
        case ELU: return saved <= T(0) ? g * (exp(saved) * parameter) : g;  // g where saved is NaN
        case GELU: {
            T t = gelu_tanh(saved);
            T inner = (saved * saved * T(3 * GELU_B) + T(1)) * T(GELU_A);
            return g * ((t + T(1) + saved * (T(1) - t * t) * inner) * T(0.5));
        }
        case GELU_EXACT: {
            T density = exp(saved * saved * T(-0.5)) * T(0.3989422804014327);
            T near = saved > T(64) ? T(64) : (saved < T(-64) ? T(-64) : saved);  // 0 times infinity would be NaN
            return g * (normal_cdf(saved) + near * density);
        }
        case SILU: {
            T s = sigmoid(saved);
            return g * (s * (saved * (T(1) - s) + T(1)));
        }
        case SELU: return g * (saved <= T(0) ? exp(saved) * T(SELU_SCALE * SELU_ALPHA) : T(SELU_SCALE));
        case MISH: {
            T s = sigmoid(saved), q = T(1) - s, sech = q * T(2) / (q * q + T(1));
            return g * (saved * s * (sech * sech) + tanh_softplus(s, q));
        }
        case HARDTANH: return fabs(saved) >= T(1) ? T(0) : g;  // g where saved is NaN
        case SOFTSIGN: {
            T bottom = fabs(saved) + T(1);
            return g / (bottom * bottom);
        }
        case SIGMOID: return g * saved * (T(1) - saved);
        case SOFTPLUS: return g * sigmoid(saved);
        case TANH: return g * (T(1) - saved * saved);
        default: return g;
    }
}

template <typename T>
__global__ void activate(const T* x, T* out, index_t n, int code, double parameter) {
    FOR_EACH_PACK(T, i, n) {
        Pack<T> xs = load_pack(x, i, n);
        FOR_EACH_IN_PACK(T, k, i, n) xs.at[k] = T(activation((wide<T>)xs.at[k], code, (wide<T>)parameter));
        store_pack(out, i, n, xs);
    }
}

template <typename T>
__global__ void activate_backward(const T* g, const T* saved, T* out, index_t n, int code, double parameter) {
    FOR_EACH_PACK(T, i, n) {
        Pack<T> gs = load_pack(g, i, n), from = load_pack(saved, i, n);
        FOR_EACH_IN_PACK(T, k, i, n)
            gs.at[k] = T(activation_vjp((wide<T>)gs.at[k], (wide<T>)from.at[k], code, (wide<T>)parameter));
        store_pack(out, i, n, gs);
    }
}

// z += bias, and out = activation(z). out may be z; bias may be null.
template <typename T>
__global__ void bias_activation(
    T* z, const T* bias, T* out, index_t rows, index_t columns, int code, double parameter) {
    index_t column = (index_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    wide<T> shift = bias ? (wide<T>)bias[column] : 0;
    FOR_EACH_CELL_ROW(row, rows) {
        index_t i = row * columns + column;
        wide<T> value = bias ? (wide<T>)z[i] + shift : (wide<T>)z[i];
        if (bias && out != z) z[i] = T(value);
        out[i] = T(activation(value, code, (wide<T>)parameter));
    }
}

// dz = the VJP of the activation; sums, (columns,), = the column sums of dz. With IDENTITY, sums are those of g; dz and
// saved are not accessed. wide_sums: where the sums go instead, without being rounded to half floats; or null.
template <typename T>
__global__ void bias_backward(
    const T* g, const T* saved, T* dz, T* sums, wide<T>* wide_sums, void* scratch, index_t rows, index_t columns, index_t chunk, int code,
    double parameter) {
    index_t column = (index_t)blockIdx.x * blockDim.x + threadIdx.x;
    Sum<wide<T>> total;
    if (column < columns) {
        FOR_EACH_OF_CHUNK(first, stop, rows, chunk) {
            wide<T> value[AT_ONCE], from[AT_ONCE];
            for (int k = 0; k < AT_ONCE; k++) {
                index_t row = first + k * blockDim.y;
                value[k] = row < stop ? (wide<T>)g[row * columns + column] : 0;
                from[k] = row < stop && code != IDENTITY ? (wide<T>)saved[row * columns + column] : 0;
            }
            for (int k = 0; k < AT_ONCE; k++) {
                index_t row = first + k * blockDim.y;
                if (row >= stop) break;
                if (code != IDENTITY) {
                    value[k] = activation_vjp(value[k], from[k], code, (wide<T>)parameter);
                    dz[row * columns + column] = T(value[k]);
                }
                total.add(value[k]);
            }
        }
    }
    wide<T> all[1] = {total.value()};
    if (!sum_columns(all, scratch) || column >= columns) return;
    if (wide_sums) wide_sums[column] = all[0];
    else sums[column] = T(all[0]);
}
