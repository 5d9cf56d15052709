// A stand-in for the part of cuBLASLt that gradflow_cupy.cublaslt calls. It computes on the CPU what NVIDIA's headers
// document, and is strict: what the headers ask for and is not so gives CUBLAS_STATUS_INVALID_VALUE (7).
//
// Tests read and set the variables whose names start with `stand_in_`.

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <map>
#include <vector>

enum { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_64F = 1, R_16F = 2, R_16BF = 14 };
enum { COMPUTE_64F = 70, COMPUTE_32F = 68, COMPUTE_TF32 = 77 };
enum { TRANSA = 3, TRANSB = 4, EPILOGUE = 7, BIAS_POINTER = 8, AUX_POINTER = 11, AUX_LD = 12 };
enum { BATCH_COUNT = 5, BATCH_OFFSET = 6 };
enum { WORKSPACE = 1, SCHEMES = 3, ALIGNMENT_A = 5, ALIGNMENT_D = 8 };

typedef std::map<int, uint64_t> Attributes;

struct Handle { uint64_t magic = 0x4841; };
struct Descriptor { int compute, scale; Attributes set; };
struct Layout { int type; uint64_t rows, columns; int64_t ld; Attributes set; };
struct Preference { Attributes set; };
struct Result { uint64_t algorithm[8]; size_t workspace; int state; float waves; int reserved[4]; };

extern "C" {
int stand_in_relu_of_nan_is_zero = 0;  // NVIDIA documents neither this nor that NaN stays NaN
int stand_in_refused_epilogue = 0;     // an epilogue that no algorithm has
int stand_in_refuses_vectors = 0;      // whether no epilogue works for m = 1 and n = 1
int stand_in_status = 0;               // what cublasLtMatmul answers
int stand_in_products = 0;             // how many products were computed
int stand_in_objects = 0;              // how many descriptors, layouts and preferences exist
int stand_in_queries = 0;              // how often the heuristic was asked
int stand_in_algorithm = 0;            // the number of the algorithm that was used last
}

static size_t size_of(int type) { return type == R_64F ? 8 : type == R_32F ? 4 : 2; }

static float from_half(uint16_t bits) {
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                                : exponent ? ldexpf(1024 + fraction, exponent - 25) : ldexpf(fraction, -24);
    return bits & 0x8000 ? -size : size;
}

static uint16_t to_half(float value) {  // to nearest, ties to even
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    float size = fabsf(value);
    if (size != size) return sign | 0x7E00;
    if (size >= 65520) return sign | 0x7C00;
    if (size < ldexpf(1, -14)) return sign | (uint16_t)nearbyintf(ldexpf(size, 24));
    int exponent;
    frexpf(size, &exponent);  // size = fraction * 2^exponent, fraction in [0.5, 1)
    return sign | (uint16_t)(((exponent + 13) << 10) + (int)nearbyintf(ldexpf(size, 11 - exponent)));
}

static uint32_t bits_of(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }
static float float_of(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }

static double load(const void* at, size_t i, int type) {
    switch (type) {
        case R_64F: return ((const double*)at)[i];
        case R_32F: return ((const float*)at)[i];
        case R_16F: return from_half(((const uint16_t*)at)[i]);
        default: return float_of((uint32_t)((const uint16_t*)at)[i] << 16);
    }
}

static void store(void* at, size_t i, int type, double value) {
    switch (type) {
        case R_64F: ((double*)at)[i] = value; return;
        case R_32F: ((float*)at)[i] = (float)value; return;
        case R_16F: ((uint16_t*)at)[i] = to_half((float)value); return;
        default: {
            uint32_t bits = bits_of((float)value);
            ((uint16_t*)at)[i] = value != value ? 0x7FC0 : (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
        }
    }
}

static double gelu(double x) { return 0.5 * x * (1 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))); }

// What of an epilogue is in its bits.
static bool has_relu(uint64_t e) { return e & 2; }
static bool has_bias(uint64_t e) { return e & 4; }
static bool has_gelu(uint64_t e) { return e & 32; }
static bool has_aux(uint64_t e) { return e & 128; }
static const uint64_t EPILOGUES[] = {1, 2, 4, 6, 160, 164};

static uint64_t get(const Attributes& set, int which, uint64_t otherwise = 0) {
    auto found = set.find(which);
    return found == set.end() ? otherwise : found->second;
}

static int put(Attributes& set, int which, const void* value, size_t size, std::map<int, size_t> sizes) {
    if (!sizes.count(which) || sizes[which] != size) return INVALID_VALUE;
    set[which] = 0;
    memcpy(&set[which], value, size);
    return SUCCESS;
}

static int read(const Attributes& set, int which, void* value, size_t size, size_t* written) {
    uint64_t found = get(set, which);
    if (written) *written = size;
    memcpy(value, &found, size);
    return SUCCESS;
}

static uint64_t count(const Layout* l) { return get(l->set, BATCH_COUNT, 1); }
static int64_t offset(const Layout* l) { return (int64_t)get(l->set, BATCH_OFFSET); }

// m, n, k and whether everything fits together as the headers say.
static int fits(const Descriptor* d, const Layout* A, const Layout* B, const Layout* C, const Layout* D, uint64_t* mnk) {
    bool ta = get(d->set, TRANSA), tb = get(d->set, TRANSB);
    uint64_t m = ta ? A->columns : A->rows, k = ta ? A->rows : A->columns, n = tb ? B->rows : B->columns;
    uint64_t epilogue = get(d->set, EPILOGUE, 1);
    if (k != (tb ? B->columns : B->rows) || D->rows != m || D->columns != n || !m || !n || !k) return INVALID_VALUE;
    if (C != D) return NOT_SUPPORTED;
    for (const Layout* l : {A, B, D})
        if (l->ld < (int64_t)l->rows || count(l) != count(D) || !count(l)) return INVALID_VALUE;
    if (count(D) > 1 && (epilogue != 1 || offset(D) < D->ld * (int64_t)D->columns)) return NOT_SUPPORTED;
    bool half = A->type == R_16F || A->type == R_16BF;
    if (A->type != B->type || !(D->type == A->type || (half && D->type == R_32F))) return NOT_SUPPORTED;
    if (d->scale != (A->type == R_64F ? R_64F : R_32F)) return NOT_SUPPORTED;
    if (A->type == R_64F ? d->compute != COMPUTE_64F || epilogue != 1
                         : d->compute != COMPUTE_32F && !(d->compute == COMPUTE_TF32 && A->type == R_32F))
        return NOT_SUPPORTED;
    if (std::find(std::begin(EPILOGUES), std::end(EPILOGUES), epilogue) == std::end(EPILOGUES)) return INVALID_VALUE;
    if (has_aux(epilogue) && (get(d->set, AUX_LD) % 8 || get(d->set, AUX_LD) < m)) return INVALID_VALUE;
    if (epilogue != 1 && (epilogue == (uint64_t)stand_in_refused_epilogue || (stand_in_refuses_vectors && (m == 1 || n == 1))))
        return NOT_SUPPORTED;
    mnk[0] = m, mnk[1] = n, mnk[2] = k;
    return SUCCESS;
}

template <typename T, typename... Values>
static int make(void** out, Values... values) {
    *out = new T{values...};
    stand_in_objects++;
    return SUCCESS;
}

template <typename T>
static int destroy(void* object) {
    delete (T*)object;
    stand_in_objects--;
    return SUCCESS;
}

extern "C" {

size_t cublasLtGetVersion() { return 130102; }

const char* cublasLtGetStatusString(int status) {
    switch (status) {
        case SUCCESS: return "success";
        case NOT_INITIALIZED: return "the library was not initialized";
        case INVALID_VALUE: return "an unsupported value or parameter was passed to the function";
        case NOT_SUPPORTED: return "the requested functionality is not supported";
        default: return "an error";
    }
}

int cublasLtCreate(void** handle) { *handle = new Handle; return SUCCESS; }

int cublasLtMatmulDescCreate(void** out, int compute, int scale) { return make<Descriptor>(out, compute, scale); }
int cublasLtMatmulDescDestroy(void* d) { return destroy<Descriptor>(d); }
int cublasLtMatmulDescSetAttribute(void* d, int which, const void* value, size_t size) {
    return put(((Descriptor*)d)->set, which, value, size,
               {{TRANSA, 4}, {TRANSB, 4}, {EPILOGUE, 4}, {BIAS_POINTER, 8}, {AUX_POINTER, 8}, {AUX_LD, 8}});
}
int cublasLtMatmulDescGetAttribute(void* d, int which, void* value, size_t size, size_t* written) {
    Descriptor* of = (Descriptor*)d;
    if (which < 2) { memcpy(value, which ? &of->scale : &of->compute, 4); return SUCCESS; }
    return read(of->set, which, value, size, written);
}

int cublasLtMatrixLayoutCreate(void** out, int type, uint64_t rows, uint64_t columns, int64_t ld) {
    return make<Layout>(out, type, rows, columns, ld);
}
int cublasLtMatrixLayoutSetAttribute(void* l, int which, const void* value, size_t size) {
    return put(((Layout*)l)->set, which, value, size, {{BATCH_COUNT, 4}, {BATCH_OFFSET, 8}});
}
int cublasLtMatrixLayoutDestroy(void* l) { return destroy<Layout>(l); }
int cublasLtMatrixLayoutGetAttribute(void* l, int which, void* value, size_t size, size_t* written) {
    Layout* of = (Layout*)l;
    Attributes all = {{BATCH_COUNT, count(of)}, {BATCH_OFFSET, (uint64_t)offset(of)}, {0, (uint64_t)of->type}, {2, of->rows}, {3, of->columns}, {4, (uint64_t)of->ld}};
    return read(all, which, value, size, written);
}

int cublasLtMatmulPreferenceCreate(void** out) { return make<Preference>(out); }
int cublasLtMatmulPreferenceDestroy(void* p) { return destroy<Preference>(p); }
int cublasLtMatmulPreferenceSetAttribute(void* p, int which, const void* value, size_t size) {
    return put(((Preference*)p)->set, which, value, size,
               {{WORKSPACE, 8}, {SCHEMES, 4}, {5, 4}, {6, 4}, {7, 4}, {8, 4}});
}
int cublasLtMatmulPreferenceGetAttribute(void* p, int which, void* value, size_t size, size_t* written) {
    return read(((Preference*)p)->set, which, value, size, written);
}

// Algorithm 0 splits a long k, and needs a workspace; the others do not.
int cublasLtMatmulAlgoGetHeuristic(void* handle, void* d, void* A, void* B, void* C, void* D, void* preference,
                                   int most, Result* results, int* found) {
    uint64_t mnk[3];
    *found = 0;
    stand_in_queries++;
    if (((Handle*)handle)->magic != 0x4841) return NOT_INITIALIZED;
    int status = fits((Descriptor*)d, (Layout*)A, (Layout*)B, (Layout*)C, (Layout*)D, mnk);
    if (status) return status;
    Attributes& set = ((Preference*)preference)->set;
    uint64_t alignment = 256;
    for (int which = ALIGNMENT_A; which <= ALIGNMENT_D; which++) alignment = std::min(alignment, get(set, which, 256));
    if (alignment < size_of(((Layout*)A)->type)) return INVALID_VALUE;
    bool split = mnk[2] > 64 && get(set, WORKSPACE) >= 1024;
    for (int i = 0; i < std::min(most, 3); i++) {
        memset(&results[i], 0, sizeof(Result));
        results[i].algorithm[0] = 0xA160 + i;
        results[i].algorithm[1] = alignment;
        memcpy(&results[i].algorithm[2], mnk, sizeof(mnk));
        results[i].algorithm[5] = get(((Descriptor*)d)->set, EPILOGUE, 1);
        results[i].workspace = split && i == 0 ? 1024 : 0;
        *found = i + 1;
    }
    return SUCCESS;
}

int cublasLtMatmul(void* handle, void* descriptor, const void* alpha, const void* a, void* lA, const void* b, void* lB,
                   const void* beta, const void* c, void* lC, void* out, void* lD, const uint64_t* algorithm,
                   void* workspace, size_t bytes, void* stream) {
    Descriptor* d = (Descriptor*)descriptor;
    Layout *A = (Layout*)lA, *B = (Layout*)lB, *D = (Layout*)lD;
    uint64_t mnk[3], epilogue = get(d->set, EPILOGUE, 1);
    if (stand_in_status) return stand_in_status;
    int status = fits(d, A, B, (Layout*)lC, D, mnk);
    if (status) return status;
    uint64_t m = mnk[0], n = mnk[1], k = mnk[2], alignment = algorithm[1];
    const void* bias = (const void*)get(d->set, BIAS_POINTER);
    void* aux = (void*)get(d->set, AUX_POINTER);
    if (algorithm[0] < 0xA160 || algorithm[0] > 0xA162 || memcmp(&algorithm[2], mnk, sizeof(mnk)) || algorithm[5] != epilogue)
        return INVALID_VALUE;
    if (c != out || ((uint64_t)a | (uint64_t)b | (uint64_t)out) % alignment) return INVALID_VALUE;
    if (has_bias(epilogue) && (!bias || (uint64_t)bias % alignment)) return INVALID_VALUE;
    if (has_aux(epilogue) && (!aux || (uint64_t)aux % alignment)) return INVALID_VALUE;
    if (algorithm[0] == 0xA160 && k > 64) {
        if (!workspace || bytes < 1024) return INVALID_VALUE;
        memset(workspace, 0xFF, 1024);
    }
    stand_in_algorithm = (int)(algorithm[0] - 0xA160);
    bool wide = A->type == R_64F, ta = get(d->set, TRANSA), tb = get(d->set, TRANSB);
    double one = wide ? *(const double*)alpha : *(const float*)alpha, kept = wide ? *(const double*)beta : *(const float*)beta;
    auto element = [&](const void* at, Layout* l, uint64_t row, uint64_t column) {
        double value = load(at, row + column * l->ld, l->type);
        // 10 bits of the fraction
        return d->compute == COMPUTE_TF32 ? (double)float_of((bits_of((float)value) + 0x1000) & 0xFFFFE000) : value;
    };
    std::vector<double> left(k * m), sums(m);
    for (uint64_t each = 0; each < count(D); each++) {
    if (each) {
        a = (const char*)a + offset(A) * size_of(A->type), b = (const char*)b + offset(B) * size_of(B->type);
        c = out = (char*)out + offset(D) * size_of(D->type);
        if (((uint64_t)a | (uint64_t)b | (uint64_t)out) % alignment) return INVALID_VALUE;
    }
    for (uint64_t p = 0; p < k; p++)
        for (uint64_t i = 0; i < m; i++) left[p * m + i] = ta ? element(a, A, p, i) : element(a, A, i, p);
    for (uint64_t j = 0; j < n; j++) {
        std::fill(sums.begin(), sums.end(), 0.0);
        for (uint64_t p = 0; p < k; p++) {
            double factor = tb ? element(b, B, j, p) : element(b, B, p, j), *from = &left[p * m];
            for (uint64_t i = 0; i < m; i++) sums[i] += from[i] * factor;
        }
        for (uint64_t i = 0; i < m; i++) {
            double value = one * sums[i];
            if (kept != 0) value += kept * load(c, i + j * D->ld, D->type);
            if (has_bias(epilogue)) value += load(bias, i, D->type);
            if (has_aux(epilogue)) store(aux, i + j * get(d->set, AUX_LD), D->type, value);
            if (has_relu(epilogue)) value = value != value ? (stand_in_relu_of_nan_is_zero ? 0 : value) : std::max(value, 0.0);
            if (has_gelu(epilogue)) value = gelu(value);
            store(out, i + j * D->ld, D->type, value);
        }
    }
    }
    stand_in_products++;
    return SUCCESS;
}
}
