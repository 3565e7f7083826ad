/* mlp.c -- weight blobs and the forward pass (lodestar.h draws the blob and states the formula).
 *
 * A blob comes from a file or another thread: nothing in it is believed before it is checked. The
 * pass takes four rows at a time, so that each weight is loaded once for four of them; vectors are
 * the compiler's own (GCC and Clang), which turn into whatever registers the target has.
 */
#include "lodestar.h"

#include <math.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "blobs and samples are little endian; swap them here before building for this machine"
#endif

#define LEAST_SECONDS 1e-4f
#define MOST_SECONDS 1e9f
#define ROWS 4
#define PAD_HIDDEN LS_PAD(LS_MAX_HIDDEN)

_Static_assert(LS_WIDTH <= LS_MAX_HIDDEN, "a row is a layer's input");

typedef float lanes __attribute__((vector_size(LS_LANES / 2 * sizeof(float))));
typedef int32_t masks __attribute__((vector_size(LS_LANES / 2 * sizeof(float))));

/* ---- The table of features ------------------------------------------------------------------- */

#define TABLE_ROW(name, unit, scale, expression, help) {#name, unit, #scale, help, scale},
const struct ls_feature_row ls_feature_table[LS_WIDTH] = {LS_FEATURES(TABLE_ROW)};

uint64_t ls_schema_hash(void) {
#define TEXT_ROW(name, unit, scale, expression, help) #name "|" unit "|" #scale ";"
    static const char text[] = LS_FEATURES(TEXT_ROW);
    uint64_t hash = 0xCBF29CE484222325u;
    for (size_t i = 0; i + 1 < sizeof text; i++) hash = (hash ^ (uint8_t)text[i]) * 0x100000001B3u;
    return hash;
}

/* ---- Blob ------------------------------------------------------------------------------------ */

struct reader {
    const uint8_t *at;
    size_t left;
};

static int take(struct reader *in, void *out, size_t bytes) {
    if (in->left < bytes) return LS_ESIZE;
    memcpy(out, in->at, bytes);
    in->at += bytes;
    in->left -= bytes;
    return 0;
}

/* n floats; infinite: +-inf is allowed too. */
static int take_floats(struct reader *in, float *out, size_t n, int infinite) {
    if (take(in, out, n * sizeof *out) < 0) return LS_ESIZE;
    for (size_t i = 0; i < n; i++)
        if (isnan(out[i]) || (!infinite && isinf(out[i]))) return LS_EVALUE;
    return 0;
}

static int take_layer(struct reader *in, float *params, uint32_t inputs, uint32_t outputs) {
    uint32_t padded = LS_PAD(outputs);
    memset(params, 0, (size_t)padded * (inputs + 1) * sizeof *params);
    for (uint32_t o = 0; o < outputs; o++) {
        float row[LS_MAX_HIDDEN];
        int error = take_floats(in, row, inputs, 0);
        if (error < 0) return error;
        for (uint32_t i = 0; i < inputs; i++) params[i * padded + o] = row[i];
    }
    return take_floats(in, params + (size_t)inputs * padded, outputs, 0);
}

static size_t layer_params(const struct ls_model *m, uint32_t layer) {
    return (size_t)LS_PAD(m->dims[layer + 1]) * (m->dims[layer] + 1);
}

int ls_model_load(struct ls_model *m, const void *blob, size_t bytes) {
    struct reader in = {blob, bytes};
    uint32_t magic, format, width;
    uint64_t schema;
    int error;
    if (take(&in, &magic, sizeof magic) < 0 || magic != LS_BLOB_MAGIC) return LS_EMAGIC;
    if (take(&in, &format, sizeof format) < 0 || format != LS_BLOB_FORMAT) return LS_EFORMAT;
    if (take(&in, &schema, sizeof schema) < 0 || schema != ls_schema_hash()) return LS_ESCHEMA;
    if (take(&in, &m->version, sizeof m->version) < 0) return LS_ESIZE;
    if (take(&in, &width, sizeof width) < 0 || width != LS_WIDTH) return LS_ESIZE;
    if (take(&in, &m->layers, sizeof m->layers) < 0 || m->layers > LS_MAX_LAYERS) return LS_ESIZE;
    if (m->layers > 0) {
        if (take(&in, m->dims, (m->layers + 1) * sizeof *m->dims) < 0) return LS_ESIZE;
        for (uint32_t i = 1; i < m->layers; i++)
            if (m->dims[i] == 0 || m->dims[i] > LS_MAX_HIDDEN) return LS_ESIZE;
        if (m->dims[0] != LS_WIDTH || m->dims[m->layers] != 1) return LS_ESIZE;
    }
    if ((error = take_floats(&in, &m->bound, 1, 0)) < 0) return error;
    if (m->bound < 0) return LS_EVALUE;
    if ((error = take_floats(&in, m->linear, LS_WIDTH, 0)) < 0) return error;
    if (m->layers > 0) {
        if ((error = take_floats(&in, m->clip_low, LS_WIDTH, 0)) < 0) return error;
        if ((error = take_floats(&in, m->clip_high, LS_WIDTH, 0)) < 0) return error;
        if ((error = take_floats(&in, m->range_low, LS_WIDTH, 1)) < 0) return error;
        if ((error = take_floats(&in, m->range_high, LS_WIDTH, 1)) < 0) return error;
        for (uint32_t i = 0; i < LS_WIDTH; i++)
            if (m->clip_low[i] > m->clip_high[i]) return LS_EVALUE;
        float *params = m->params;
        for (uint32_t layer = 0; layer < m->layers; layer++) {
            error = take_layer(&in, params, m->dims[layer], m->dims[layer + 1]);
            if (error < 0) return error;
            params += layer_params(m, layer);
        }
    }
    return in.left == 0 ? 0 : LS_ESIZE;
}

/* ---- Forward --------------------------------------------------------------------------------- */

static float clip(float x, float low, float high) {
    return x < low ? low : x > high ? high : x;
}

static inline lanes load(const float *from) {
    lanes value;
    memcpy(&value, from, sizeof value);
    return value;
}

static inline void store(float *to, lanes low, lanes high) {
    memcpy(to, &low, sizeof low);
    memcpy(to + LS_LANES / 2, &high, sizeof high);
}

static inline lanes activate(lanes x, int relu) {
    return relu ? (lanes)((masks)x & (x > 0)) : x; /* a comparison gives ones or zeros */
}

/* out = in W + bias for ROWS rows; relu: negative outputs become 0. The rows' sums are named one by
 * one, so that they stay in registers: eight, with two of weights. */
static void layer_forward(const float *params, uint32_t inputs, uint32_t outputs, int relu,
                          const float in[ROWS][PAD_HIDDEN], float out[ROWS][PAD_HIDDEN]) {
    uint32_t padded = LS_PAD(outputs);
    const float *bias = params + (size_t)inputs * padded;
    for (uint32_t o = 0; o < padded; o += LS_LANES) {
        lanes a0 = load(bias + o), a1 = load(bias + o + LS_LANES / 2);
        lanes b0 = a0, b1 = a1, c0 = a0, c1 = a1, d0 = a0, d1 = a1;
        const float *weight = params + o;
        for (uint32_t i = 0; i < inputs; i++, weight += padded) {
            lanes w0 = load(weight), w1 = load(weight + LS_LANES / 2);
            a0 += in[0][i] * w0, a1 += in[0][i] * w1;
            b0 += in[1][i] * w0, b1 += in[1][i] * w1;
            c0 += in[2][i] * w0, c1 += in[2][i] * w1;
            d0 += in[3][i] * w0, d1 += in[3][i] * w1;
        }
        store(out[0] + o, activate(a0, relu), activate(a1, relu));
        store(out[1] + o, activate(b0, relu), activate(b1, relu));
        store(out[2] + o, activate(c0, relu), activate(c1, relu));
        store(out[3] + o, activate(d0, relu), activate(d1, relu));
    }
}

/* Log factors for up to ROWS rows. */
static void correction(const struct ls_model *m, const float *rows, uint32_t n,
                       float log_factor[ROWS]) {
    float a[ROWS][PAD_HIDDEN], b[ROWS][PAD_HIDDEN];
    for (uint32_t r = 0; r < ROWS; r++) {
        const float *x = rows + (r < n ? r : 0) * LS_WIDTH;
        for (uint32_t i = 0; i < LS_WIDTH; i++)
            a[r][i] = clip(x[i], m->clip_low[i], m->clip_high[i]);
    }
    float (*in)[PAD_HIDDEN] = a, (*out)[PAD_HIDDEN] = b;
    const float *params = m->params;
    for (uint32_t layer = 0; layer < m->layers; layer++) {
        layer_forward(params, m->dims[layer], m->dims[layer + 1], layer + 1 < m->layers,
                      (const float (*)[PAD_HIDDEN])in, out);
        params += layer_params(m, layer);
        float (*swap)[PAD_HIDDEN] = in;
        in = out;
        out = swap;
    }
    for (int r = 0; r < ROWS; r++)
        log_factor[r] = isnan(in[r][0]) ? 0 : clip(in[r][0], -m->bound, m->bound);
}

static int inside(const struct ls_model *m, const float *x) {
    int all = 1;
    for (uint32_t i = 0; i < LS_WIDTH; i++)
        all &= x[i] >= m->range_low[i] && x[i] <= m->range_high[i];
    return all;
}

void ls_model_score(const struct ls_model *m, const float *rows, uint32_t n, float *seconds,
                    uint8_t *outside) {
    for (uint32_t start = 0; start < n; start += ROWS) {
        uint32_t count = n - start < ROWS ? n - start : ROWS;
        const float *x = rows + (size_t)start * LS_WIDTH;
        float log_factor[ROWS] = {0};
        if (m->layers > 0) correction(m, x, count, log_factor);
        for (uint32_t r = 0; r < count; r++, x += LS_WIDTH) {
            float t = 0;
            for (uint32_t i = 0; i < LS_WIDTH; i++) t += m->linear[i] * x[i];
            /* Written so that NaN, of huge weights, is the worst and not the best. */
            t = t < MOST_SECONDS ? (t > LEAST_SECONDS ? t : LEAST_SECONDS) : MOST_SECONDS;
            outside[start + r] = m->layers > 0 && !inside(m, x);
            if (m->layers > 0 && !outside[start + r]) t *= expf(log_factor[r]);
            seconds[start + r] = t < MOST_SECONDS ? t : MOST_SECONDS;
        }
    }
}
