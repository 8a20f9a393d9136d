/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0-only) */
/* Between our keys and the kernel's struct bpf_tunnel_key. Included by the programs only. */
#ifndef TM_TUNNEL_KEY_H
#define TM_TUNNEL_KEY_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

/* bpf_tunnel_key holds IPv4 addresses in host byte order, IPv6 addresses as on the wire. */
static __always_inline void tm_map_ipv4(struct tm_addr *addr, __u32 host_order)
{
	TM_WORD(addr, 0) = 0;
	TM_WORD(addr, 1) = 0;
	TM_WORD(addr, 2) = bpf_htonl(0xffff);
	TM_WORD(addr, 3) = bpf_htonl(host_order);
}

static __always_inline int tm_is_ipv4(const struct tm_addr *addr)
{
	return TM_WORD(addr, 0) == 0 && TM_WORD(addr, 1) == 0 && TM_WORD(addr, 2) == bpf_htonl(0xffff);
}

/* Reads id and remote of a decapsulated packet. Returns what the helper returned. */
static __always_inline int tm_get_key(struct __sk_buff *skb, struct tm_tunkey *key)
{
	struct bpf_tunnel_key tk;
	int err;

	/* Padding included: the helpers read all of it. */
	__builtin_memset(&tk, 0, sizeof(tk));
	err = bpf_skb_get_tunnel_key(skb, &tk, sizeof(tk), 0);

	if (!err) {
		key->id = tk.tunnel_id;
		tm_map_ipv4(&key->remote, tk.remote_ipv4);
		return 0;
	}
	/* -EPROTO: the outer header is IPv6. */
	err = bpf_skb_get_tunnel_key(skb, &tk, sizeof(tk), BPF_F_TUNINFO_IPV6);
	if (!err) {
		key->id = tk.tunnel_id;
		__builtin_memcpy(&key->remote, tk.remote_ipv6, sizeof(key->remote));
	}
	return err;
}

/* TTL and DSCP of the inner header where they are inherited and the packet is IP. */
static __always_inline void tm_inherit(struct __sk_buff *skb, const struct tm_if_value *v, struct bpf_tunnel_key *tk)
{
	__u32 protocol = skb->protocol;

	if (protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr ip;

		if (bpf_skb_load_bytes(skb, ETH_HLEN, &ip, sizeof(ip)))
			return;
		if (v->flags & TM_IF_INHERIT_TTL)
			tk->tunnel_ttl = ip.ttl;
		if (v->flags & TM_IF_INHERIT_TOS)
			tk->tunnel_tos = ip.tos;
	} else if (protocol == bpf_htons(ETH_P_IPV6)) {
		__u8 head[8];

		if (bpf_skb_load_bytes(skb, ETH_HLEN, head, sizeof(head)))
			return;
		if (v->flags & TM_IF_INHERIT_TTL)
			tk->tunnel_ttl = head[7];
		if (v->flags & TM_IF_INHERIT_TOS)
			tk->tunnel_tos = (__u8)(head[0] << 4 | head[1] >> 4);
	}
}

/* Sets the key under which the tunnel device sends the packet. Returns what the helper returned. */
static __always_inline int tm_set_key(struct __sk_buff *skb, const struct tm_if_value *v)
{
	struct bpf_tunnel_key tk;
	__u64 flags = 0;

	__builtin_memset(&tk, 0, sizeof(tk));
	tk.tunnel_id = v->key.id;
	tk.tunnel_ttl = v->ttl;
	tk.tunnel_tos = v->tos;
	if (v->flags & (TM_IF_INHERIT_TTL | TM_IF_INHERIT_TOS))
		tm_inherit(skb, v, &tk);
	if (tm_is_ipv4(&v->key.remote)) {
		tk.remote_ipv4 = bpf_ntohl(TM_WORD(&v->key.remote, 3));
		tk.local_ipv4 = bpf_ntohl(TM_WORD(&v->local, 3));
	} else {
		__builtin_memcpy(tk.remote_ipv6, &v->key.remote, sizeof(tk.remote_ipv6));
		__builtin_memcpy(tk.local_ipv6, &v->local, sizeof(tk.local_ipv6));
		flags |= BPF_F_TUNINFO_IPV6;
	}
	if (!(v->flags & TM_IF_CHECKSUM))
		flags |= BPF_F_ZERO_CSUM_TX;
	if (v->flags & TM_IF_DF)
		flags |= BPF_F_DONT_FRAGMENT;
	return bpf_skb_set_tunnel_key(skb, &tk, sizeof(tk), flags);
}

#endif /* TM_TUNNEL_KEY_H */
