/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/* Somebody else's TC program: counts every packet it sees by tc_index (0 to 15) and lets it pass. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 16);
} seen SEC(".maps");

SEC("classifier")
int foreign(struct __sk_buff *skb)
{
	__u32 index = skb->tc_index & 15;
	__u64 *count = bpf_map_lookup_elem(&seen, &index);

	if (count)
		__sync_fetch_and_add(count, 1);
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "GPL";
