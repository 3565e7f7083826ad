/* pace.c -- how quick the answers under way are, and how far ahead of what they asked for.
 *
 * A ticket's part follows from its own fields, so it is taken away before they change and added
 * again after.
 */
#include "lodestar.h"

#define SLACK_MOST 1e5 /* milliseconds ahead or late: more tells nothing more */

void ls_pace_count(struct ls_pace *sum, const struct ls_ticket *t, int sign) {
    double limit = (double)t->slo_tpot * 1e3, ms = 0, tokens = 0; /* limit: 0 is none */
    if (t->state == LS_DECODE && t->streaming && t->output_tokens > 1) {
        ms = ls_max(0, ls_min((t->last_token - t->first_token) * 1e3, SLACK_MOST));
        tokens = t->output_tokens - 1;
        sum->ms += sign * (int64_t)ms;
        sum->tokens += sign * (int64_t)tokens;
    }
    if (limit > 0) {
        int64_t slack = (int64_t)ls_max(-SLACK_MOST, ls_min(tokens * limit - ms, SLACK_MOST));
        sum->promises += sign;
        sum->limits += sign * (int64_t)(ls_min(limit, SLACK_MOST) * 1e3);
        sum->slack += sign * slack;
        sum->squares += sign * slack * slack;
    }
}
