/* ring.c -- a fixed-size ring of recent measurements with their mean. */
#include "lodestar.h"

void ls_ring_init(struct ls_ring *ring, float *memory, uint32_t capacity) {
    *ring = (struct ls_ring){.value = memory, .capacity = capacity};
}

void ls_ring_push(struct ls_ring *ring, double value) {
    float stored = (float)value;
    if (ring->length == ring->capacity)
        ring->sum -= (double)ring->value[ring->next];
    else
        ring->length++;
    ring->value[ring->next] = stored;
    ring->sum += (double)stored;
    if (++ring->next == ring->capacity) {
        ring->next = 0;
        ring->sum = 0;
        for (uint32_t i = 0; i < ring->capacity; i++) ring->sum += (double)ring->value[i];
    }
}

double ls_ring_mean(const struct ls_ring *ring) {
    return ring->length ? ring->sum / ring->length : 0;
}

double ls_ring_get(const struct ls_ring *ring, uint32_t newest) {
    if (newest >= ring->length) return 0;
    uint32_t i = ring->next + ring->capacity - 1 - newest;
    return (double)ring->value[i < ring->capacity ? i : i - ring->capacity];
}
