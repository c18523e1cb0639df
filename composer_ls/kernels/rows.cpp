// The fused cross entropy on the CPU, a row at a time, so that a row stays in the cache of one core.
// `composer_ls.kernels.compiled` builds and calls it; the formulas stand in `composer_ls.kernels`.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

// A tensor of (N, J, S). Where it is the same along a dimension, the stride is 0.
template <class T> struct Field {
    T *data;
    int64_t example, component, position;
    T &operator()(int64_t n, int64_t j, int64_t s) const {
        return data[n * example + j * component + s * position];
    }
};

// What Python fills in, field by field: see `compiled._Task`. T is the type of the logits, C that of the arithmetic.
template <class T, class C> struct Task {
    Field<const T> logits; // along K as its component
    Field<T> grad;         // likewise; no data: not wanted
    Field<C> losses;
    Field<const int64_t> classes;
    Field<const C> hard, soft, mass, scale; // soft without data: nothing is smoothed
    Field<const uint8_t> ignored;           // no data: every row counts
    const C *prior;                         // no data: uniform
    int64_t prior_rows;                     // 1, or K with a row per class
    int64_t K, J, S;
};

struct BFloat16 {
    uint16_t bits;
    BFloat16() = default;
    explicit BFloat16(float value) { // to nearest, ties to even
        uint32_t wide;
        std::memcpy(&wide, &value, sizeof wide);
        wide += 0x7fff + ((wide >> 16) & 1);
        bits = value == value ? static_cast<uint16_t>(wide >> 16) : 0x7fc0;
    }
    explicit operator float() const {
        const uint32_t wide = static_cast<uint32_t>(bits) << 16;
        float value;
        std::memcpy(&value, &wide, sizeof value);
        return value;
    }
};

static inline double exponential(double x) { return std::exp(x); }

// exp(x) for x <= 0 to 2e-7, in operations that a compiler turns into vector code: 2^n times the polynomial of Cephes.
static inline float exponential(float x) {
    const float n = std::floor(x * 1.44269504f + 0.5f);
    const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const bool vanishes = x < -87.0f; // -inf too; NaN goes on
    const int32_t exponent = (static_cast<int32_t>(vanishes ? 0.0f : n) + 127) << 23;
    float power;
    std::memcpy(&power, &exponent, sizeof power);
    return vanishes ? 0.0f : p * power;
}

template <class C> static inline C times(C weight, C value) { // nothing weighs nothing, even infinity
    return weight == 0 ? 0 : weight * value;
}

// The combination of step(k) for all k, in lanes: a compiler may not reorder a sum of floats by itself.
template <class C, class Step, class Combine>
static inline C reduce(int64_t K, C start, Step step, Combine combine) {
    constexpr int LANES = 32;
    C lanes[LANES];
    for (int l = 0; l < LANES; ++l) lanes[l] = start;
    int64_t k = 0;
    for (; k + LANES <= K; k += LANES)
        for (int l = 0; l < LANES; ++l) lanes[l] = combine(lanes[l], step(k + l));
    C result = start;
    for (; k < K; ++k) result = combine(result, step(k));
    for (int l = 0; l < LANES; ++l) result = combine(result, lanes[l]);
    return result;
}

// The loss of one row and, if wanted, its gradient. `row` is memory for K numbers; `unit` says that the logits of a row
// lie side by side, which lets the compiler read and write them as vectors.
template <bool unit, class T, class C>
static void one_row(const Task<T, C> &task, int64_t n, int64_t s, C *row) {
    const int64_t K = task.K, J = task.J;
    const T *x = &task.logits(n, 0, s);
    T *grad = task.grad.data ? &task.grad(n, 0, s) : nullptr;
    const int64_t step = unit ? 1 : task.logits.component, grad_step = unit ? 1 : task.grad.component;
    const auto add = [](C a, C b) { return a + b; };
    const auto larger = [](C a, C b) { return b > a ? b : a; };

    if (task.ignored.data && task.ignored(n, 0, s)) {
        task.losses(n, 0, s) = 0;
        for (int64_t k = 0; grad && k < K; ++k) grad[k * grad_step] = T(C(0));
        return;
    }
    const C peak = reduce(
        K, -std::numeric_limits<C>::infinity(), [&](int64_t k) { return row[k] = C(x[k * step]); }, larger);

    C taken = 0; // of the logits less their maximum, so that the loss keeps its digits at any maximum
    for (int64_t j = 0; j < J; ++j) taken += times(task.hard(n, j, s), row[task.classes(n, j, s)] - peak);
    const bool uniform = task.soft.data && !task.prior;
    const int64_t priors = !task.soft.data || !task.prior ? 0 : task.prior_rows == 1 ? 1 : J;
    const auto prior = [&](int64_t p) { return task.prior + (task.prior_rows == 1 ? 0 : task.classes(n, p, s) * K); };
    if (uniform) {
        taken += times(task.soft(n, 0, s), reduce(K, C(0), [&](int64_t k) { return row[k] - peak; }, add) / K);
    }
    for (int64_t p = 0; p < priors; ++p) {
        const C *q = prior(p);
        taken += times(task.soft(n, p, s), reduce(K, C(0), [&](int64_t k) { return times(q[k], row[k] - peak); }, add));
    }
    const C total = reduce(K, C(0), [&](int64_t k) { return row[k] = exponential(row[k] - peak); }, add);
    const C mass = task.mass(n, 0, s);
    task.losses(n, 0, s) = times(mass, std::log(total)) - taken;
    if (!grad) return;

    const C scale = task.scale(n, 0, s), level = uniform ? task.soft(n, 0, s) * scale / K : 0;
    C factor = mass * scale / total;
    if (priors) {
        for (int64_t k = 0; k < K; ++k) row[k] *= factor;
        for (int64_t p = 0; p < priors; ++p) {
            const C *q = prior(p), amount = task.soft(n, p, s) * scale;
            for (int64_t k = 0; k < K; ++k) row[k] -= amount * q[k];
        }
        factor = 1;
    }
    for (int64_t k = 0; k < K; ++k) grad[k * grad_step] = T(row[k] * factor - level);
    for (int64_t j = 0; j < J; ++j) { // once more where the labels are, so that each is rounded once
        const int64_t label = task.classes(n, j, s);
        C value = row[label] * factor - level;
        for (int64_t i = 0; i < J; ++i)
            if (task.classes(n, i, s) == label) value -= task.hard(n, i, s) * scale;
        grad[label * grad_step] = T(value);
    }
}

// Rows first to last - 1 of the N·S rows.
template <class T, class C> static void some_rows(const Task<T, C> &task, int64_t first, int64_t last) {
    std::vector<C> row(task.K);
    const bool unit = task.logits.component == 1 && (!task.grad.data || task.grad.component == 1);
    for (int64_t i = first; i < last; ++i) {
        if (unit)
            one_row<true>(task, i / task.S, i % task.S, row.data());
        else
            one_row<false>(task, i / task.S, i % task.S, row.data());
    }
}

extern "C" {
void rows_float32(const Task<float, float> *task, int64_t first, int64_t last) { some_rows(*task, first, last); }
void rows_float64(const Task<double, double> *task, int64_t first, int64_t last) { some_rows(*task, first, last); }
void rows_bfloat16(const Task<BFloat16, float> *task, int64_t first, int64_t last) { some_rows(*task, first, last); }
}
