/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0-only) */
/*
 * Look-ups that bear with writers. Included by the programs only.
 *
 * The kernel's hash recycles elements without waiting for readers, and a reader of the same bucket can miss an element
 * that is being replaced. So each value carries a check over its key and itself; a miss or a wrong check is looked at
 * again, a few times, before it is believed.
 */
#ifndef TM_LOOKUP_H
#define TM_LOOKUP_H

#include "maps.h"

#define TM_TRIES 4

enum tm_found {
	TM_FOUND,
	TM_MISSING,
	TM_INCONSISTENT,
};

/*
 * Multilinear hash: the upper half of a sum of products with odd constants. The products don't depend on each other, so
 * it takes little more than one of them. src/bpf/abi.rs computes the same.
 */
#define TM_MIX(sum, n, word) ((sum) += (__u64)(word) * (0x9e3779b97f4a7c15ULL + 0xc2b2ae3d27d4eb4eULL * (n)))

static __always_inline __u32 tm_check_slot(const struct tm_tunkey *key, __u32 slot)
{
	__u64 sum = 0x746d5f736c6f7401ULL;

	TM_MIX(sum, 0, key->tunnel);
	TM_MIX(sum, 1, key->id);
	TM_MIX(sum, 2, TM_WORD(&key->remote, 0));
	TM_MIX(sum, 3, TM_WORD(&key->remote, 1));
	TM_MIX(sum, 4, TM_WORD(&key->remote, 2));
	TM_MIX(sum, 5, TM_WORD(&key->remote, 3));
	TM_MIX(sum, 6, slot);
	return sum >> 32;
}

static __always_inline __u32 tm_check_if(__u32 ifindex, const struct tm_if_value *v)
{
	__u64 sum = 0x746d5f6966766101ULL;

	TM_MIX(sum, 0, ifindex);
	TM_MIX(sum, 1, v->slot);
	TM_MIX(sum, 2, v->key.tunnel);
	TM_MIX(sum, 3, v->key.id);
	TM_MIX(sum, 4, TM_WORD(&v->key.remote, 0));
	TM_MIX(sum, 5, TM_WORD(&v->key.remote, 1));
	TM_MIX(sum, 6, TM_WORD(&v->key.remote, 2));
	TM_MIX(sum, 7, TM_WORD(&v->key.remote, 3));
	TM_MIX(sum, 8, TM_WORD(&v->local, 0));
	TM_MIX(sum, 9, TM_WORD(&v->local, 1));
	TM_MIX(sum, 10, TM_WORD(&v->local, 2));
	TM_MIX(sum, 11, TM_WORD(&v->local, 3));
	TM_MIX(sum, 12, v->ttl | (__u32)v->tos << 8 | (__u32)v->flags << 16);
	return sum >> 32;
}

/* The slot word of a tunnel key. */
static __always_inline enum tm_found tm_find_slot(const struct tm_tunkey *key, __u32 *slot)
{
	enum tm_found found = TM_MISSING;

#pragma clang loop unroll(disable)
	for (int i = 0; i < TM_TRIES; i++) {
		const volatile __u64 *value = bpf_map_lookup_elem(&tunkey2if, key);

		if (value) {
			/* One load: slot in the lower half, check in the upper, whatever the byte order of a struct. */
			__u64 word = *value;
			__u32 low = word, high = word >> 32;

#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
			__u32 swap = low;

			low = high;
			high = swap;
#endif
			*slot = low;
			if (tm_check_slot(key, low) == high)
				return TM_FOUND;
			found = TM_INCONSISTENT;
		}
	}
	return found;
}

/* A copy of the entry of an interface, which can't change any more once it is checked. */
static __always_inline enum tm_found tm_find_if(__u32 ifindex, struct tm_if_value *copy)
{
	enum tm_found found = TM_MISSING;

#pragma clang loop unroll(disable)
	for (int i = 0; i < TM_TRIES; i++) {
		const struct tm_if_value *value = bpf_map_lookup_elem(&if2tunkey, &ifindex);

		if (value) {
			__builtin_memcpy(copy, value, sizeof(*copy));
			/* From here on only the copy is read. */
			asm volatile("" ::: "memory");
			if (tm_check_if(ifindex, copy) == copy->check)
				return TM_FOUND;
			found = TM_INCONSISTENT;
		}
	}
	return found;
}

/* The device of a slot; 0 when the kernel has taken it out. */
static __always_inline __u32 tm_device(__u32 slot)
{
	__u32 *ifindex = bpf_map_lookup_elem(&devs, &slot);

	return ifindex ? *ifindex : 0;
}

#endif /* TM_LOOKUP_H */
