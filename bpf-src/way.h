/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The way to a remote by the route and neighbour of the moment: looked up, measured, and taken.
 *
 * For programs. A way is the eight words of a struct bpf_fib_lookup.
 */
#ifndef TM_WAY_H
#define TM_WAY_H

#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "outer.h"
#include "tunnel_key.h"
#include "words.h"

/* Address families. */
#define TM_INET 2
#define TM_INET6 10

/* The word of struct bpf_fib_lookup that has the family, the protocol, both ports and the length. */
static __always_inline __u64 fib_flow(__u8 family, __be16 sport, __be16 dport, __u16 length)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return family | (__u64)TM_UDP << 8 | (__u64)sport << 16 | (__u64)dport << 32 | (__u64)length << 48;
#else
	return (__u64)family << 56 | (__u64)TM_UDP << 48 | (__u64)sport << 32 | (__u64)dport << 16 | length;
#endif
}

/* Asks for the way to the remote of an if2tunkey entry (its seven words); look_up answers. `from`: the tunnel device. */
static __always_inline void ask_way(const __u64 *entry, __u32 from, __u64 flow, __u8 tos, __u64 *way)
{
	const __u64 *remote = &entry[2], *local = &entry[4];
	int v4 = words_are_v4(remote);

	_Static_assert(offsetof(struct bpf_fib_lookup, tot_len) == 6, "bpf_fib_lookup");
	_Static_assert(offsetof(struct bpf_fib_lookup, ifindex) == 8, "bpf_fib_lookup");
	_Static_assert(offsetof(struct bpf_fib_lookup, tos) == 12, "bpf_fib_lookup");
	_Static_assert(offsetof(struct bpf_fib_lookup, ipv4_src) == 16, "bpf_fib_lookup");
	_Static_assert(offsetof(struct bpf_fib_lookup, ipv4_dst) == 32, "bpf_fib_lookup");
	_Static_assert(sizeof(struct bpf_fib_lookup) == 64, "bpf_fib_lookup");
	way[0] = flow;
	if (v4) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
		way[1] = words_pair(from, tos);
#else
		way[1] = words_pair(from, (__u32)tos << 24);
#endif
		way[2] = words_pair(words_second(local[1]), 0);
		way[3] = 0;
		way[4] = words_pair(words_second(remote[1]), 0);
		way[5] = 0;
	} else {
		way[1] = words_pair(from, bpf_htonl((__u32)tos << 20));
		way[2] = local[0];
		way[3] = local[1];
		way[4] = remote[0];
		way[5] = remote[1];
	}
	/*
	 * The look-up reads nothing of this, and writes both addresses there. But verifiers of Linux 6.14 to 6.18 believe
	 * that it writes nothing: after known numbers they would take what is_addressed asks for answered.
	 */
	way[6] = entry[0];
	way[7] = entry[0];
}

/*
 * Looks a way up: gives the device and the next hop. Returns what bpf_fib_lookup says.
 *
 * The look-up is made as if the tunnel device forwarded the packet, since the kernel looks up for a device that
 * forwards only; for sending, the tunnel device's own look-up has the same answer.
 */
static __always_inline long look_up(struct __sk_buff *skb, __u64 *way)
{
	return bpf_fib_lookup(skb, (struct bpf_fib_lookup *)way, sizeof(struct bpf_fib_lookup), 0);
}

static __always_inline __u32 way_family(const __u64 *way)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return way[0] & 0xff;
#else
	return way[0] >> 56;
#endif
}

/* The MTU of a way that is too narrow: where fib_flow put the length. */
static __always_inline __u32 way_mtu(const __u64 *way)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return way[0] >> 48;
#else
	return way[0] & 0xffff;
#endif
}

/*
 * Whether the addresses that look_up gave are enough for this packet, which `c` counts: then write_addresses and
 * send_frame. Else it goes by the neighbour, send_by, which costs more but keeps the kernel's knowledge of it fresh: a
 * neighbour that nobody sends by is never asked whether it is still there (RFC 4861, 7.3). So on each CPU the first packet
 * of a mapping in a jiffy goes that way, and the first after another next hop.
 */
static __always_inline int is_addressed(const __u64 *way, struct tm_counters *c)
{
	const __u16 *address = (const __u16 *)way + offsetof(struct bpf_fib_lookup, dmac) / 2;
	__u64 now = bpf_jiffies64() ^ way[4] ^ way[5], last = c->by_neighbour;

	c->by_neighbour = now;
	/* Zeros: a neighbour that isn't known yet, or a device that knows none. */
	return now == last && (address[0] | address[1] | address[2]);
}

/* Writes the Ethernet addresses that look_up gave. */
static __always_inline void write_addresses(__u8 *to, const __u64 *way)
{
	const __u16 *source = (const __u16 *)way + offsetof(struct bpf_fib_lookup, smac) / 2;
	const __u16 *destination = (const __u16 *)way + offsetof(struct bpf_fib_lookup, dmac) / 2;

#pragma unroll
	for (int i = 0; i < 3; i++) {
		*(__u16 *)(to + 2 * i) = destination[i];
		*(__u16 *)(to + ETH_ALEN + 2 * i) = source[i];
	}
}

/* Sends a frame, its addresses written, by the device that look_up gave. */
static __always_inline int send_frame(const __u64 *way)
{
	return bpf_redirect(words_first(way[1]), 0);
}

/* Sends by the device and next hop that look_up gave. The way becomes the hop: a stack has no room for both. */
static __always_inline int send_by(__u64 *way)
{
	__u32 device = words_first(way[1]);

	_Static_assert(offsetof(struct bpf_redir_neigh, ipv4_nh) == 4, "bpf_redir_neigh");
	_Static_assert(sizeof(struct bpf_redir_neigh) == 20, "bpf_redir_neigh");
	way[0] = words_pair(way_family(way), words_first(way[4]));
	way[1] = words_pair(words_second(way[4]), words_first(way[5]));
	way[2] = words_pair(words_second(way[5]), 0);
	return bpf_redirect_neigh(device, (struct bpf_redir_neigh *)way, sizeof(struct bpf_redir_neigh), 0);
}

#endif
