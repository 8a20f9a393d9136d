// SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0-only)
/*
 * A peer: tunnels in the way of BCC's distributed_bridge/tunnel_mesh example, written anew.
 *
 * The tunnel device is found in a hash, packets are cloned to where they go, and the original is dropped.
 */
#include <stddef.h>
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#define KEY_SIZE offsetof(struct bpf_tunnel_key, remote_ipv6[1])

struct tunnel_key {
	__u32 id;
	__u32 remote;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} conf SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct tunnel_key);
	__type(value, __u32);
	__uint(max_entries, 1024);
} tunkey2if SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, struct tunnel_key);
	__uint(max_entries, 1024);
} if2tunkey SEC(".maps");

/* TC ingress of the tunnel device. */
SEC("classifier")
int clone_ingress(struct __sk_buff *skb)
{
	struct bpf_tunnel_key from = {};
	struct tunnel_key key;
	__u32 *target;

	bpf_skb_get_tunnel_key(skb, &from, KEY_SIZE, 0);
	key.id = from.tunnel_id;
	key.remote = from.remote_ipv4;
	target = bpf_map_lookup_elem(&tunkey2if, &key);
	if (target) {
		skb->tc_index = 1;
		bpf_clone_redirect(skb, *target, BPF_F_INGRESS);
	}
	return TC_ACT_SHOT;
}

/* TC egress of a bridge port. */
SEC("classifier")
int clone_egress(struct __sk_buff *skb)
{
	struct bpf_tunnel_key to = {};
	__u32 ifindex = skb->ifindex, one = 1, *tunnel;
	struct tunnel_key *key;

	if (skb->tc_index)
		return TC_ACT_SHOT;
	key = bpf_map_lookup_elem(&if2tunkey, &ifindex);
	tunnel = bpf_map_lookup_elem(&conf, &one);
	if (!key || !tunnel)
		return TC_ACT_SHOT;
	to.tunnel_id = key->id;
	to.remote_ipv4 = key->remote;
	bpf_skb_set_tunnel_key(skb, &to, KEY_SIZE, BPF_F_ZERO_CSUM_TX);
	bpf_clone_redirect(skb, *tunnel, 0);
	return TC_ACT_SHOT;
}

char _license[] SEC("license") = "GPL";
