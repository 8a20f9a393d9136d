/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The fast lane out: writes the outer header of an if2tunkey entry and sends the packet by the route and neighbour of
 * the moment, without the tunnel device.
 *
 * For programs. What it can't do as the tunnel device would, it leaves to that one, untouched.
 */
#ifndef TM_ENCAP_H
#define TM_ENCAP_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "counters.h"
#include "outer.h"
#include "too_big.h"
#include "tunnel_key.h"
#include "way.h"
#include "words.h"

/* What is read of an inner IP packet before it is wrapped. */
struct inner {
	__u64 eth_first; /* bytes 0 to 7 of its Ethernet header */
	__u32 eth_then;  /* bytes 8 to 11 */
	__u32 flow;      /* a number that all packets of its flow have */
	__u16 eth_type;
	__u8 tos;
	__u8 ttl;
};

/* Mixes the words of a flow: an odd multiplier spreads each bit upwards, the shift brings the upper ones down. */
static __always_inline __u64 mix(__u64 sum, __u64 word)
{
	sum = (sum ^ word) * TM_CHECK_1;
	return sum ^ sum >> 29;
}

/* Whether packets of that protocol begin with two ports. */
static __always_inline int has_ports(__u32 protocol)
{
	return protocol == TM_TCP || protocol == TM_UDP || protocol == TM_SCTP;
}

/*
 * A number for the flow of the IP packet behind the Ethernet header at `data`, of which `first` and `then` are the first
 * sixteen bytes: addresses, protocol and, where they are there, ports. 0 where it takes the kernel's dissector to tell.
 */
static __always_inline __u32 flow_of(struct __sk_buff *skb, const __u8 *data, const __u8 *end, __u64 first, __u64 then)
{
	const __u8 *ip = data + TM_ETH;
	__u64 sum;

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		__u32 protocol = then >> 48 & 0xff;

		/* Without options. A fragment has no ports of its own, so that no fragment of its packet uses them. */
		if (first >> 56 != 0x45 || ip + 24 > end)
			return 0;
		sum = mix(protocol, *(const __u64 *)(ip + 12));
		if (has_ports(protocol) && !(first & 0x3fff))
			sum = mix(sum, *(const __u32 *)(ip + 20));
	} else {
		__u32 protocol = first >> 8 & 0xff;

		if (ip + 44 > end)
			return 0;
		sum = mix(protocol, *(const __u64 *)(ip + 8));
		sum = mix(sum, *(const __u64 *)(ip + 16));
		sum = mix(sum, *(const __u64 *)(ip + 24));
		sum = mix(sum, *(const __u64 *)(ip + 32));
		if (has_ports(protocol))
			sum = mix(sum, *(const __u32 *)(ip + 40));
	}
	return (__u32)(sum >> 32) | 1;
}

/* Reads the inner packet. Returns 0 where it isn't one for the fast lane. */
static __always_inline int read_inner(struct __sk_buff *skb, struct inner *inner)
{
	__u8 *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;

	if (skb->vlan_present || (skb->protocol != bpf_htons(ETH_P_IP) && skb->protocol != bpf_htons(ETH_P_IPV6)))
		return 0;
	if (data + TM_ETH + 20 > end) {
		if (bpf_skb_pull_data(skb, TM_ETH + 20))
			return 0;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		if (data + TM_ETH + 20 > end)
			return 0;
	}
	inner->eth_first = *(__u64 *)data;
	inner->eth_then = *(__u32 *)(data + 8);
	inner->eth_type = *(__u16 *)(data + 12);
	if (inner->eth_type != skb->protocol)
		return 0;
	/* By shifting, since old verifiers refuse an offset that depends on the path. */
	__u64 first = bpf_be64_to_cpu(*(__u64 *)(data + TM_ETH)), then = bpf_be64_to_cpu(*(__u64 *)(data + TM_ETH + 8));

	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		inner->tos = first >> 48;
		inner->ttl = then >> 56;
	} else {
		inner->tos = first >> 52;
		inner->ttl = first;
	}
	/* What the kernel knows of the flow, else what is quicker told than by its dissector. */
	inner->flow = skb->hash;
	if (!inner->flow) {
		inner->flow = flow_of(skb, data, end, first, then);
		if (inner->flow)
			bpf_set_hash(skb, inner->flow);
		else
			inner->flow = bpf_get_hash_recalc(skb);
	}
	return 1;
}

/* The outer Ethernet header, whose addresses are filled in later: until then no multicast address may stand there. */
static __always_inline void write_outer_eth(__u8 *to, __be16 eth_type)
{
	*(__u64 *)to = 0;
	*(__u32 *)(to + 8) = 0;
	*(__be16 *)(to + 12) = eth_type;
}

static __always_inline void write_inner_eth(__u8 *to, const struct inner *inner)
{
	*(__u64 *)to = inner->eth_first;
	*(__u32 *)(to + 8) = inner->eth_then;
	*(__u16 *)(to + 12) = inner->eth_type;
}

/* UDP without a checksum, and what stands between it and the inner frame. `length`: of the inner frame. */
static __always_inline void write_udp(__u8 *to, __be16 sport, __be16 dport, __u32 length, __u32 flags, __u32 id)
{
	*(__be16 *)to = sport;
	*(__be16 *)(to + 2) = dport;
	*(__be16 *)(to + 4) = bpf_htons(length + 16);
	*(__be16 *)(to + 6) = 0;
	*(__be32 *)(to + 8) = flags & TM_IF_GENEVE ? TM_GENEVE_WORD : TM_VXLAN_WORD;
	*(__be32 *)(to + 12) = bpf_htonl(id << 8);
}

/*
 * An id for an outer IPv4 packet that may be fragmented (RFC 6864, 4.1). `number`: of the mapping's packets on this CPU.
 * The step is odd: no two of the 65,536 packets of a flow that follow each other on a CPU have the same id, unless they are
 * cut into segments, which have numbers in between. CPUs begin far from each other, flows step on in different ways.
 */
static __always_inline __u16 outer_id(__u32 flow, __u32 number)
{
	number += bpf_get_smp_processor_id() * 0x9e37;
	return number * (flow | 1) + (flow >> 16);
}

/*
 * Encapsulates and sends, by an if2tunkey entry (its seven words) whose tunnel device is `device`. Returns a verdict, or
 * TM_TAKE_DEVICE.
 */
static __always_inline int encapsulate(struct __sk_buff *skb, const __u64 *entry, __u32 device,
				       const volatile struct tm_conf *settings)
{
	__u32 slot = words_first(entry[0]) & TM_SLOT_MASK;
	__u32 id = words_second(entry[1]), options = words_first(entry[6]), more = words_second(entry[6]);
	__u32 length = skb->len, gso_size = skb->gso_size, outer, flags;
	__u64 packets = skb_packets(skb), way[8]; /* struct bpf_fib_lookup */
	int v4 = words_are_v4(&entry[2]), addressed, verdict;
	struct tm_counters *c = counters_of(slot);
	__be16 sport, dport;
	struct inner inner;
	__u16 header;
	__u8 tos, ttl, *data, *end;
	long found;

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	ttl = options & 0xff;
	tos = options >> 8 & 0xff;
	flags = options >> 16;
	dport = more & 0xffff;
	header = more >> 16;
#else
	ttl = options >> 24;
	tos = options >> 16 & 0xff;
	flags = options & 0xffff;
	dport = more >> 16;
	header = more & 0xffff;
#endif
	if (!c || !read_inner(skb, &inner))
		return TM_TAKE_DEVICE;
	if (flags & TM_IF_INHERIT_TTL)
		ttl = inner.ttl;
	if (flags & TM_IF_INHERIT_TOS)
		tos = inner.tos;
	if (!ttl)
		ttl = TM_DEFAULT_TTL;
	tos = (tos & ~3) | ecn_outside(inner.tos);
	sport = bpf_htons(TM_SOURCE_PORT_BASE + ((inner.flow ^ inner.flow >> 16) & TM_SOURCE_PORT_MASK));

	/* The outer packet's length, or that of the largest into which it will be cut. */
	outer = (v4 ? TM_OUTER4 : TM_OUTER6) + length;
	if (outer > 0xffff)
		return TM_TAKE_DEVICE;
	if (gso_size) {
		__u64 unknown = 0;
		int exact;
		__u32 segment = segment_size(skb, gso_size, &exact);

		/* What can't be told is left to the tunnel device where it doesn't fit into that. */
		if (!exact && bpf_check_mtu(skb, device, (__u32 *)&unknown, 0, BPF_MTU_CHK_SEGS))
			return TM_TAKE_DEVICE;
		outer = segment ? segment + (v4 ? TM_OVERHEAD4 : TM_OVERHEAD6) : 0;
	}
	ask_way(entry, device, fib_flow(v4 ? TM_INET : TM_INET6, sport, dport, outer), tos, way);
	found = look_up(skb, way);
	if (found == BPF_FIB_LKUP_RET_FRAG_NEEDED && length > TM_NEVER_TOO_BIG)
		return answer_too_big(skb, words_first(entry[0]), is_whole(entry),
				      way_mtu(way) - (v4 ? TM_OVERHEAD4 : TM_OVERHEAD6));
	if (found != BPF_FIB_LKUP_RET_SUCCESS && found != BPF_FIB_LKUP_RET_NO_NEIGH)
		return TM_TAKE_DEVICE;
	addressed = found == BPF_FIB_LKUP_RET_SUCCESS && is_addressed(way, c);

	/* Whether the device is the one in `conf` each branch asks by itself, at a place that doesn't depend on the path. */
	if (v4) {
		__u32 sum;

		addressed = addressed && words_first(way[1]) == settings->detail[TM_ETHERNET4];
		if (bpf_skb_adjust_room(skb, TM_OVERHEAD4, BPF_ADJ_ROOM_MAC,
					BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |
						BPF_F_ADJ_ROOM_ENCAP_L2(TM_ETH) | BPF_F_ADJ_ROOM_ENCAP_L2_ETH |
						BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET))
			return TM_TAKE_DEVICE;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		if (data + TM_ETH + TM_OVERHEAD4 > end)
			return drop(skb, slot, TM_DROP_ENCAPSULATE);
		write_outer_eth(data, bpf_htons(ETH_P_IP));
		*(__be16 *)(data + 14) = bpf_htons(0x4500 | tos);
		*(__be16 *)(data + 16) = bpf_htons(length + TM_OUTER4);
		/* Only of a packet that may be fragmented the id has a meaning (RFC 6864). */
		*(__be16 *)(data + 18) = flags & TM_IF_DF ? 0 : outer_id(inner.flow, c->tx_packets);
		*(__be16 *)(data + 20) = flags & TM_IF_DF ? bpf_htons(0x4000) : 0;
		*(__be16 *)(data + 22) = bpf_htons((__u32)ttl << 8 | TM_UDP);
		*(__be32 *)(data + 26) = words_second(entry[5]);
		*(__be32 *)(data + 30) = words_second(entry[3]);
		sum = (__u32)header + bpf_htons(tos) + bpf_htons((__u32)ttl << 8) + *(__u16 *)(data + 16) +
		      *(__u16 *)(data + 18);
		*(__u16 *)(data + 24) = ~fold(sum);
		write_udp(data + 34, sport, dport, length, flags, id);
		write_inner_eth(data + TM_OVERHEAD4, &inner);
	} else {
		addressed = addressed && words_first(way[1]) == settings->detail[TM_ETHERNET6];
		if (bpf_skb_adjust_room(skb, TM_OVERHEAD6, BPF_ADJ_ROOM_MAC,
					BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |
						BPF_F_ADJ_ROOM_ENCAP_L2(TM_ETH) | BPF_F_ADJ_ROOM_ENCAP_L2_ETH |
						BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET))
			return TM_TAKE_DEVICE;
		data = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		if (data + TM_ETH + TM_OVERHEAD6 > end)
			return drop(skb, slot, TM_DROP_ENCAPSULATE);
		write_outer_eth(data, bpf_htons(ETH_P_IPV6));
		*(__be32 *)(data + 14) = bpf_htonl(0x60000000 | (__u32)tos << 20);
		*(__be16 *)(data + 18) = bpf_htons(length + 16);
		*(__be16 *)(data + 20) = bpf_htons((__u32)TM_UDP << 8 | ttl);
		*(__u64 *)(data + 22) = entry[4];
		*(__u64 *)(data + 30) = entry[5];
		*(__u64 *)(data + 38) = entry[2];
		*(__u64 *)(data + 46) = entry[3];
		write_udp(data + 54, sport, dport, length, flags, id);
		write_inner_eth(data + TM_OVERHEAD6, &inner);
	}
	if (addressed)
		write_addresses(data, way);
	count_sent(c, packets, length, 1);
	verdict = addressed ? send_frame(way) : send_by(way);
	return verdict == TC_ACT_REDIRECT ? verdict : drop(skb, slot, TM_DROP_REDIRECT);
}

#endif
