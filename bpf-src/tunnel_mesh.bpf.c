// SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0-only)
/*
 * The data plane: two programs around a tunnel device in collect-metadata mode.
 *
 * handle_ingress runs on TC ingress of a tunnel device: tunnel key -> slot -> tenant's device.
 * handle_egress runs on TC egress of a port, or TC ingress of an endpoint: device -> tunnel key -> tunnel device.
 *
 * Every packet on these hooks is a tenant's. It is redirected, or it is counted and dropped; it never goes on to the
 * host's own stack.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"
#include "counters.h"
#include "lookup.h"
#include "maps.h"
#include "tunnel_key.h"

/* Set before each load: handle_ingress is loaded once for each tunnel. */
const volatile __u32 tunnel_index = 0;

SEC("classifier")
int handle_ingress(struct __sk_buff *skb)
{
	__u32 tunnel = tunnel_index;
	struct tm_conf *c = bpf_map_lookup_elem(&conf, &tunnel);
	struct tm_tunkey key = {};
	__u32 slot = 0, target;
	int verdict;

	if (!c || !(c->flags & TM_CONF_VALID))
		return tm_drop(skb, tunnel, TM_DROP_NO_CONF);
	/* A tunnel device that was moved, or one that inherited the index, isn't ours. */
	if (c->ifindex != skb->ifindex || tm_device(tunnel) != skb->ifindex)
		return tm_drop(skb, tunnel, TM_DROP_WRONG_DEVICE);

	key.tunnel = tunnel;
	if (tm_get_key(skb, &key))
		return tm_drop(skb, tunnel, TM_DROP_NO_TUNNEL_KEY);

	switch (tm_find_slot(&key, &slot)) {
	case TM_FOUND:
		break;
	case TM_INCONSISTENT:
		return tm_drop(skb, tunnel, TM_DROP_INCONSISTENT);
	default: {
		struct tm_unknown first = {}, *seen = bpf_map_lookup_elem(&unknown, &key);
		__u64 now = bpf_ktime_get_boot_ns();

		if (seen) {
			__sync_fetch_and_add(&seen->packets, 1);
			seen->last_seen = now;
		} else {
			first.packets = 1;
			first.last_seen = now;
			bpf_map_update_elem(&unknown, &key, &first, BPF_ANY);
		}
		return tm_drop(skb, tunnel, TM_DROP_UNKNOWN_KEY);
	}
	}

	__u32 number = slot & TM_SLOT_MASK;

	target = tm_device(number);
	if (!target)
		return tm_drop(skb, number, TM_DROP_TARGET_GONE);
	if (slot & TM_SLOT_ENDPOINT) {
		/* Into another namespace: nothing of ours goes along. */
		skb->tc_index = 0;
		skb->mark = 0;
		verdict = bpf_redirect_peer(target, 0);
	} else {
		if (c->mark)
			skb->tc_index = c->mark;
		verdict = bpf_redirect(target, BPF_F_INGRESS);
	}
	if (verdict != TC_ACT_REDIRECT)
		return tm_drop(skb, number, TM_DROP_REDIRECT);
	tm_count_rx(skb, number);
	return verdict;
}

/* Whether the packet came in through another port of ours: then it has been where it is to go. */
static __always_inline int tm_came_from_port(struct __sk_buff *skb)
{
	__u32 from = skb->ingress_ifindex;
	struct tm_if_value entry;

	if (!from || tm_find_if(from, &entry) != TM_FOUND)
		return 0;
	if (entry.slot & TM_SLOT_ENDPOINT)
		return 0;
	return tm_device(entry.slot & TM_SLOT_MASK) == from;
}

SEC("classifier")
int handle_egress(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, number, tunnel, target;
	struct tm_if_value entry;
	struct tm_conf *c;
	int verdict;

	switch (tm_find_if(ifindex, &entry)) {
	case TM_FOUND:
		break;
	case TM_INCONSISTENT:
		return tm_drop(skb, TM_SLOT_NONE, TM_DROP_INCONSISTENT);
	default:
		return tm_drop(skb, TM_SLOT_NONE, TM_DROP_NO_ENTRY);
	}
	number = entry.slot & TM_SLOT_MASK;
	tunnel = entry.key.tunnel;

	/* In another namespace, or with an inherited index, this isn't the interface that was mapped. */
	if (tm_device(number) != ifindex)
		return tm_drop(skb, number, TM_DROP_WRONG_DEVICE);
	if (!(entry.slot & TM_SLOT_ENDPOINT) && tm_came_from_port(skb))
		return tm_drop(skb, number, TM_DROP_SPLIT_HORIZON);

	c = bpf_map_lookup_elem(&conf, &tunnel);
	if (!c || !(c->flags & TM_CONF_VALID))
		return tm_drop(skb, number, TM_DROP_NO_CONF);
	target = tm_device(tunnel);
	if (!target || target != c->ifindex)
		return tm_drop(skb, number, TM_DROP_TARGET_GONE);
	if (tm_set_key(skb, &entry))
		return tm_drop(skb, number, TM_DROP_SET_TUNNEL_KEY);
	if (entry.slot & TM_SLOT_ENDPOINT)
		skb->tc_index = 0;
	/* Counted before the device adds its headers. */
	tm_count_tx(skb, number);
	verdict = bpf_redirect(target, 0);
	if (verdict != TC_ACT_REDIRECT)
		return tm_drop(skb, number, TM_DROP_REDIRECT);
	return verdict;
}

char _license[] SEC("license") = "GPL";
