/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Somebody else's TC program: counts every packet it sees by tc_index (0 to 15), keeps the start of the last IPv4 UDP
 * packet to port 4789, and lets all pass.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_helpers.h>

struct packet {
	__u8 bytes[64];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 16);
} seen SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct packet);
	__uint(max_entries, 1);
} last SEC(".maps");

SEC("classifier")
int foreign(struct __sk_buff *skb)
{
	__u32 index = skb->tc_index & 15, zero = 0;
	__u64 *count = bpf_map_lookup_elem(&seen, &index);
	struct packet packet;

	if (count)
		__sync_fetch_and_add(count, 1);
	/* Behind 14 bytes of Ethernet and 20 of IPv4. */
	if (!bpf_skb_load_bytes(skb, 0, &packet, sizeof(packet)) && packet.bytes[12] == 8 && packet.bytes[13] == 0 &&
	    packet.bytes[23] == 17 && (packet.bytes[36] << 8 | packet.bytes[37]) == 4789)
		bpf_map_update_elem(&last, &zero, &packet, BPF_ANY);
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "GPL";
