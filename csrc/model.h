/* model.h -- the learned model: weights and the forward pass (mlp.c, forward.h).
 *
 *   T = max(linear . x, 1e-4) * exp(clip(mlp(clip(x)), -bound, bound))     seconds to first token
 *
 * The linear part is physical: it may be trusted away from the data. The MLP corrects it by a
 * bounded factor, and only rows inside the range seen in training. Two more heads tell what a first
 * token takes in all but one case of ten, and how long each further one will:
 *
 *   upper = T exp(upper[queue_seconds > LS_LOADED_SECONDS])                                 seconds
 *   tpot  = max(tpot . x, 1e-4)                                         seconds a token, physical too
 *
 * Blob, little endian, W = LS_WIDTH:
 *
 *   u32 magic  u32 format  u64 schema  u32 version  u32 W  u32 L  [u32 dims[L + 1] if L > 0]
 *   f32 bound  f32 linear[W]
 *   if L > 0:  f32 clip_low[W]  clip_high[W]  range_low[W]  range_high[W]
 *              then for each layer  f32 weight[out][in]  f32 bias[out];  ReLU between layers
 *   f32 upper[2]  f32 answer  f32 tpot[W]
 *
 * answer: tokens of an answer in the mean, 0: not known; tpot: none negative, all 0: not known.
 * dims[0] = W, dims[L] = 1, hidden 1..LS_MAX_HIDDEN. Every number is finite, but ranges may be
 * infinite.
 */
#ifndef LS_MODEL_H
#define LS_MODEL_H

#include <stddef.h>
#include <stdint.h>

#include "features.h"

#define LS_MAX_LAYERS 4
#define LS_MAX_HIDDEN 128
#define LS_BLOB_MAGIC 0x4C535742u
#define LS_BLOB_FORMAT 2u
#define LS_LOADED_SECONDS 0.03f  /* of queue: more than the iteration that is running */
#define LS_COLD_UPPER 0.6931472f /* log factor: without a model as likely twice as long as not */

/* Instruction sets that the forward pass is compiled for. The best that the processor has is chosen
 * when weights are loaded; all agree to rounding. */
enum ls_simd {
    LS_PORTABLE, /* what every processor of the target has: 128-bit vectors on x86-64 and ARM */
    LS_AVX2,     /* x86-64 with AVX2 and FMA: 2013 and later */
    LS_SIMDS
};
extern const char *const ls_simd_names[LS_SIMDS];
int ls_simd_has(enum ls_simd simd); /* does this processor, and this build? */

/* A hidden layer lies in panels of 16 outputs, a cache line for each input, behind the line of
 * their biases: bias[16], weight[in][16]. The last panel is filled up with zeros. The last layer,
 * of one output, is a row of weights filled up with zeros, and a line that begins with its bias. */
#define LS_PANEL 16
#define LS_PANELS(n) (((n) + LS_PANEL - 1) / LS_PANEL)
#define LS_MAX_PARAMS                                                                              \
    (LS_MAX_HIDDEN * (LS_WIDTH + 1) + (LS_MAX_LAYERS - 2) * LS_MAX_HIDDEN * (LS_MAX_HIDDEN + 1) +  \
     LS_MAX_HIDDEN + LS_PANEL)

struct ls_model { /* to be allocated at a multiple of 64 bytes: aligned_alloc() */
    _Alignas(64) float params[LS_MAX_PARAMS];
    float linear[LS_WIDTH];
    float clip_low[LS_WIDTH], clip_high[LS_WIDTH], range_low[LS_WIDTH], range_high[LS_WIDTH];
    float bound;
    float upper[2]; /* log factor without and with a queue */
    float answer;   /* tokens */
    float tpot[LS_WIDTH];
    uint8_t tells_tpot;
    uint32_t version, layers, dims[LS_MAX_LAYERS + 1];
    enum ls_simd simd;
};

/* Check all, then fill model. On failure (LS_EMAGIC to LS_EVALUE) its contents are undefined. */
int ls_model_load(struct ls_model *model, const void *blob, size_t bytes);

/* For n rows of LS_WIDTH: seconds[i], at most 1e9; outside[i] = 1 if the row's range forbade
 * correction. What is equal in all rows, as a request's own columns are, is computed once. */
void ls_model_score(const struct ls_model *model, const float *rows, uint32_t n, float *seconds,
                    uint8_t *outside);

/* The head of the time between tokens, if tells_tpot. */
void ls_model_tpot(const struct ls_model *model, const float *rows, uint32_t n, float *seconds);
/* The upper quantile for a row with that prediction; model NULL: there is none yet. */
float ls_model_upper(const struct ls_model *model, const float *row, float seconds);

/* FNV-1a over "name|unit|scale;" of all rows, scale as written in features.h. */
uint64_t ls_schema_hash(void);

struct ls_feature_row {
    const char *name, *unit, *scale_text, *help;
    double scale;
};
extern const struct ls_feature_row ls_feature_table[LS_WIDTH];

/* ---- Between mlp.c and the variants ---------------------------------------------------------- */

/* ls_model_score() on one instruction set: forward.h, compiled for each. */
typedef void ls_forward(const struct ls_model *model, const float *rows, uint32_t n, float *seconds,
                        uint8_t *outside);
ls_forward ls_forward_portable, ls_forward_avx2;

#endif
