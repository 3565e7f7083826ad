/* features.h -- the one list of model inputs.
 *
 * A row is: name, unit, scale, expression, help. `v` is a `struct ls_view`: what is true of one
 * request on one instance at one time, in plain units (lodestar.h); the column is expression *
 * scale.
 *
 * Adding a row is the whole change: the enum, LS_WIDTH, the rows that routing fills, the sample
 * format, features.py, the table in the documentation and the schema hash all follow. The order is
 * part of the schema, and so is LS_FEATURES_REVISION: count it up when a row means something else
 * under the same name, so that nothing trained on the old meaning is loaded.
 *
 * Rules: no instance identity (a model must transfer to an engine that joins); finite for every
 * reachable state; about 1 in size after scaling. Terms that are products in the physics of an
 * engine (work = speed x tokens) are products here, so that a linear model is a physical one.
 */
#ifndef LS_FEATURES_H
#define LS_FEATURES_H

#define LS_FEATURES_REVISION "2" /* since 2, work counts attention (lodestar.h: speed.c) */

/* clang-format off */
#define LS_FEATURES(F)                                                                             \
    F(base,                "none",     1.0,        1.0,                                            \
      "constant: what a first token costs on an idle engine with everything cached")               \
    F(prompt_tokens,       "tokens",   1.0 / 4096, v->prompt,                                      \
      "length of the prompt")                                                                      \
    F(own_tokens,          "tokens",   1.0 / 4096, v->own,                                         \
      "prompt tokens that the instance is not believed to hold in its cache")                      \
    F(hit_ratio,           "ratio",    1.0,        v->hit / v->prompt,                             \
      "believed cached share of the prompt")                                                       \
    F(hit_age_seconds,     "seconds",  1.0,        v->speed * v->hit * v->hit_age,                 \
      "time to compute the hit after all, times its age: 0 just used, 1 the next to be evicted")   \
    F(own_seconds,         "seconds",  1.0,        v->speed * v->work,                             \
      "time to compute the own tokens and their attention, at the instance's learned speed")       \
    F(queue_seconds,       "seconds",  1.0,        v->speed * v->ahead,                            \
      "time to compute what was dispatched before, attention too, less progress")                  \
    F(prefill_requests,    "requests", 1.0 / 16,   v->prefill,                                     \
      "dispatched requests without a first token")                                                 \
    F(prefill_seconds,     "seconds",  100.0,      v->speed * v->prefill,                          \
      "the same, in units of the instance's speed")                                                \
    F(decode_requests,     "requests", 1.0 / 16,   v->decode,                                      \
      "requests that stream their answer")                                                         \
    F(decode_seconds,      "seconds",  10.0,       v->speed * v->decode,                           \
      "the same, in units of the instance's speed")                                                \
    F(decode_context,      "tokens",   1.0 / 1e6,  v->context,                                     \
      "prompt and streamed tokens of the requests that stream their answer")                       \
    F(work_context,        "seconds",  1.0 / 3e4,  v->speed * (v->work + v->ahead) * v->context,   \
      "work ahead times decode context: prefill slows down beside long contexts")                  \
    F(kv_occupancy,        "ratio",    1.0,        v->occupancy,                                   \
      "KV cache in use with this prompt, over capacity; 0 if capacity is unknown")                 \
    F(kv_overflow,         "ratio",    1.0,        ls_max(v->occupancy - 0.9, 0.0),                \
      "KV occupancy above 0.9, where waiting for room and preemption begin")                       \
    F(overdue_seconds,     "seconds",  1.0,        v->overdue,                                     \
      "how far the longest-waiting request is beyond its prediction: an engine that hangs")        \
    F(inter_token_seconds, "seconds",  1.0,        v->inter_token,                                 \
      "recent mean time between streamed tokens: the length of an iteration")                      \
    F(reported_running,    "requests", 1.0 / 16,   v->reported_running,                            \
      "running requests, as the engine reports")                                                   \
    F(reported_waiting,    "requests", 1.0 / 16,   v->reported_waiting,                            \
      "waiting requests, as the engine reports")                                                   \
    F(reported_kv_usage,   "ratio",    1.0,        v->reported_kv_usage,                           \
      "KV cache usage, as the engine reports")                                                     \
    F(report_age,          "seconds",  1.0,        v->report_age,                                  \
      "age of that report, at most 1; 1 if there is none")                                         \
    F(speed,               "seconds",  1e4,        v->speed,                                       \
      "learned time per token of work, in units of 0.1 ms")
/* clang-format on */

#define LS_ENUM_ROW(name, unit, scale, expression, help) LS_F_##name,
enum ls_feature { LS_FEATURES(LS_ENUM_ROW) LS_WIDTH };
#undef LS_ENUM_ROW

#endif
