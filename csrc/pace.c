/* pace.c -- how quick the answers under way are, and how far ahead of what they asked for.
 *
 * A ticket remembers what it has added to the sums of its instance, so that exactly that is taken
 * away.
 */
#include "lodestar.h"

#define SLACK_MOST 1e5 /* milliseconds ahead or late: more tells nothing more */

static int64_t limit_of(const struct ls_ticket *t) {
    return (int64_t)(ls_min((double)t->slo_tpot * 1e3, SLACK_MOST) * 1e3);
}

void ls_pace_enter(struct ls_pace *sum, struct ls_ticket *t) {
    t->paced_ms = t->slack_ms = 0;
    t->paced_tokens = 0;
    sum->promises += t->slo_tpot > 0;
    sum->limits += limit_of(t);
}

void ls_pace_update(struct ls_pace *sum, struct ls_ticket *t) {
    if (t->state != LS_DECODE || !t->streaming || t->output_tokens < 2) return;
    double ms = (t->last_token - t->first_token) * 1e3, slack;
    ms = ls_max(0, ls_min(ms, SLACK_MOST));
    sum->ms += (int32_t)ms - t->paced_ms;
    t->paced_ms = (int32_t)ms;
    sum->tokens += t->output_tokens - 1 - (int64_t)t->paced_tokens;
    t->paced_tokens = t->output_tokens - 1;
    if (!(t->slo_tpot > 0)) return;
    slack = t->paced_tokens * (double)t->slo_tpot * 1e3 - ms;
    slack = ls_max(-SLACK_MOST, ls_min(slack, SLACK_MOST));
    int64_t now = (int64_t)slack, before = t->slack_ms;
    sum->slack += now - before;
    sum->squares += now * now - before * before;
    t->slack_ms = (int32_t)now;
}

void ls_pace_leave(struct ls_pace *sum, const struct ls_ticket *t) {
    int64_t slack = t->slack_ms;
    sum->ms -= t->paced_ms;
    sum->tokens -= t->paced_tokens;
    sum->promises -= t->slo_tpot > 0;
    sum->limits -= limit_of(t);
    sum->slack -= slack;
    sum->squares -= slack * slack;
}
