/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The fast lane in: takes the outer header off on the underlay's TC ingress and hands the packet to its tenant, without
 * the tunnel device.
 *
 * For programs. Whatever isn't exactly as it should be goes on to the tunnel device, untouched: it has the last word
 * on what is malformed, fragmented, checksummed, unknown or not for us.
 *
 * The inner Ethernet header is written in place. So the kernel copies, of every packet that comes in on the device, the
 * headers that are shared with somebody (a packet socket that captures without a ring), before the program begins. The
 * helper that stores bytes does that for our packets only, but costs as much as a look-up in a hash.
 */
#ifndef TM_DECAP_H
#define TM_DECAP_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "check.h"
#include "counters.h"
#include "outer.h"
#include "words.h"

/* What the outer headers say. */
struct outer {
	__u32 tunnel;
	__u32 id;
	__u32 overhead; /* TM_OVERHEAD4 or TM_OVERHEAD6 */
	__u16 eth_type; /* of the inner frame, in network order */
	__u8 ecn;       /* of the outer header */
	__u8 inner_ecn; /* 0 where the inner packet isn't IP */
	__u32 mark;
	__u64 source[2]; /* IPv4-mapped */
};

/* The index of the tunnel whose packets come to that UDP port (in network order); 0: none. */
static __always_inline __u32 tunnel_of_port(const volatile struct tm_conf *underlay, __be16 port)
{
#pragma unroll
	for (int i = 0; i < TM_UNDERLAY_PORTS; i++) {
		__u32 entry = underlay->detail[i];

		if (!entry)
			return 0;
		if ((entry & 0xffff) == port)
			return entry >> 16;
	}
	return 0;
}

/* UDP and what stands behind it, at `udp`. `length`: what the IP header leaves for it. Returns whether it is in order. */
static __always_inline int read_udp(const __u8 *udp, __u32 length, const volatile struct tm_conf *settings,
				    struct outer *outer, __u64 *eth)
{
	__u32 kind = *(const __be32 *)(udp + 8), id = bpf_ntohl(*(const __be32 *)(udp + 12));

	if (*(const __be16 *)(udp + 4) != bpf_htons(length) || *(const __be16 *)(udp + 6))
		return 0;
	if (kind != (settings->flags & TM_CONF_GENEVE ? TM_GENEVE_WORD : TM_VXLAN_WORD) || id & 0xff)
		return 0;
	outer->id = id >> 8;
	outer->mark = settings->mark;
	outer->eth_type = *(const __be16 *)(udp + 16 + 12);
	eth[0] = *(const __u64 *)(udp + 16);
	eth[1] = *(const __u64 *)(udp + 16 + 8);
	return 1;
}

/* ECN bits of the inner IP header at `ip`, of which two bytes are there. */
static __always_inline __u8 ecn_inside(const __u8 *ip, __u16 eth_type)
{
	if (eth_type == bpf_htons(ETH_P_IP))
		return ip[1] & 3;
	if (eth_type == bpf_htons(ETH_P_IPV6))
		return ip[1] >> 4 & 3;
	return 0;
}

/* The protocol that the inner IP header says. */
static __always_inline __u8 inner_protocol(struct __sk_buff *skb, __u32 overhead, __u16 eth_type)
{
	return frame_word(skb, TM_ETH + overhead + (eth_type == bpf_htons(ETH_P_IP) ? 9 : 6)) >> 56;
}

/* A tunnel of ours whose packets are decapsulated here, by the destination port. */
static __always_inline const volatile struct tm_conf *tunnel_to(const volatile struct tm_conf *underlay, __be16 port,
								struct outer *outer)
{
	const volatile struct tm_conf *settings;

	outer->tunnel = tunnel_of_port(underlay, port);
	if (!outer->tunnel)
		return NULL;
	settings = lookup_u32(&conf, outer->tunnel);
	if (!settings ||
	    (settings->flags & (TM_CONF_VALID | TM_CONF_UNDERLAY | TM_CONF_FAST)) != (TM_CONF_VALID | TM_CONF_FAST))
		return NULL;
	/* As in the device lane, a tunnel without its device receives nothing. */
	if (!settings->ifindex || device_in(outer->tunnel) != settings->ifindex)
		return NULL;
	return settings;
}

static __always_inline int read_outer4(struct __sk_buff *skb, const volatile struct tm_conf *underlay,
				       struct outer *outer, __u64 *eth)
{
	const __u8 *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	const volatile struct tm_conf *settings;
	__u32 sum = 0, length;

	/* With two bytes of the inner IP header. */
	if (data + TM_ETH + TM_OVERHEAD4 + 2 > end)
		return 0;
	if (data[TM_ETH] != 0x45 || data[TM_ETH + 9] != TM_UDP ||
	    *(const __be16 *)(data + TM_ETH + 6) & bpf_htons(0xbfff))
		return 0;
	settings = tunnel_to(underlay, *(const __be16 *)(data + 36), outer);
	if (!settings || !settings->detail[0] || settings->detail[0] != *(const __be32 *)(data + 30))
		return 0;
	length = bpf_ntohs(*(const __be16 *)(data + 16));
	if (length + TM_ETH != skb->len)
		return 0;
#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += *(const __u16 *)(data + TM_ETH + 2 * i);
	if (fold(sum) != 0xffff)
		return 0;
	if (!read_udp(data + 34, length - 20, settings, outer, eth))
		return 0;
	outer->overhead = TM_OVERHEAD4;
	outer->ecn = data[TM_ETH + 1] & 3;
	outer->inner_ecn = ecn_inside(data + TM_ETH + TM_OVERHEAD4, outer->eth_type);
	outer->source[0] = 0;
	outer->source[1] = words_pair(bpf_htonl(0x0000ffff), *(const __be32 *)(data + 26));
	return 1;
}

static __always_inline int read_outer6(struct __sk_buff *skb, const volatile struct tm_conf *underlay,
				       struct outer *outer, __u64 *eth)
{
	const __u8 *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	const volatile struct tm_conf *settings;
	const volatile __u64 *local;
	__u32 length;

	if (data + TM_ETH + TM_OVERHEAD6 + 2 > end)
		return 0;
	if ((data[TM_ETH] & 0xf0) != 0x60 || data[TM_ETH + 6] != TM_UDP)
		return 0;
	settings = tunnel_to(underlay, *(const __be16 *)(data + 56), outer);
	if (!settings || !(settings->flags & TM_CONF_ZERO_CSUM6))
		return 0;
	local = (const volatile __u64 *)&settings->detail[TM_LOCAL6];
	if (local[0] != *(const __u64 *)(data + 38) || local[1] != *(const __u64 *)(data + 46))
		return 0;
	length = bpf_ntohs(*(const __be16 *)(data + 18));
	if (length + 40 + TM_ETH != skb->len)
		return 0;
	if (!read_udp(data + 54, length, settings, outer, eth))
		return 0;
	outer->overhead = TM_OVERHEAD6;
	outer->ecn = data[TM_ETH + 1] >> 4 & 3;
	outer->inner_ecn = ecn_inside(data + TM_ETH + TM_OVERHEAD6, outer->eth_type);
	outer->source[0] = *(const __u64 *)(data + 22);
	outer->source[1] = *(const __u64 *)(data + 30);
	return 1;
}

/* Sets "congestion experienced" on the inner packet, which is ECN-capable (RFC 6040, 4.2). */
static __always_inline int mark_congestion(struct __sk_buff *skb, __u16 eth_type)
{
	__u64 words[2];

	if (eth_type == bpf_htons(ETH_P_IPV6)) {
		if (bpf_skb_load_bytes(skb, TM_ETH, words, 8))
			return -1;
		words[0] |= bpf_cpu_to_be64(0x0030000000000000ULL);
		return bpf_skb_store_bytes(skb, TM_ETH, words, 8, 0);
	}
	/* Of IPv4 the first twelve bytes, in which the checksum is the last. */
	if (bpf_skb_load_bytes(skb, TM_ETH, words, 16))
		return -1;
	__u64 first = bpf_be64_to_cpu(words[0]), second = bpf_be64_to_cpu(words[1]);
	__u32 before = first >> 48, after = before | 3;
	__u32 sum = (__u16) ~(second >> 32 & 0xffff) + (__u16)~before + after;

	words[0] = bpf_cpu_to_be64(first | 0x0003000000000000ULL);
	words[1] = bpf_cpu_to_be64((second & ~0x0000ffff00000000ULL) | (__u64)(__u16)~fold(sum) << 32);
	return bpf_skb_store_bytes(skb, TM_ETH, words, 12, 0);
}

/* Decapsulates what came in on the underlay device of `conf[index]`. */
static __always_inline int decapsulate(struct __sk_buff *skb, __u32 index)
{
	const volatile struct tm_conf *underlay;
	__u32 ifindex = skb->ifindex, slot, target, length = skb->len;
	struct outer outer = {};
	__u64 key[3], eth[2]; /* struct tm_tunkey; the inner Ethernet header, and two bytes more */
	__u64 packets = skb_packets(skb);
	__u64 how = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET;
	__u8 *data, *end;
	int ip, verdict;

	if (skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return TC_ACT_UNSPEC;
	underlay = lookup_u32(&conf, index);
	if (!underlay || !(underlay->flags & TM_CONF_VALID) || !(underlay->flags & TM_CONF_UNDERLAY))
		return TC_ACT_UNSPEC;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (!read_outer4(skb, underlay, &outer, eth))
			return TC_ACT_UNSPEC;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (!read_outer6(skb, underlay, &outer, eth))
			return TC_ACT_UNSPEC;
	} else {
		return TC_ACT_UNSPEC;
	}
	/* A device that left for another namespace took this program along, but not its place in `devs`. */
	if (underlay->ifindex != ifindex || device_in(index) != ifindex)
		return TC_ACT_UNSPEC;

	key[0] = words_pair(outer.tunnel, outer.id);
	key[1] = outer.source[0];
	key[2] = outer.source[1];
	if (find_slot_ref(key, &slot) != LOOKUP_FOUND)
		return TC_ACT_UNSPEC;
	target = device_in(slot & TM_SLOT_MASK);
	if (!target)
		return TC_ACT_UNSPEC;

	ip = outer.eth_type == bpf_htons(ETH_P_IP) || outer.eth_type == bpf_htons(ETH_P_IPV6);
	/* A port's packets are looked at anew, but an endpoint's go on as what the outer header said they are. */
	if (slot & TM_SLOT_ENDPOINT && !ip)
		return TC_ACT_UNSPEC;
	/* Unless it is told, the helper takes the outer family's header for the least that has to be left. */
	if (ip && outer.eth_type != skb->protocol && (slot & TM_SLOT_ENDPOINT || length < outer.overhead + TM_ETH + 40))
		how |= outer.eth_type == bpf_htons(ETH_P_IP) ? TM_DECAP_L3_IPV4 : TM_DECAP_L3_IPV6;
	/* What else is GSO has to be told that it is no longer in a tunnel, which only the kernel does (iptunnel_pull_offloads);
	 * TCP goes without where it ends here. */
	if (skb->gso_size && inner_protocol(skb, outer.overhead, outer.eth_type) != TM_TCP)
		return TC_ACT_UNSPEC;
	/* The tunnel device drops what is too short to be what it says. */
	if (ip && length < outer.overhead + TM_ETH + (outer.eth_type == bpf_htons(ETH_P_IP) ? 20 : 40))
		return TC_ACT_UNSPEC;
	/* And it knows what becomes of ECN bits that don't go together (RFC 6040, 4.2). */
	if (ip && ((outer.ecn == 3 && outer.inner_ecn == 0) || (outer.ecn == 1 && outer.inner_ecn == 2)))
		return TC_ACT_UNSPEC;
	if (bpf_skb_adjust_room(skb, -(__s32)outer.overhead, BPF_ADJ_ROOM_MAC, how))
		return TC_ACT_UNSPEC;

	data = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if (data + TM_ETH > end)
		return drop(skb, slot & TM_SLOT_MASK, TM_DROP_DECAPSULATE);
	*(__u64 *)data = eth[0];
	*(__u32 *)(data + 8) = words_first(eth[1]);
	*(__u16 *)(data + 12) = outer.eth_type;
	if (ip && outer.ecn == 3 && mark_congestion(skb, outer.eth_type))
		return drop(skb, slot & TM_SLOT_MASK, TM_DROP_DECAPSULATE);
	/* One checksum less: the outer one, were it only zero, counts as the first that was verified. */
	bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC);
	count_rx(slot & TM_SLOT_MASK, packets, length - outer.overhead, 1);
	if (slot & TM_SLOT_ENDPOINT) {
		skb->tc_index = 0;
		skb->mark = 0;
		verdict = bpf_redirect_peer(target, 0);
	} else {
		if (outer.mark)
			skb->tc_index = outer.mark;
		verdict = bpf_redirect(target, BPF_F_INGRESS);
	}
	return verdict == TC_ACT_REDIRECT ? verdict : drop(skb, slot & TM_SLOT_MASK, TM_DROP_REDIRECT);
}

#endif
