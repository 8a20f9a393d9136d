// SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0-only)
/*
 * Both ends of a measurement: frames are made here and counted here.
 *
 * `generate` and `generate_tunnel` are run by BPF_PROG_TEST_RUN with live frames. The kernel takes the pages of frames
 * that were delivered back as the path left them, so each frame's headers are written anew.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

/* Ethernet, IPv4 and UDP, in whole words. */
#define PLAIN_WORDS 11
/* The same behind Ethernet, IPv4, UDP and VXLAN. */
#define TUNNEL_WORDS 23
#define PLAIN_PORT_AT 34
#define VNI_AT 46

const volatile __u32 header[TUNNEL_WORDS] = {};
/* UDP source ports that frames get by turns of chance: a power of two, minus one. */
const volatile __u32 flows = 0;
/* The same for the tunnel's ids, which begin at 1. */
const volatile __u32 ids = 0;

SEC("xdp")
int generate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 *words = data;

	if (data + 4 * PLAIN_WORDS > end)
		return XDP_ABORTED;
#pragma unroll
	for (int i = 0; i < PLAIN_WORDS; i++)
		words[i] = header[i];
	*(__u16 *)(data + PLAIN_PORT_AT) = bpf_htons(1024 + (bpf_get_prandom_u32() & flows));
	return XDP_TX;
}

SEC("xdp")
int generate_tunnel(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__u32 *words = data;

	if (data + 4 * TUNNEL_WORDS > end)
		return XDP_ABORTED;
#pragma unroll
	for (int i = 0; i < TUNNEL_WORDS; i++)
		words[i] = header[i];
	/* Not aligned, and its last byte is the reserved one. */
	*(__u32 *)(data + VNI_AT) = bpf_htonl((1 + (bpf_get_prandom_u32() & ids)) << 8);
	return XDP_TX;
}

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} delivered SEC(".maps");

/* The end of the way: counts what was generated and drops it. */
SEC("classifier")
int sink(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	__u32 zero = 0;
	__u64 *count;

	if (data + 38 > end || *(__u8 *)(data + 23) != 17 || *(__u16 *)(data + 36) != bpf_htons(9))
		return TC_ACT_UNSPEC;
	count = bpf_map_lookup_elem(&delivered, &zero);
	if (count)
		*count += 1;
	return TC_ACT_SHOT;
}

char _license[] SEC("license") = "GPL";
