/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Counting: packets and bytes of a slot, drops by reason, keys that nobody mapped.
 *
 * For programs. Nothing in here decides about a packet, except that a drop ends in TC_ACT_SHOT.
 */
#ifndef TM_COUNTERS_H
#define TM_COUNTERS_H

#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include "maps.h"
#include "words.h"

/* Packets on the wire that an skb stands for. */
static __always_inline __u64 skb_packets(struct __sk_buff *skb)
{
	__u32 segments = skb->gso_segs;

	return segments ? segments : 1;
}

/* A slot's counters; those of slot 0 where the slot is out of range. */
static __always_inline struct tm_counters *counters_of(__u32 slot)
{
	struct tm_counters *c = lookup_u32(&counters, slot);

	return c ? c : lookup_u32(&counters, 0);
}

/* Counts what came for a tenant, as it is without its outer header; `fast`: it took the fast lane. */
static __always_inline void count_rx(__u32 slot, __u64 packets, __u32 bytes, int fast)
{
	struct tm_counters *c = counters_of(slot);

	if (c) {
		c->rx_packets += packets;
		c->rx_bytes += bytes;
		if (fast)
			c->rx_fast += packets;
	}
}

/* As count_rx, sent by the tenant whose counters `c` are. */
static __always_inline void count_sent(struct tm_counters *c, __u64 packets, __u32 bytes, int fast)
{
	c->tx_packets += packets;
	c->tx_bytes += bytes;
	if (fast)
		c->tx_fast += packets;
}

/* As count_rx, sent by the tenant through the tunnel device. */
static __always_inline void count_tx(__u32 slot, __u64 packets, __u32 bytes)
{
	struct tm_counters *c = counters_of(slot);

	if (c)
		count_sent(c, packets, bytes, 0);
}

/*
 * Counts a drop on a slot and says the verdict.
 *
 * Without CAP_PERFMON the verifier refuses to index a map value by a register whose value depends on the path. So
 * each reason has its own constant offset, and the barrier keeps the compiler from making an index of them again.
 */
static __noinline int drop(struct __sk_buff *skb, __u32 slot, enum tm_drop reason)
{
	struct tm_counters *c = counters_of(slot);
	__u64 packets = skb_packets(skb);

	if (!c)
		return TC_ACT_SHOT;
#pragma unroll
	for (__u32 r = 0; r < TM_DROP_REASONS; r++) {
		if (r == reason) {
			asm volatile("" : "+r"(c));
			c->drops[r] += packets;
		}
	}
	return TC_ACT_SHOT;
}

/*
 * Counts a packet that is too big, as drop() would. For answer_too_big: one call more, and the stacks of all would be
 * more than the 512 bytes that Linux 6.1 grants.
 */
static __always_inline int drop_too_big(struct __sk_buff *skb, __u32 slot)
{
	struct tm_counters *c = counters_of(slot);

	if (c)
		c->drops[TM_DROP_TOO_BIG] += skb_packets(skb);
	return TC_ACT_SHOT;
}

/* Remembers a key that nobody mapped. */
static __always_inline void note_unknown(struct __sk_buff *skb, const struct tm_tunkey *key)
{
	struct tm_unknown *seen = bpf_map_lookup_elem(&unknown, key);
	__u64 now = bpf_ktime_get_ns();

	if (seen) {
		__sync_fetch_and_add(&seen->packets, skb_packets(skb));
		seen->last_seen_ns = now;
	} else {
		__u64 first[2] = { skb_packets(skb), now };

		/* Two CPUs may both be the first; one packet's count is then lost, the key isn't. */
		bpf_map_update_elem(&unknown, key, first, BPF_ANY);
	}
}

#endif
