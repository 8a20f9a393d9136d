/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Packets that don't fit into the tunnel: measured, and answered toward their sender as the kernel's own tunnels do
 * (skb_tunnel_check_pmtu): ICMP "fragmentation needed" or ICMPv6 "packet too big", in the name of the destination.
 *
 * For programs. Sizes are those of IP packets, with any VLAN tags counted to them: what an Ethernet frame has beyond its
 * 14 bytes of header.
 */
#ifndef TM_TOO_BIG_H
#define TM_TOO_BIG_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "counters.h"
#include "outer.h"
#include "tunnel_key.h"
#include "way.h"
#include "words.h"

/* Not a verdict: the packet is as it was and has to take the tunnel device. */
#define TM_TAKE_DEVICE 0x100

/* Frames up to this length are never looked at: no sender can be told to send IP packets smaller than 576 bytes. */
#define TM_NEVER_TOO_BIG (ETH_HLEN + 576)

/* Least MTU that an answer may name: RFC 1122, 3.3.3 and RFC 8200, 5. */
#define TM_LEAST_MTU4 576
#define TM_LEAST_MTU6 1280

/* Bytes that an answer quotes, so that it fits into the least MTU; what is too big is longer than that. */
#define TM_QUOTE4 (TM_LEAST_MTU4 - 28)
#define TM_QUOTE6 (TM_LEAST_MTU6 - 48)

/* Answers of one mapping on one CPU: one a millisecond, and this many at once. As net.ipv4.icmp_msgs_per_sec. */
#define TM_ANSWER_EVERY_NS 1000000ULL
#define TM_ANSWERS_AT_ONCE 50

/* What no packet's size is, and gso_size of a packet whose parts have sizes of their own (GSO_BY_FRAGS). */
#define TM_ANY_SIZE 0xffffffffU
#define TM_GSO_BY_FRAGS 0xffff

/* Bytes moved at a time while the answer is made. */
#define TM_CHUNK 40

/*
 * By so much the quote is moved further back than it has to be, and then cut away in front. What is behind the headers
 * of a packet whose checksum the hardware should fill in stays marked so until the place of that checksum has been cut
 * off (skb_postpull_rcsum); else somebody would write it into the middle of the quote.
 */
#define TM_SLACK 256

#define TM_IP_DF 0x4000
#define TM_IP_OFFSET 0x1fff

static __always_inline int is_vlan(__u32 type)
{
	return type == ETH_P_8021Q || type == ETH_P_8021AD;
}

/* Where a frame's network header is and of what type; `tags`: VLAN tags, the one beside the frame included. */
static __always_inline __u32 network_header(struct __sk_buff *skb, __u32 *offset, __u32 *tags)
{
	__u64 word = frame_word(skb, 12);
	__u32 type = word >> 48;

	*offset = ETH_HLEN;
	*tags = skb->vlan_present ? 1 : 0;
	if (is_vlan(type)) {
		*offset += 4;
		*tags += 1;
		type = word >> 16 & 0xffff;
	}
	return type;
}

/*
 * Size of the largest packet that a GSO packet is cut into. Unless `exact` is set only the kernel can tell, and it is at
 * least as much as that: what is UDP may be a tunnel, and have more headers.
 */
static __always_inline __u32 segment_size(struct __sk_buff *skb, __u32 gso_size, int *exact)
{
	__u32 offset, tags, length = 40, protocol;

	*exact = 0;
	switch (network_header(skb, &offset, &tags)) {
	case ETH_P_IP:
		length = (frame_word(skb, offset) >> 56 & 0xf) * 4;
		protocol = frame_word(skb, offset + 8) >> 48 & 0xff;
		break;
	case ETH_P_IPV6:
		protocol = frame_word(skb, offset) >> 8 & 0xff;
		break;
	default:
		return 0;
	}
	if (protocol == TM_TCP) {
		/* Byte 12 of a TCP header: its length in words, in the upper half. */
		length += (frame_word(skb, offset + length + 8) >> 28 & 0xf) * 4;
		*exact = 1;
	} else if (protocol == TM_UDP && gso_size != TM_GSO_BY_FRAGS) {
		length += 8;
	} else {
		return 0;
	}
	return tags * 4 + length + gso_size;
}

/*
 * Size of the largest packet that the wire will see. `device`: the tunnel device, by whose MTU the kernel is asked where
 * only the kernel can tell.
 */
static __always_inline __u32 wire_size(struct __sk_buff *skb, __u32 device)
{
	__u32 gso_size = skb->gso_size, size;
	__u64 length = 0;
	int exact;

	if (!gso_size)
		return skb->len - ETH_HLEN + (skb->vlan_present ? 4 : 0);
	size = segment_size(skb, gso_size, &exact);
	if (!exact && bpf_check_mtu(skb, device, (__u32 *)&length, 0, BPF_MTU_CHK_SEGS))
		return TM_ANY_SIZE;
	return size;
}

/* Whether one more answer may be sent for a slot on this CPU. */
static __always_inline int may_answer(__u32 slot)
{
	struct tm_counters *c = counters_of(slot);
	__u64 now = bpf_ktime_get_ns(), next;

	if (!c)
		return 0;
	next = c->next_answer_ns;
	if (next > now + (TM_ANSWERS_AT_ONCE - 1) * TM_ANSWER_EVERY_NS)
		return 0;
	c->next_answer_ns = (next > now ? next : now) + TM_ANSWER_EVERY_NS;
	return 1;
}

/* Sum of the four 16-bit numbers in a word. */
static __always_inline __u64 sum_word(__u64 word)
{
	return (word >> 48) + (word >> 32 & 0xffff) + (word >> 16 & 0xffff) + (word & 0xffff);
}

/*
 * Makes the packet that is `quote` bytes of itself, behind `headers` bytes yet to be written. Returns the sum of the
 * quote's 16-bit numbers, or a negative error.
 *
 * Loops here are unrolled: without CAP_PERFMON the verifier also walks them as a mispredicting CPU would, without end.
 */
static __always_inline __s64 move_quote(struct __sk_buff *skb, __u32 headers, __u32 quote)
{
	__u32 to = TM_SLACK + headers, rest = quote % TM_CHUNK, sum = 0;
	__u64 chunk[TM_CHUNK / 8];

	/* Also makes the packet linear, ours alone and no longer GSO. */
	if (bpf_skb_change_tail(skb, ETH_HLEN + to + quote, 0))
		return -1;
#pragma unroll
	for (__u32 i = 1; i <= quote / TM_CHUNK; i++) {
		__u32 at = ETH_HLEN + quote - i * TM_CHUNK;

		if (bpf_skb_load_bytes(skb, at, chunk, TM_CHUNK) ||
		    bpf_skb_store_bytes(skb, at + to, chunk, TM_CHUNK, BPF_F_RECOMPUTE_CSUM))
			return -1;
		sum = bpf_csum_diff(0, 0, (__be32 *)chunk, TM_CHUNK, sum);
	}
	if (bpf_skb_load_bytes(skb, ETH_HLEN, chunk, rest) ||
	    bpf_skb_store_bytes(skb, ETH_HLEN + to, chunk, rest, BPF_F_RECOMPUTE_CSUM))
		return -1;
	sum = bpf_csum_diff(0, 0, (__be32 *)chunk, rest, sum);
	if (bpf_skb_adjust_room(skb, -TM_SLACK, BPF_ADJ_ROOM_MAC, 0))
		return -1;
	return bpf_ntohs(fold(sum));
}

/* Makes of an IPv4 packet the ICMP message about it. Returns 0 or an error. */
static __always_inline int make_icmp(struct __sk_buff *skb, __u32 ttl, __u32 source, __u32 destination, __u32 mtu)
{
	__s64 sum = move_quote(skb, 28, TM_QUOTE4);
	__u64 header[4];

	if (sum < 0)
		return -1;
	header[0] = 0x4500ULL << 48 | (__u64)TM_LEAST_MTU4 << 32 | TM_IP_DF;
	header[1] = (__u64)ttl << 56 | (__u64)TM_ICMP << 48 | destination;
	header[2] = (__u64)source << 32;
	header[1] |= (__u64)(__u16)~fold(sum_word(header[0]) + sum_word(header[1]) + sum_word(header[2])) << 32;
	/* Destination unreachable, fragmentation needed. */
	header[2] |= 0x0304ULL << 16 | (__u16)~fold(0x0304 + mtu + (__u64)sum);
	header[3] = (__u64)mtu << 32;
#pragma unroll
	for (int i = 0; i < 4; i++)
		header[i] = bpf_cpu_to_be64(header[i]);
	return bpf_skb_store_bytes(skb, ETH_HLEN, header, 28, BPF_F_RECOMPUTE_CSUM);
}

/* Makes of an IPv6 packet the ICMPv6 message about it. Returns 0 or an error. */
static __always_inline int make_icmpv6(struct __sk_buff *skb, __u32 mtu)
{
	__u32 length = TM_LEAST_MTU6 - 40, hops = frame_word(skb, ETH_HLEN) & 0xff;
	__u64 header[6];
	__s64 sum;

	header[0] = 6ULL << 60 | (__u64)length << 16 | (__u64)TM_ICMPV6 << 8 | hops;
	header[1] = frame_word(skb, ETH_HLEN + 24);
	header[2] = frame_word(skb, ETH_HLEN + 32);
	header[3] = frame_word(skb, ETH_HLEN + 8);
	header[4] = frame_word(skb, ETH_HLEN + 16);
	sum = move_quote(skb, 48, TM_QUOTE6);
	if (sum < 0)
		return -1;
	/* Packet too big; its checksum is over the addresses, length and protocol too. */
	header[5] = 0x0200ULL << 48 | mtu;
	sum += length + TM_ICMPV6;
#pragma unroll
	for (int i = 1; i < 6; i++)
		sum += sum_word(header[i]);
	header[5] |= (__u64)(__u16)~fold(sum) << 32;
#pragma unroll
	for (int i = 0; i < 6; i++)
		header[i] = bpf_cpu_to_be64(header[i]);
	return bpf_skb_store_bytes(skb, ETH_HLEN, header, 48, BPF_F_RECOMPUTE_CSUM);
}

/* Whether an IPv4 address can be answered, or answer: neither 0/8, nor loopback, multicast or broadcast. */
static __always_inline int is_host4(__u32 address)
{
	return address >> 24 && address >> 24 != 127 && address >> 24 < 224;
}

/* Whether the ICMP message at `offset` is an error, which nobody answers. */
static __always_inline int is_icmp_error(struct __sk_buff *skb, __u32 offset)
{
	__u32 type = frame_word(skb, offset) >> 56;

	return type == 3 || type == 4 || type == 5 || type == 11 || type == 12;
}

/* Whether what follows an IPv6 header may be answered: no fragment but a first one, no ICMPv6 error or redirect. */
static __always_inline int is_answerable6(struct __sk_buff *skb, __u32 offset, __u32 protocol)
{
#pragma unroll
	for (int i = 0; i < 6; i++) {
		__u64 word;

		if (protocol != 0 && protocol != 43 && protocol != 44 && protocol != 51 && protocol != 60 &&
		    protocol != TM_ICMPV6)
			return 1;
		word = frame_word(skb, offset);
		if (protocol == TM_ICMPV6)
			return word >> 56 >= 128 && word >> 56 != 137;
		if (protocol == 44) {
			if (word >> 32 & 0xfff8)
				return 0;
			offset += 8;
		} else if (protocol == 51) {
			offset += ((word >> 48 & 0xff) + 2) * 4;
		} else {
			offset += ((word >> 48 & 0xff) + 1) * 8;
		}
		protocol = word >> 56;
	}
	return 0;
}

/*
 * A packet is too big for a mapping: counts it and answers its sender. `slot`: slot and flags of the entry; `whole`: the
 * outer packet isn't fragmented either; `mtu`: size of the largest packet that fits.
 *
 * Returns a verdict or, where it isn't for us to answer and fragments may carry it, TM_TAKE_DEVICE.
 */
static __noinline int answer_too_big(struct __sk_buff *skb, __u32 slot, int whole, __u32 mtu)
{
	__u32 offset, tags, type = network_header(skb, &offset, &tags), ifindex = skb->ifindex;
	__u32 tag_type = 0, tag = 0, ttl = 0, source = 0, destination = 0;
	__u64 word, macs[2];

	/* The sender counts without tags. */
	mtu -= tags * 4;
	/* Nobody is called "all of you". */
	if (frame_word(skb, 0) >> 56 & 1)
		goto unanswered;
	if (type == ETH_P_IP) {
		word = frame_word(skb, offset);
		if (word >> 60 != 4 || (word >> 56 & 0xf) < 5 || mtu < TM_LEAST_MTU4 || word & TM_IP_OFFSET)
			goto unanswered;
		/* A router would make fragments of it. We can't, but the tunnel device may make them of the outer one. */
		if (!(word & TM_IP_DF) && !whole)
			goto unanswered;
		type = (word >> 56 & 0xf) * 4;
		word = frame_word(skb, offset + 8);
		ttl = word >> 56;
		source = word;
		destination = frame_word(skb, offset + 16) >> 32;
		if (!is_host4(source) || !is_host4(destination))
			goto unanswered;
		if ((word >> 48 & 0xff) == TM_ICMP && is_icmp_error(skb, offset + type))
			goto unanswered;
		type = ETH_P_IP;
	} else if (type == ETH_P_IPV6) {
		word = frame_word(skb, offset);
		if (word >> 60 != 6 || mtu < TM_LEAST_MTU6)
			goto unanswered;
		if (frame_word(skb, offset + 8) >> 56 == 0xff || frame_word(skb, offset + 24) >> 56 == 0xff)
			goto unanswered;
		/* Neither :: nor ::1. */
		if (!frame_word(skb, offset + 8) && frame_word(skb, offset + 16) <= 1)
			goto unanswered;
		if (!is_answerable6(skb, offset + 40, word >> 8 & 0xff))
			goto unanswered;
	} else {
		goto unanswered;
	}

	drop_too_big(skb, slot & TM_SLOT_MASK);
	if (!may_answer(slot & TM_SLOT_MASK))
		return TC_ACT_SHOT;
	if (offset != ETH_HLEN) {
		/* Two tags, or one inside of the frame: what is made below has at most one, and that beside it. */
		word = frame_word(skb, 12);
		tag_type = skb->vlan_present ? skb->vlan_proto : bpf_htons((__u16)(word >> 48));
		tag = skb->vlan_present ? skb->vlan_tci : (word >> 32 & 0xffff);
		if (bpf_skb_vlan_pop(skb))
			return TC_ACT_SHOT;
	}
	if (bpf_skb_load_bytes(skb, 0, &macs[0], ETH_ALEN) || bpf_skb_load_bytes(skb, ETH_ALEN, &macs[1], ETH_ALEN))
		return TC_ACT_SHOT;
	if (type == ETH_P_IP ? make_icmp(skb, ttl, source, destination, mtu) : make_icmpv6(skb, mtu))
		return TC_ACT_SHOT;
	if (bpf_skb_store_bytes(skb, 0, &macs[1], ETH_ALEN, 0) ||
	    bpf_skb_store_bytes(skb, ETH_ALEN, &macs[0], ETH_ALEN, BPF_F_INVALIDATE_HASH))
		return TC_ACT_SHOT;
	if (tag_type && bpf_skb_vlan_push(skb, tag_type, tag))
		return TC_ACT_SHOT;
	skb->tc_index = 0;
	/* To the workload behind an endpoint; as if received on a port. */
	return bpf_redirect(ifindex, slot & TM_SLOT_ENDPOINT ? 0 : BPF_F_INGRESS);

unanswered:
	return whole ? drop_too_big(skb, slot & TM_SLOT_MASK) : TM_TAKE_DEVICE;
}

/*
 * For what takes the tunnel device: the size of the largest packet that fits, if this one is larger; else 0. What fits is
 * what the device's MTU allows, and the way to the remote: by its route or, where the kernel looks up none because the
 * tunnel device doesn't forward, by the underlay device's MTU as `conf` has it. `way`: as ask_way left it.
 *
 * A function of its own: within handle_egress, the stacks of that and of answer_too_big would be more than 512 bytes.
 */
static __noinline __u32 exceeded(struct __sk_buff *skb, __u32 tunnel, __u32 device, __u64 *way)
{
	const volatile struct tm_conf *settings = lookup_u32(&conf, tunnel);
	int v4 = way_family(way) == TM_INET;
	__u32 fits, room = 0;
	__u64 length = 0;

	/* Gives the MTU, whatever it says of the packet. */
	if (!settings || bpf_check_mtu(skb, device, (__u32 *)&length, 0, 0) < 0)
		return 0;
	fits = words_first(length);
	switch (look_up(skb, way)) {
	case BPF_FIB_LKUP_RET_SUCCESS:
	case BPF_FIB_LKUP_RET_NO_NEIGH:
		break;
	case BPF_FIB_LKUP_RET_FRAG_NEEDED:
		room = way_mtu(way) - (v4 ? TM_OVERHEAD4 : TM_OVERHEAD6);
		if (settings->flags & TM_CONF_GRE)
			room += TM_UDP_MORE;
		break;
	default:
		room = settings->room;
		room = v4 ? room & 0xffff : room >> 16;
	}
	if (room && room < fits)
		fits = room;
	return wire_size(skb, device) > fits ? fits : 0;
}

/*
 * For what takes the tunnel device: answers a packet that doesn't fit. Returns a verdict, or TM_TAKE_DEVICE where the
 * packet may go on.
 */
static __always_inline int check_size(struct __sk_buff *skb, const __u64 *entry, __u32 device)
{
	__u32 fits, family = words_are_v4(&entry[2]) ? TM_INET : TM_INET6;
	__u64 way[8]; /* struct bpf_fib_lookup */

	if (skb->len <= TM_NEVER_TOO_BIG)
		return TM_TAKE_DEVICE;
	ask_way(entry, device, fib_flow(family, 0, 0, 0xffff), entry_tos(entry), way);
	fits = exceeded(skb, words_first(entry[1]), device, way);
	return fits ? answer_too_big(skb, words_first(entry[0]), is_whole(entry), fits) : TM_TAKE_DEVICE;
}

#endif
