/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Pairs of 32-bit fields as the 64-bit words they lie in.
 *
 * For programs. The verifiers of Linux 6.1 and older, when the loader lacks CAP_PERFMON, refuse two stores of 32 bits
 * into one 8-byte slot of the stack, and one over a spilled register. So everything that a program puts on its stack is
 * put there in whole words; a test looks through the object for anything narrower.
 */
#ifndef TM_WORDS_H
#define TM_WORDS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define TM_FIRST_SHIFT 0
#define TM_SECOND_SHIFT 32
#else
#define TM_FIRST_SHIFT 32
#define TM_SECOND_SHIFT 0
#endif

/* The word whose lower address holds `first`. */
static __always_inline __u64 words_pair(__u32 first, __u32 second)
{
	return (__u64)first << TM_FIRST_SHIFT | (__u64)second << TM_SECOND_SHIFT;
}

static __always_inline __u32 words_first(__u64 word)
{
	return (__u32)(word >> TM_FIRST_SHIFT);
}

static __always_inline __u32 words_second(__u64 word)
{
	return (__u32)(word >> TM_SECOND_SHIFT);
}

/* Looks a map with 32-bit keys up. */
static __always_inline void *lookup_u32(void *map, __u32 index)
{
	__u64 key = words_pair(index, 0);

	return bpf_map_lookup_elem(map, &key);
}

#endif
