/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0-only) */
/* Counting by slot. Included by the programs only. */
#ifndef TM_COUNTERS_H
#define TM_COUNTERS_H

#include <linux/pkt_cls.h>

#include "maps.h"

/* How many packets of the wire an skb stands for. */
static __always_inline __u64 tm_segments(struct __sk_buff *skb)
{
	__u32 segments = skb->gso_segs;

	return segments ? segments : 1;
}

static __always_inline void tm_count_rx(struct __sk_buff *skb, __u32 slot)
{
	struct tm_counters *c = bpf_map_lookup_elem(&counters, &slot);

	if (c) {
		c->rx_packets += tm_segments(skb);
		c->rx_bytes += skb->len;
	}
}

static __always_inline void tm_count_tx(struct __sk_buff *skb, __u32 slot)
{
	struct tm_counters *c = bpf_map_lookup_elem(&counters, &slot);

	if (c) {
		c->tx_packets += tm_segments(skb);
		c->tx_bytes += skb->len;
	}
}

/* Counts and drops: the only way out of a program that isn't a redirect. */
static __always_inline int tm_drop(struct __sk_buff *skb, __u32 slot, enum tm_drop reason)
{
	struct tm_counters *c = bpf_map_lookup_elem(&counters, &slot);

	if (c)
		c->drops[reason] += tm_segments(skb);
	return TC_ACT_SHOT;
}

#endif /* TM_COUNTERS_H */
