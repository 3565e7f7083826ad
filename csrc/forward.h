/* forward.h -- the forward pass, included by each forward_*.c with
 *
 *   NAME             of the function to make
 *   TARGET           attributes of every function here
 *   LANES            floats of a vector
 *   MULADD(a, v, c)  float a times vector v plus vector c
 *
 * Up to six rows are taken together: each weight is loaded once for all of them, and their sums
 * stay in registers (twelve, with two of weights and one of input). Inputs are gone through by a
 * list that leaves out what adds nothing: columns that are equal in all rows of the call are summed
 * up once before, and hidden units that are off in all six rows are skipped.
 */
#include "model.h"

#include <math.h>
#include <string.h>

#define LEAST_SECONDS 1e-4f
#define MOST_SECONDS 1e9f
#define ROWS 6
#define VECTORS ((LS_WIDTH + LANES - 1) / LANES) /* of a row; the last one overlaps */
#define AT(v) ((v) + 1 < VECTORS ? (v) * LANES : LS_WIDTH - LANES)

_Static_assert(LS_WIDTH >= LANES && LS_WIDTH <= LS_MAX_HIDDEN, "a row is a layer's input");
_Static_assert(LS_PANEL % (2 * LANES) == 0, "a panel is taken two vectors at a time");

typedef float vec __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t masks __attribute__((vector_size(LANES * sizeof(float))));

/* A layer's outputs of up to ROWS rows, or its inputs. */
typedef float activations[ROWS][LS_MAX_HIDDEN];

static TARGET inline vec load(const float *from) {
    vec value;
    memcpy(&value, from, sizeof value);
    return value;
}

static TARGET inline void store(float *to, vec value) {
    memcpy(to, &value, sizeof value);
}

static TARGET inline vec select(masks where, vec yes, vec no) {
    return (vec)(((masks)yes & where) | ((masks)no & ~where));
}

static TARGET inline int any(masks set) {
    uint64_t words[LANES / 2], all = 0;
    memcpy(words, &set, sizeof words);
    for (int i = 0; i < LANES / 2; i++) all |= words[i];
    return all != 0;
}

/* The lanes of a row's last vector that the one before has not had. */
static TARGET inline masks fresh_lanes(void) {
    static const int32_t window[2 * LANES] = {[LANES] = -1,
                                              -1,
                                              -1,
                                              -1,
#if LANES == 8
                                              -1,
                                              -1,
                                              -1,
                                              -1
#endif
    };
    masks value;
    memcpy(&value, window + LS_WIDTH - (VECTORS - 1) * LANES, sizeof value);
    return value;
}

static TARGET inline float sum(vec value) {
    float lane[LANES];
    memcpy(lane, &value, sizeof lane);
    float total = (lane[0] + lane[1]) + (lane[2] + lane[3]);
#if LANES == 8
    total += (lane[4] + lane[5]) + (lane[6] + lane[7]);
#endif
    return total;
}

/* ---- A row by itself ------------------------------------------------------------------------- */

static TARGET float linear_part(const struct ls_model *m, const float *x) {
    vec total = {0};
    for (int v = 0; v + 1 < VECTORS; v++) total += load(x + AT(v)) * load(m->linear + AT(v));
    vec last = (vec)((masks)load(x + LS_WIDTH - LANES) & fresh_lanes());
    return sum(total + last * load(m->linear + LS_WIDTH - LANES));
}

static TARGET int inside(const struct ls_model *m, const float *x) {
    masks out = {0};
    for (int v = 0; v < VECTORS; v++) { /* written so that NaN is outside */
        vec value = load(x + AT(v));
        out |= ~((value >= load(m->range_low + AT(v))) & (value <= load(m->range_high + AT(v))));
    }
    return !any(out);
}

static TARGET void clip_row(const struct ls_model *m, const float *x, float *out) {
    for (int i = LS_WIDTH / LS_PANEL * LS_PANEL; i < LS_PANELS(LS_WIDTH) * LS_PANEL; i += LANES)
        store(out + i, (vec){0}); /* the last layer reads whole panels */
    for (int v = 0; v < VECTORS; v++) {
        vec value = load(x + AT(v)), low = load(m->clip_low + AT(v));
        vec high = load(m->clip_high + AT(v));
        value = select(value < low, low, value);
        store(out + AT(v), select(value > high, high, value));
    }
}

/* Written so that NaN, of huge weights, is the worst and not the best, or no correction. */
static float bounded(float t) {
    return t < MOST_SECONDS ? (t > LEAST_SECONDS ? t : LEAST_SECONDS) : MOST_SECONDS;
}

static float corrected(const struct ls_model *m, float t, float log_factor) {
    if (isnan(log_factor)) return t;
    if (log_factor > m->bound) log_factor = m->bound;
    if (log_factor < -m->bound) log_factor = -m->bound;
    t *= expf(log_factor);
    return t < MOST_SECONDS ? t : MOST_SECONDS;
}

/* ---- Layers ---------------------------------------------------------------------------------- */

/* Of the inputs, count of them in list, to one panel of outputs, negative ones 0. start: the sums
 * before. One function for each number of rows. */
#define ROWS_1(EACH) EACH(0)
#define ROWS_2(EACH) ROWS_1(EACH) EACH(1)
#define ROWS_3(EACH) ROWS_2(EACH) EACH(2)
#define ROWS_4(EACH) ROWS_3(EACH) EACH(3)
#define ROWS_5(EACH) ROWS_4(EACH) EACH(4)
#define ROWS_6(EACH) ROWS_5(EACH) EACH(5)
#define BEGIN(r) vec a##r = first, b##r = second;
#define ADD(r)                                                                                     \
    a##r = MULADD(in[r][list[k]], w0, a##r);                                                       \
    b##r = MULADD(in[r][list[k]], w1, b##r);
#define END(r)                                                                                     \
    store(out[r] + at + half, select(a##r > 0, a##r, (vec){0}));                                   \
    store(out[r] + at + half + LANES, select(b##r > 0, b##r, (vec){0}));
#define PANEL_OF(n)                                                                                \
    static TARGET void panel_##n(const float *weight, const float *start, const uint16_t *list,    \
                                 uint32_t count, const activations in, activations out,            \
                                 uint32_t at) {                                                    \
        for (uint32_t half = 0; half < LS_PANEL; half += 2 * LANES) {                              \
            vec first = load(start + half), second = load(start + half + LANES);                   \
            ROWS_##n(BEGIN) for (uint32_t k = 0; k < count; k++) {                                 \
                const float *w = weight + (uint32_t)list[k] * LS_PANEL + half;                     \
                vec w0 = load(w), w1 = load(w + LANES);                                            \
                ROWS_##n(ADD)                                                                      \
            }                                                                                      \
            ROWS_##n(END)                                                                          \
        }                                                                                          \
    }
PANEL_OF(1)
PANEL_OF(2)
PANEL_OF(3)
PANEL_OF(4)
PANEL_OF(5)
PANEL_OF(6)

/* A hidden layer of n rows. starts: a line for each panel and `stride` floats from one to the next.
 */
static TARGET void hidden_layer(const float *params, uint32_t inputs, uint32_t panels,
                                const float *starts, uint32_t stride, const uint16_t *list,
                                uint32_t count, uint32_t n, const activations in, activations out) {
    static void (*const panel[ROWS])(const float *, const float *, const uint16_t *, uint32_t,
                                     const activations, activations, uint32_t) = {
        panel_1, panel_2, panel_3, panel_4, panel_5, panel_6};
    for (uint32_t p = 0; p < panels; p++, params += (inputs + 1) * LS_PANEL, starts += stride)
        panel[n - 1](params + LS_PANEL, starts, list, count, in, out, p * LS_PANEL);
}

/* Lists the inputs that are not 0 in all rows. Returns how many. */
static TARGET uint32_t list_active(uint32_t inputs, uint32_t n, const activations in,
                                   uint16_t *list) {
    uint32_t count = 0;
    for (uint32_t i = 0; i < inputs; i += LANES) { /* rows are whole panels */
        masks set = {0};
        int32_t lanes[LANES];
        for (uint32_t r = 0; r < n; r++) set |= (masks)load(in[r] + i);
        memcpy(lanes, &set, sizeof lanes);
        for (uint32_t lane = 0; lane < LANES; lane++) {
            list[count] = (uint16_t)(i + lane);
            count += lanes[lane] != 0;
        }
    }
    return count;
}

static TARGET float last_layer(const float *params, uint32_t inputs, const float *in) {
    uint32_t padded = LS_PANELS(inputs) * LS_PANEL;
    vec a = {0}, b = {0};
    for (uint32_t i = 0; i < padded; i += 2 * LANES) {
        a += load(in + i) * load(params + i);
        b += load(in + i + LANES) * load(params + i + LANES);
    }
    return sum(a + b) + params[padded];
}

/* ---- The pass -------------------------------------------------------------------------------- */

/* What is the same for all rows of a call: the first layer's sums over the columns that are. */
struct shared {
    _Alignas(64) float starts[LS_MAX_HIDDEN];
    uint16_t list[LS_WIDTH]; /* the other columns */
    uint32_t count;
};

static TARGET void share(const struct ls_model *m, const float *rows, uint32_t n,
                         struct shared *s) {
    float x[LS_PANELS(LS_WIDTH) * LS_PANEL];
    int32_t differ[LS_WIDTH];
    masks differs[VECTORS];
    memset(differs, 0, sizeof differs);
    for (uint32_t r = 1; r < n; r++)
        for (int v = 0; v < VECTORS; v++)
            differs[v] |= (masks)load(rows + AT(v)) ^ (masks)load(rows + r * LS_WIDTH + AT(v));
    for (int v = 0; v < VECTORS; v++) memcpy(differ + AT(v), &differs[v], sizeof *differs);
    clip_row(m, rows, x);
    s->count = 0;
    for (uint32_t i = 0; i < LS_WIDTH; i++)
        if (differ[i]) s->list[s->count++] = (uint16_t)i;
    for (uint32_t p = 0; p < LS_PANELS(m->dims[1]); p++) {
        const float *weight = m->params + p * (LS_WIDTH + 1) * LS_PANEL;
        for (uint32_t at = 0; at < LS_PANEL; at += LANES) {
            vec start = load(weight + at);
            for (uint32_t i = 0; i < LS_WIDTH; i++)
                if (!differ[i]) start = MULADD(x[i], load(weight + (i + 1) * LS_PANEL + at), start);
            store(s->starts + p * LS_PANEL + at, start);
        }
    }
}

/* The MLP for n <= ROWS rows. */
static TARGET void log_factors(const struct ls_model *m, const struct shared *s, const float *rows,
                               uint32_t n, float *out) {
    _Alignas(64) activations x, y;
    float (*in)[LS_MAX_HIDDEN] = x, (*to)[LS_MAX_HIDDEN] = y, (*swap)[LS_MAX_HIDDEN];
    uint16_t list[LS_MAX_HIDDEN + 1];
    const float *params = m->params;
    for (uint32_t r = 0; r < n; r++) clip_row(m, rows + r * LS_WIDTH, x[r]);
    for (uint32_t layer = 0; layer + 1 < m->layers; layer++) {
        uint32_t inputs = m->dims[layer], panels = LS_PANELS(m->dims[layer + 1]);
        if (layer == 0)
            hidden_layer(params, inputs, panels, s->starts, LS_PANEL, s->list, s->count, n,
                         (const float (*)[LS_MAX_HIDDEN])in, to);
        else
            hidden_layer(params, inputs, panels, params, (inputs + 1) * LS_PANEL, list,
                         list_active(inputs, n, (const float (*)[LS_MAX_HIDDEN])in, list), n,
                         (const float (*)[LS_MAX_HIDDEN])in, to);
        params += panels * (inputs + 1) * LS_PANEL;
        swap = in, in = to, to = swap;
    }
    for (uint32_t r = 0; r < n; r++) out[r] = last_layer(params, m->dims[m->layers - 1], in[r]);
}

TARGET void NAME(const struct ls_model *m, const float *rows, uint32_t n, float *seconds,
                 uint8_t *outside) {
    struct shared s;
    if (m->layers > 1) share(m, rows, n, &s);
    /* Blocks of like size: 8 rows are 4 and 4, not 6 and 2. */
    uint32_t blocks = (n + ROWS - 1) / ROWS;
    for (uint32_t b = 0, start = 0, end; b < blocks; b++, start = end) {
        end = (uint32_t)((uint64_t)n * (b + 1) / blocks);
        float log_factor[ROWS] = {0};
        if (m->layers > 0)
            log_factors(m, &s, rows + (size_t)start * LS_WIDTH, end - start, log_factor);
        for (uint32_t i = start; i < end; i++) {
            const float *x = rows + (size_t)i * LS_WIDTH;
            float t = bounded(linear_part(m, x));
            outside[i] = m->layers > 0 && !inside(m, x);
            seconds[i] = m->layers > 0 && !outside[i] ? corrected(m, t, log_factor[i - start]) : t;
        }
    }
}
