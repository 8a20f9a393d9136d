// SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0-only)
/*
 * Programs that tests put beside ours: one looks, one is hostile, one counts what reaches the stack.
 *
 * Loaded with `bpftool prog loadall OBJECT DIR pinmaps DIR` and attached with `tc filter add dev DEV ingress bpf da
 * pinned DIR/PROGRAM`.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

/* seen[n]: packets whose tc_index was n; 15 stands for 15 and more. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 16);
} seen SEC(".maps");

/* Counts packets by their tc_index and lets them pass. */
SEC("classifier")
int see_tc_index(struct __sk_buff *skb)
{
	__u32 index = skb->tc_index;
	__u64 *count;

	if (index > 15)
		index = 15;
	count = bpf_map_lookup_elem(&seen, &index);
	if (count)
		__sync_fetch_and_add(count, 1);
	return TC_ACT_UNSPEC;
}

/* Overwrites tc_index, as a program that means something else by it does. */
SEC("classifier")
int hostile(struct __sk_buff *skb)
{
	skb->tc_index = 0;
	return TC_ACT_OK;
}

/* Leaves a value in tc_index that is nobody's, and lets the packet pass. */
SEC("classifier")
int leave_nine(struct __sk_buff *skb)
{
	skb->tc_index = 9;
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "GPL";
