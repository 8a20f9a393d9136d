/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Outer headers that the fast lane writes and reads itself: Ethernet, IPv4 or IPv6, UDP, VXLAN or Geneve.
 *
 * For programs. Offsets are from the start of the frame; headers have no options.
 */
#ifndef TM_OUTER_H
#define TM_OUTER_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define TM_ETH 14
/* Outer IP, UDP, VXLAN or Geneve, and the inner Ethernet header: what encapsulation adds behind the Ethernet header. */
#define TM_OVERHEAD4 50
#define TM_OVERHEAD6 70
/* The same without the inner Ethernet header: what the outer packet has more than the inner frame. */
#define TM_OUTER4 36
#define TM_OUTER6 56
/* What UDP and VXLAN or Geneve have more than GRE with a key. */
#define TM_UDP_MORE 8

/* Protocols behind IP. */
#define TM_ICMP 1
#define TM_TCP 6
#define TM_UDP 17
#define TM_ICMPV6 58
#define TM_SCTP 132

/* First word behind UDP. VXLAN: the I flag alone (RFC 7348). Geneve: version 0, no options, no flags, Ethernet inside
 * (RFC 8926). The second word is the id in its upper 24 bits. */
#define TM_VXLAN_WORD bpf_htonl(0x08000000)
#define TM_GENEVE_WORD bpf_htonl(0x00006558)

/* Source ports of RFC 7348, 5: 49152 to 65535. */
#define TM_SOURCE_PORT_BASE 49152
#define TM_SOURCE_PORT_MASK 0x3fff

/* Hop limit where the policy says "the route's default". */
#define TM_DEFAULT_TTL 64

/* Of bpf_skb_adjust_room; newer than some systems' headers. */
#define TM_DECAP_L3_IPV4 (1ULL << 7)
#define TM_DECAP_L3_IPV6 (1ULL << 8)

/* Eight bytes of the frame, the first of them uppermost; 0 where it ends before. */
static __always_inline __u64 frame_word(struct __sk_buff *skb, __u32 offset)
{
	__u64 word = 0;

	return bpf_skb_load_bytes(skb, offset, &word, 8) ? 0 : bpf_be64_to_cpu(word);
}

/* The Internet checksum's 16 bits (RFC 1071) of a sum of 16-bit numbers. */
static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* ECN bits of the outer header for those of the inner one (RFC 6040, 4.1 in compatibility with RFC 3168: the kernel
 * gives ECT(0) for CE). */
static __always_inline __u8 ecn_outside(__u8 inner)
{
	return (inner & 3) == 3 ? 2 : inner & 3;
}

#endif
