// SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0-only)
/*
 * `tunkey2if` looked up by the data plane's own code, and other layouts of the same table beside it.
 *
 * Every key depends on what the look-up before it found, so that the processor can't begin one early: between two
 * packets' look-ups there is far more other work than it looks ahead.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "../../../bpf-src/abi.h"
#include "../../../bpf-src/maps.h"
#include "../../../bpf-src/words.h"
#include "../../../bpf-src/check.h"
#include "../../../bpf-src/tunnel_key.h"

#define LOOKUPS 32
#define BUCKET 4

/* Keys are drawn from this many. */
const volatile __u32 drawn = 1;
/* Buckets of `lines`: a power of two, minus one. */
const volatile __u32 line_mask = 0;

static __u64 state;

/* The key's number. `found`: what the look-up before gave, whose upper bits are all zero. */
static __always_inline __u32 draw(__u64 found)
{
	__u64 s = state + (found >> 31);

	s = s * 6364136223846793005ULL + 1442695040888963407ULL;
	state = s;
	return (s >> 32) * drawn >> 32;
}

SEC("classifier")
int look_up(struct __sk_buff *skb __attribute__((unused)))
{
	__u32 slot = 0, missed = 0;

	for (int i = 0; i < LOOKUPS; i++) {
		__u32 n = draw(slot);
		__u64 key[3] = { words_pair(1, n + 1), 0, words_pair(TM_V4_MAPPED, bpf_htonl(0x0a000000 + n)) };

		if (find_slot_ref(key, &slot) != LOOKUP_FOUND)
			missed++;
	}
	return missed;
}

/* Tunnel index, id and IPv4 remote in one word. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u64);
	__type(value, __u64);
	__uint(max_entries, 1);
} narrow SEC(".maps");

SEC("classifier")
int look_up_narrow(struct __sk_buff *skb __attribute__((unused)))
{
	__u64 found = 0;
	__u32 missed = 0;

	for (int i = 0; i < LOOKUPS; i++) {
		__u64 n = draw(found), key = (n + 1) << 40 | (0x0a000000 + n), *value;

		value = bpf_map_lookup_elem(&narrow, &key);
		if (value)
			found = *value;
		else
			missed++;
	}
	return missed;
}

/* The same words in buckets of a cache line, found by multiplication. */
struct line {
	__u64 key[BUCKET];
	__u64 value[BUCKET];
};
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct line);
	__uint(max_entries, 1);
} lines SEC(".maps");

SEC("classifier")
int look_up_lines(struct __sk_buff *skb __attribute__((unused)))
{
	__u64 found = 0;
	__u32 missed = 0;

	for (int i = 0; i < LOOKUPS; i++) {
		__u64 n = draw(found), key = (n + 1) << 40 | (0x0a000000 + n);
		__u32 index = (__u32)((key * 0x9e3779b97f4a7c15ULL) >> 32) & line_mask;
		struct line *line = bpf_map_lookup_elem(&lines, &index);

		missed++;
		if (!line)
			continue;
#pragma unroll
		for (int b = 0; b < BUCKET; b++) {
			if (line->key[b] == key) {
				found = line->value[b];
				missed--;
				break;
			}
		}
	}
	return missed;
}

/* What drawing keys costs by itself. */
SEC("classifier")
int look_up_nothing(struct __sk_buff *skb __attribute__((unused)))
{
	__u64 sum = 0;

	for (int i = 0; i < LOOKUPS; i++)
		sum += draw(sum >> 32);
	return (__u32)sum;
}

char _license[] SEC("license") = "GPL";
