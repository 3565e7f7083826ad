/* hash.c -- chained block hashes, keyed; and the random numbers of policies that draw.
 *
 * Mixing is by 64 x 64 -> 128 bit multiplication, its halves folded by xor, as in wyhash. Four
 * lanes with keys of their own take 64 bytes a turn without waiting for each other; only one
 * multiplication a block lies on the chain from block to block.
 */
#include "lodestar.h"

#include <string.h>

__extension__ typedef unsigned __int128 ls_u128;

static inline uint64_t mix(uint64_t a, uint64_t b) {
    ls_u128 product = (ls_u128)a * b;
    uint64_t folded = (uint64_t)product ^ (uint64_t)(product >> 64);
    __asm__("" : "+r"(folded)); /* or GCC keeps both halves until it has to spill them */
    return folded;
}

static inline uint64_t word(const uint8_t *p) {
    uint64_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

static uint64_t splitmix(uint64_t *state) {
    uint64_t z = *state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

double ls_random(uint64_t *state) {
    return (double)(splitmix(state) >> 11) * 0x1p-53;
}

void ls_key_init(struct ls_key *key, uint64_t seed) {
    uint64_t state = seed ^ 0x6C6F646573746172u; /* apart from the stream that policies draw from */
    for (int i = 0; i < 8; i++) key->word[i] = splitmix(&state) | 1;
}

/* n >= 16 bytes. Nothing depends on n: callers hash blocks of one size, or mix the length in. */
static inline uint64_t digest(const struct ls_key *key, const uint8_t *p, size_t n) {
    const uint64_t *k = key->word;
    uint64_t a = k[4], b = k[5], c = k[6], d = k[7];
    const uint8_t *end = p + n;
    for (; end - p >= 64; p += 64) {
        a = mix(word(p) ^ k[0], word(p + 8) ^ a);
        b = mix(word(p + 16) ^ k[1], word(p + 24) ^ b);
        c = mix(word(p + 32) ^ k[2], word(p + 40) ^ c);
        d = mix(word(p + 48) ^ k[3], word(p + 56) ^ d);
    }
    for (; end - p >= 16; p += 16) a = mix(word(p) ^ k[0], word(p + 8) ^ a);
    if (end > p) /* the last 16 bytes, some of them for the second time */
        b = mix(word(end - 16) ^ k[1], word(end - 8) ^ b);
    return (a ^ c) + (b ^ d);
}

static inline uint64_t chain(const struct ls_key *key, uint64_t before, uint64_t digested) {
    return mix(before ^ key->word[2], digested ^ key->word[6]);
}

static inline void hash_run(const struct ls_key *key, uint64_t hash, const uint8_t *p,
                            uint32_t block_bytes, uint64_t *out, uint32_t n) {
    for (uint32_t i = 0; i < n; i++, p += block_bytes)
        out[i] = hash = chain(key, hash, digest(key, p, block_bytes));
}

uint32_t ls_hash_blocks(const struct ls_key *key, const void *seed, size_t seed_bytes,
                        const void *data, size_t data_bytes, uint32_t block_bytes, uint64_t *out,
                        uint32_t max) {
    uint64_t hash = mix(key->word[0] ^ seed_bytes, key->word[1]);
    if (seed_bytes >= 16) {
        hash = chain(key, hash, digest(key, seed, seed_bytes));
    } else if (seed_bytes > 0) {
        uint8_t padded[16] = {0};
        memcpy(padded, seed, seed_bytes);
        hash = chain(key, hash, digest(key, padded, sizeof padded));
    }
    size_t blocks = data_bytes / block_bytes;
    uint32_t n = blocks < max ? (uint32_t)blocks : max;
    if (block_bytes == 64) /* the usual size, known to the compiler: no loop inside a block */
        hash_run(key, hash, data, 64, out, n);
    else
        hash_run(key, hash, data, block_bytes, out, n);
    return n;
}
