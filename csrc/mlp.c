/* mlp.c -- weight blobs, and which forward pass answers (model.h draws the blob and states the
 * formula).
 *
 * A blob comes from a file or another thread: nothing in it is believed before it is checked.
 */
#include "lodestar.h"

#include <math.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "blobs and samples are little endian; swap them here before building for this machine"
#endif

/* ---- The table of features ------------------------------------------------------------------- */

#define TABLE_ROW(name, unit, scale, expression, help) {#name, unit, #scale, help, scale},
const struct ls_feature_row ls_feature_table[LS_WIDTH] = {LS_FEATURES(TABLE_ROW)};

uint64_t ls_schema_hash(void) {
#define TEXT_ROW(name, unit, scale, expression, help) #name "|" unit "|" #scale ";"
    static const char text[] = LS_FEATURES(TEXT_ROW) LS_FEATURES_REVISION;
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

static size_t layer_params(uint32_t inputs, uint32_t outputs, int last) {
    if (last) return (LS_PANELS(inputs) + 1) * LS_PANEL;
    return (size_t)LS_PANELS(outputs) * (inputs + 1) * LS_PANEL;
}

/* Into panels, or for the last layer, of one output, into a row. */
static int take_layer(struct reader *in, float *params, uint32_t inputs, uint32_t outputs,
                      int last) {
    float row[LS_MAX_HIDDEN];
    int error;
    memset(params, 0, layer_params(inputs, outputs, last) * sizeof *params);
    for (uint32_t o = 0; o < outputs; o++) {
        if ((error = take_floats(in, row, inputs, 0)) < 0) return error;
        float *to = params + (size_t)(o / LS_PANEL) * (inputs + 1) * LS_PANEL + o % LS_PANEL;
        if (last)
            memcpy(params, row, inputs * sizeof *row);
        else
            for (uint32_t i = 0; i < inputs; i++) to[(i + 1) * LS_PANEL] = row[i];
    }
    if ((error = take_floats(in, row, outputs, 0)) < 0) return error;
    if (last)
        params[LS_PANELS(inputs) * LS_PANEL] = row[0];
    else
        for (uint32_t o = 0; o < outputs; o++)
            params[(size_t)(o / LS_PANEL) * (inputs + 1) * LS_PANEL + o % LS_PANEL] = row[o];
    return 0;
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
            uint32_t inputs = m->dims[layer], outputs = m->dims[layer + 1];
            int last = layer + 1 == m->layers;
            if ((error = take_layer(&in, params, inputs, outputs, last)) < 0) return error;
            params += layer_params(inputs, outputs, last);
        }
    }
    if ((error = take_floats(&in, m->upper, 2, 0)) < 0) return error;
    if ((error = take_floats(&in, &m->answer, 1, 0)) < 0) return error;
    if ((error = take_floats(&in, m->tpot, LS_WIDTH, 0)) < 0) return error;
    if (m->answer < 0) return LS_EVALUE;
    m->tells_tpot = 0;
    for (uint32_t i = 0; i < LS_WIDTH; i++) {
        if (m->tpot[i] < 0) return LS_EVALUE;
        m->tells_tpot |= m->tpot[i] > 0;
    }
    for (m->simd = LS_SIMDS - 1; !ls_simd_has(m->simd); m->simd--) {
    }
    return in.left == 0 ? 0 : LS_ESIZE;
}

/* ---- Which pass ------------------------------------------------------------------------------ */

const char *const ls_simd_names[LS_SIMDS] = {"portable", "avx2"};

int ls_simd_has(enum ls_simd simd) {
    if (simd == LS_PORTABLE) return 1;
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 0;
#endif
}

void ls_model_score(const struct ls_model *m, const float *rows, uint32_t n, float *seconds,
                    uint8_t *outside) {
    ls_forward *forward = ls_forward_portable;
#if defined(__x86_64__)
    if (m->simd == LS_AVX2) forward = ls_forward_avx2;
#endif
    forward(m, rows, n, seconds, outside);
}

/* ---- The other heads ------------------------------------------------------------------------- */

void ls_model_tpot(const struct ls_model *m, const float *rows, uint32_t n, float *seconds) {
    for (uint32_t r = 0; r < n; r++, rows += LS_WIDTH) {
        float sum = 0;
        for (uint32_t i = 0; i < LS_WIDTH; i++) sum += m->tpot[i] * rows[i];
        seconds[r] = sum > 1e-4f ? sum : 1e-4f; /* written so that NaN is the least, not none */
    }
}

float ls_model_upper(const struct ls_model *m, const float *row, float seconds) {
    int loaded = row[LS_F_queue_seconds] > LS_LOADED_SECONDS;
    return seconds * expf(m ? m->upper[loaded] : LS_COLD_UPPER);
}
