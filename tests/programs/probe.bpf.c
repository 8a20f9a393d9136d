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

/* Which tenant an interface belongs to, by ifindex. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 256);
} tenant_of SEC(".maps");

/* Packets that carry their tenant's number, those that carry another one's, and those that carry none. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 3);
} verdicts SEC(".maps");

#define TENANT_MAGIC 0x544d5431U

/* Compares the tenant's number in the payload with the interface's, counts and drops: this is the end of the way. */
SEC("classifier")
int check_tenant(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, verdict = 2, payload[2] = {};
	__u32 *tenant = bpf_map_lookup_elem(&tenant_of, &ifindex);
	__u64 *count;

	if (!bpf_skb_load_bytes(skb, 14, payload, sizeof(payload)) && payload[0] == TENANT_MAGIC)
		verdict = tenant && *tenant == payload[1] ? 0 : 1;
	count = bpf_map_lookup_elem(&verdicts, &verdict);
	if (count)
		__sync_fetch_and_add(count, 1);
	return TC_ACT_SHOT;
}

/* Leaves a value in tc_index that is nobody's, and lets the packet pass. */
SEC("classifier")
int leave_nine(struct __sk_buff *skb)
{
	skb->tc_index = 9;
	return TC_ACT_UNSPEC;
}

/* Lets everything pass as TC_ACT_OK, at which the kernel itself writes tc_index. */
SEC("classifier")
int end_with_ok(struct __sk_buff *skb __attribute__((unused)))
{
	return TC_ACT_OK;
}

char _license[] SEC("license") = "GPL";
