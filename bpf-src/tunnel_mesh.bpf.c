/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The data plane: handle_ingress on the TC ingress of tunnel devices, handle_egress on the TC egress of ports and on
 * the TC ingress of endpoints, handle_underlay on the TC ingress of the devices that carry the tunnels.
 *
 * On the first two hooks every packet is ours. Whatever isn't redirected is counted and dropped: a tenant's packet never
 * reaches the host's own stack. Nothing is cloned.
 *
 * There are two lanes. The device lane takes the tunnel device, out and in. The fast lane does its work itself, out in
 * handle_egress and in in handle_underlay, and leaves to the device lane what it can't do as well.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"
#include "check.h"
#include "counters.h"
#include "decap.h"
#include "encap.h"
#include "maps.h"
#include "too_big.h"
#include "tunnel_key.h"
#include "words.h"

/* Index in `conf` of the device that handle_ingress or handle_underlay stands on; set anew for every load. */
const volatile __u32 tunnel_index = 0;

/* Came out of a tunnel: hand it to its tenant. */
SEC("classifier")
int handle_ingress(struct __sk_buff *skb)
{
	__u32 tunnel = tunnel_index;
	const volatile struct tm_conf *settings = lookup_u32(&conf, tunnel);
	__u32 ifindex = skb->ifindex, target, slot, mark;
	__u64 key[3]; /* struct tm_tunkey */
	int verdict;

	if (!settings || !(settings->flags & TM_CONF_VALID))
		return drop(skb, tunnel, TM_DROP_NO_CONF);
	if (settings->ifindex != ifindex || device_in(tunnel) != ifindex)
		return drop(skb, tunnel, TM_DROP_WRONG_DEVICE);
	mark = settings->mark;

	if (read_tunnel_key(skb, tunnel, key))
		return drop(skb, tunnel, TM_DROP_NO_TUNNEL_KEY);
	switch (find_slot_ref(key, &slot)) {
	case LOOKUP_FOUND:
		break;
	case LOOKUP_MISS:
		note_unknown(skb, (const struct tm_tunkey *)key);
		return drop(skb, tunnel, TM_DROP_UNKNOWN_KEY);
	default:
		return drop(skb, tunnel, TM_DROP_INCONSISTENT);
	}

	target = device_in(slot & TM_SLOT_MASK);
	if (!target)
		return drop(skb, slot & TM_SLOT_MASK, TM_DROP_TARGET_GONE);
	count_rx(slot & TM_SLOT_MASK, skb_packets(skb), skb->len, 0);
	if (slot & TM_SLOT_ENDPOINT) {
		skb->tc_index = 0;
		skb->mark = 0;
		verdict = bpf_redirect_peer(target, 0);
	} else {
		if (mark)
			skb->tc_index = mark;
		verdict = bpf_redirect(target, BPF_F_INGRESS);
	}
	return verdict == TC_ACT_REDIRECT ? verdict : drop(skb, slot & TM_SLOT_MASK, TM_DROP_REDIRECT);
}

/*
 * Whether an interface is one of our ports, and still the device that was mapped.
 *
 * Most packets come from elsewhere: a miss is the rule here. An entry that is being replaced can be missed, too; so there is
 * one more look for what may have come out of a tunnel (`marked`), unless somebody wrote over its tc_index.
 */
static __always_inline int is_port(__u32 ifindex, int marked)
{
	__u64 entry[7];
	__u32 slot;
	enum lookup_result result = find_if_entry(ifindex, entry, 1);

	if (result == LOOKUP_INCONSISTENT || (result == LOOKUP_MISS && marked))
		result = find_if_entry(ifindex, entry, 1);
	if (result != LOOKUP_FOUND)
		return 0;
	slot = words_first(entry[0]);
	return !(slot & TM_SLOT_ENDPOINT) && device_in(slot & TM_SLOT_MASK) == ifindex;
}

/* Sent by a tenant: put it into its tunnel. */
SEC("classifier")
int handle_egress(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, from = skb->ingress_ifindex;
	const volatile struct tm_conf *settings;
	__u64 entry[7]; /* struct tm_if_entry */
	__u32 slot, tunnel, target;
	int endpoint, verdict;

	switch (find_if_entry(ifindex, entry, TM_TRIES)) {
	case LOOKUP_FOUND:
		break;
	case LOOKUP_MISS:
		return drop(skb, 0, TM_DROP_NO_ENTRY);
	default:
		return drop(skb, 0, TM_DROP_INCONSISTENT);
	}
	slot = words_first(entry[0]) & TM_SLOT_MASK;
	endpoint = !!(words_first(entry[0]) & TM_SLOT_ENDPOINT);
	tunnel = words_first(entry[1]);

	if (device_in(slot) != ifindex)
		return drop(skb, slot, TM_DROP_WRONG_DEVICE);
	/* Only what the workload sends is received here. */
	if (endpoint && from != ifindex)
		return drop(skb, slot, TM_DROP_WRONG_HOOK);
	settings = lookup_u32(&conf, tunnel);
	if (!settings || !(settings->flags & TM_CONF_VALID))
		return drop(skb, slot, TM_DROP_NO_CONF);
	if (!endpoint && from && is_port(from, skb->tc_index || !settings->mark))
		return drop(skb, slot, TM_DROP_SPLIT_HORIZON);
	target = device_in(tunnel);
	if (!target || target != settings->ifindex)
		return drop(skb, slot, TM_DROP_TARGET_GONE);

	if (endpoint)
		skb->tc_index = 0;
	if (entry_flags(entry) & TM_IF_FAST) {
		verdict = encapsulate(skb, entry, target, settings);
		if (verdict != TM_TAKE_DEVICE)
			return verdict;
	}
	verdict = check_size(skb, entry, target);
	if (verdict != TM_TAKE_DEVICE)
		return verdict;
	if (write_tunnel_key(skb, entry))
		return drop(skb, slot, TM_DROP_SET_TUNNEL_KEY);
	count_tx(slot, skb_packets(skb), skb->len);
	verdict = bpf_redirect(target, 0);
	return verdict == TC_ACT_REDIRECT ? verdict : drop(skb, slot, TM_DROP_REDIRECT);
}

/* Came in on a device that carries tunnels: if it is one of our packets and plain, hand it to its tenant. */
SEC("classifier")
int handle_underlay(struct __sk_buff *skb)
{
	return decapsulate(skb, tunnel_index);
}

char _license[] SEC("license") = "GPL";
