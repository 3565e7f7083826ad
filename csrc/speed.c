/* speed.c -- how long an instance takes for a token of work (lodestar.h says what that is and how
 * it is estimated). */
#include "lodestar.h"

#include <math.h>

#define DECAY 0.99501247919268232 /* exp(-1/200): a memory of 200 labels */
#define OVERHEAD_TOKENS 150.0     /* an iteration's fixed cost, in tokens */
#define PRIOR_TOKENS 2000.0       /* what the prior speed weighs */
#define PRIOR_SPEED 0.00012       /* a mid-range GPU with an 8B model */
#define PRIOR_SQUARE 0.5          /* variance of a label's log before any was seen ... */
#define PRIOR_COUNT 5.0           /* ... and the labels it weighs as much as */
#define LEAST_SPREAD 1e-5         /* variance between instances below which they count as equal */
#define SAME_INSTANT 1e-3         /* first tokens closer than this came from one iteration */
#define LOWEST 1e-7
#define HIGHEST 0.1

static double clip(double x, double low, double high) {
    return ls_max(low, ls_min(x, high));
}

void ls_speed_pool_init(struct ls_speed_pool *pool) {
    *pool = (struct ls_speed_pool){.square = PRIOR_SQUARE * PRIOR_COUNT,
                                   .count = PRIOR_COUNT,
                                   .typical = PRIOR_SPEED,
                                   .shrunk_at = -INFINITY};
}

void ls_speed_init(struct ls_speed *speed, const struct ls_speed_pool *pool) {
    *speed = (struct ls_speed){.since = -INFINITY, .at = -INFINITY, .shrunk = pool->typical};
}

/* The last instant is over: how far was it off the estimate? */
static void note_residual(const struct ls_speed *speed, struct ls_speed_pool *pool) {
    if (speed->labels == 0 || speed->interval <= 0) return;
    double measured = speed->interval / (speed->tokens + OVERHEAD_TOKENS);
    double residual = clip(log(measured / (speed->num / speed->den)), -3, 3);
    pool->square = DECAY * pool->square + residual * residual;
    pool->count = DECAY * pool->count + 1;
}

void ls_speed_note(struct ls_speed *speed, struct ls_speed_pool *pool, double at, double start,
                   double tokens) {
    pool->dirty = 1;
    if (at - speed->at < SAME_INSTANT) {
        double interval = ls_max(0, at - ls_max(speed->since, start));
        if (interval > speed->interval) {
            speed->num += interval - speed->interval;
            speed->interval = interval;
        }
        speed->den += tokens;
        speed->tokens += tokens;
        return;
    }
    note_residual(speed, pool);
    if (speed->labels == 0) { /* the prior is what the others are like by now */
        speed->num = PRIOR_TOKENS * pool->typical;
        speed->den = PRIOR_TOKENS;
    }
    speed->since = speed->at;
    speed->at = at;
    speed->interval = ls_max(0, at - ls_max(speed->since, start));
    speed->tokens = tokens;
    speed->num = DECAY * speed->num + speed->interval;
    speed->den = DECAY * speed->den + tokens + OVERHEAD_TOKENS;
    speed->count = DECAY * speed->count + 1;
    speed->labels++;
}

static struct ls_speed *nth(struct ls_speed *first, size_t stride, uint32_t i) {
    return (struct ls_speed *)(void *)((char *)first + i * stride);
}

void ls_speed_shrink(struct ls_speed_pool *pool, struct ls_speed *first, const uint8_t *used,
                     uint32_t n, size_t stride) {
    double label_variance = pool->square / pool->count;
    double m = 0, mean = 0, squares = 0, noise = 0; /* running mean and squares (Welford) */
    for (uint32_t i = 0; i < n; i++) {
        const struct ls_speed *speed = nth(first, stride, i);
        if (!used[i * stride] || speed->labels == 0) continue;
        double l = log(clip(speed->num / speed->den, LOWEST, HIGHEST));
        double off = l - mean;
        mean += off / ++m;
        squares += off * (l - mean);
        noise += label_variance / speed->count;
    }
    pool->dirty = 0;
    if (m > 0) pool->typical = exp(mean);
    double spread = m > 0 ? ls_max(0, (squares - noise) / m) + LEAST_SPREAD : 0;
    for (uint32_t i = 0; i < n; i++) {
        struct ls_speed *speed = nth(first, stride, i);
        if (!used[i * stride]) continue;
        if (speed->labels == 0) {
            speed->shrunk = pool->typical;
            continue;
        }
        double l = log(clip(speed->num / speed->den, LOWEST, HIGHEST));
        double trust = spread / (spread + label_variance / speed->count);
        speed->shrunk = exp(mean + (l - mean) * trust);
    }
}
