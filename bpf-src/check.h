/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Look-ups that believe a value only when its check fits its key.
 *
 * For programs. The kernel gives a hash element to another key while a reader still holds it, and a value being
 * replaced in place can make a reader of the same bucket miss. So a miss and a wrong check are tried again, a few
 * times, before they are believed.
 */
#ifndef TM_CHECK_H
#define TM_CHECK_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "maps.h"
#include "words.h"

#define TM_TRIES 4

enum lookup_result {
	LOOKUP_FOUND,
	LOOKUP_MISS,
	LOOKUP_INCONSISTENT,
};

/* The check of a tunkey2if value. `key`: the key's three words; `slot`: slot and flags. */
static __always_inline __u32 check_slot_ref(const __u64 *key, __u32 slot)
{
	__u64 sum = TM_CHECK_0;

	sum += key[0] * TM_CHECK_1;
	sum += key[1] * TM_CHECK_2;
	sum += key[2] * TM_CHECK_3;
	sum += (__u64)slot * TM_CHECK_4;
	return (__u32)(sum >> 32);
}

/* The check of an if2tunkey value. `entry`: the value's seven words, of which the first counts without its check. */
static __always_inline __u32 check_if_entry(__u32 ifindex, const __u64 *entry)
{
	__u64 sum = TM_CHECK_0;

	sum += (__u64)ifindex * TM_CHECK_1;
	sum += (__u64)words_first(entry[0]) * TM_CHECK_2;
	sum += entry[1] * TM_CHECK_3;
	sum += entry[2] * TM_CHECK_4;
	sum += entry[3] * TM_CHECK_5;
	sum += entry[4] * TM_CHECK_6;
	sum += entry[5] * TM_CHECK_7;
	sum += entry[6] * TM_CHECK_8;
	return (__u32)(sum >> 32);
}

/* Whose key is it. `key`: the three words of a struct tm_tunkey; `slot`: slot and flags. */
static __always_inline enum lookup_result find_slot_ref(const __u64 *key, __u32 *slot)
{
	enum lookup_result result = LOOKUP_MISS;

	for (int i = 0; i < TM_TRIES; i++) {
		const volatile __u64 *value = bpf_map_lookup_elem(&tunkey2if, key);
		__u64 word;

		if (!value)
			continue;
		word = *value;
		if (words_second(word) == check_slot_ref(key, words_first(word))) {
			*slot = words_first(word);
			return LOOKUP_FOUND;
		}
		result = LOOKUP_INCONSISTENT;
	}
	return result;
}

/* Where does an interface send to. `entry`: gets a copy of the value's seven words, checked as a copy. */
static __always_inline enum lookup_result find_if_entry(__u32 ifindex, __u64 *entry, int tries)
{
	enum lookup_result result = LOOKUP_MISS;

	for (int i = 0; i < tries; i++) {
		const volatile __u64 *value = lookup_u32(&if2tunkey, ifindex);

		if (!value)
			continue;
#pragma unroll
		for (int w = 0; w < 7; w++)
			entry[w] = value[w];
		if (words_second(entry[0]) == check_if_entry(ifindex, entry))
			return LOOKUP_FOUND;
		result = LOOKUP_INCONSISTENT;
	}
	return result;
}

/* The device in a slot; 0 where the kernel has taken it out. */
static __always_inline __u32 device_in(__u32 slot)
{
	const volatile struct tm_dev *dev = lookup_u32(&devs, slot);

	return dev ? dev->ifindex : 0;
}

#endif
