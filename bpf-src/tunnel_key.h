/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The kernel's tunnel metadata of a packet, to and from the words of our map entries.
 *
 * For programs.
 */
#ifndef TM_TUNNEL_KEY_H
#define TM_TUNNEL_KEY_H

#include <stddef.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "words.h"

#define TM_EPROTO 71

/* First 32 bits behind ::ffff in an IPv4-mapped address, as a word of memory: bytes 8 to 11. */
#define TM_V4_MAPPED bpf_htonl(0x0000ffff)

static __always_inline int words_are_v4(const __u64 *address)
{
	return address[0] == 0 && words_first(address[1]) == TM_V4_MAPPED;
}

/*
 * Reads the key that a packet was decapsulated with into the three words of a struct tm_tunkey. Returns 0 or the
 * helper's error.
 */
static __always_inline int read_tunnel_key(struct __sk_buff *skb, __u32 tunnel, __u64 *key)
{
	struct bpf_tunnel_key tk;
	int err = bpf_skb_get_tunnel_key(skb, &tk, sizeof(tk), 0);

	if (!err) {
		key[1] = 0;
		key[2] = words_pair(TM_V4_MAPPED, bpf_htonl(tk.remote_ipv4));
	} else if (err == -TM_EPROTO) {
		/* The outer header is the other family's. */
		err = bpf_skb_get_tunnel_key(skb, &tk, sizeof(tk), BPF_F_TUNINFO_IPV6);
		if (err)
			return err;
		key[1] = words_pair(tk.remote_ipv6[0], tk.remote_ipv6[1]);
		key[2] = words_pair(tk.remote_ipv6[2], tk.remote_ipv6[3]);
	} else {
		return err;
	}
	key[0] = words_pair(tunnel, tk.tunnel_id);
	return 0;
}

/* TTL (low byte) and TOS (next byte) of the inner IP header; 0 where a packet isn't plain IP. */
static __always_inline __u32 inner_ttl_tos(struct __sk_buff *skb)
{
	/* Zeros, since old verifiers refuse that a helper writes over a register's value, which may lie in the same place. */
	__u64 words[2] = { 0, 0 };
	const __u8 *header = (const __u8 *)words;

	/* Nine bytes reach both the TTL of IPv4 and the hop limit of IPv6. */
	if (skb->vlan_present || bpf_skb_load_bytes_relative(skb, 0, words, 9, BPF_HDR_START_NET))
		return 0;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		return (__u32)header[8] | (__u32)header[1] << 8;
	if (skb->protocol == bpf_htons(ETH_P_IPV6))
		return (__u32)header[7] | ((__u32)(header[0] & 0xf) << 4 | (__u32)header[1] >> 4) << 8;
	return 0;
}

/* Flags of an if2tunkey entry (its seven words). */
static __always_inline __u32 entry_flags(const __u64 *entry)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return words_first(entry[6]) >> 16;
#else
	return words_first(entry[6]) & 0xffff;
#endif
}

/* TOS of an if2tunkey entry; 0 where it is the inner packet's. */
static __always_inline __u8 entry_tos(const __u64 *entry)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	return words_first(entry[6]) >> 8 & 0xff;
#else
	return words_first(entry[6]) >> 16 & 0xff;
#endif
}

/* Whether the outer packets of an entry are never fragmented: that is asked for, or they are IPv6, of which the kernel
 * fragments none that it forwards into a tunnel. */
static __always_inline int is_whole(const __u64 *entry)
{
	return (entry_flags(entry) & TM_IF_DF) || !words_are_v4(&entry[2]);
}

/* Gives a packet the tunnel key of an if2tunkey entry (its seven words). Returns 0 or the helper's error. */
static __always_inline int write_tunnel_key(struct __sk_buff *skb, const __u64 *entry)
{
	const __u64 *remote = &entry[2], *local = &entry[4];
	__u32 options = words_first(entry[6]);
	__u32 id = words_second(entry[1]);
	__u64 key[6]; /* struct bpf_tunnel_key in words */
	__u8 ttl, tos;
	__u16 flags;
	__u64 how = 0;

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
	ttl = options & 0xff;
	tos = options >> 8 & 0xff;
	flags = options >> 16;
#else
	ttl = options >> 24;
	tos = options >> 16 & 0xff;
	flags = options & 0xffff;
#endif
	_Static_assert(offsetof(struct bpf_tunnel_key, remote_ipv6) == 4, "bpf_tunnel_key");
	_Static_assert(offsetof(struct bpf_tunnel_key, tunnel_tos) == 20, "bpf_tunnel_key");
	_Static_assert(offsetof(struct bpf_tunnel_key, tunnel_ttl) == 21, "bpf_tunnel_key");
	_Static_assert(offsetof(struct bpf_tunnel_key, local_ipv6) == 28, "bpf_tunnel_key");
	_Static_assert(sizeof(struct bpf_tunnel_key) == 44, "bpf_tunnel_key");

	if (flags & (TM_IF_INHERIT_TTL | TM_IF_INHERIT_TOS)) {
		__u32 inner = inner_ttl_tos(skb);

		if (flags & TM_IF_INHERIT_TTL)
			ttl = inner & 0xff;
		if (flags & TM_IF_INHERIT_TOS)
			tos = inner >> 8;
	}
	if (!(flags & TM_IF_CHECKSUM))
		how |= BPF_F_ZERO_CSUM_TX;
	if (flags & TM_IF_DF)
		how |= BPF_F_DONT_FRAGMENT;

	/* tos and ttl are bytes 20 and 21: the second half of key[2]. */
	__u32 ttl_tos = bpf_htonl((__u32)tos << 24 | (__u32)ttl << 16);

	if (words_are_v4(remote)) {
		/* The helper takes IPv4 addresses in host order. */
		key[0] = words_pair(id, bpf_ntohl(words_second(remote[1])));
		key[1] = 0;
		key[2] = words_pair(0, ttl_tos);
		key[3] = words_pair(0, bpf_ntohl(words_second(local[1])));
		key[4] = 0;
		key[5] = 0;
	} else {
		how |= BPF_F_TUNINFO_IPV6;
		key[0] = words_pair(id, words_first(remote[0]));
		key[1] = words_pair(words_second(remote[0]), words_first(remote[1]));
		key[2] = words_pair(words_second(remote[1]), ttl_tos);
		key[3] = words_pair(0, words_first(local[0]));
		key[4] = words_pair(words_second(local[0]), words_first(local[1]));
		key[5] = words_pair(words_second(local[1]), 0);
	}
	return bpf_skb_set_tunnel_key(skb, (struct bpf_tunnel_key *)key, sizeof(struct bpf_tunnel_key), how);
}

#endif
