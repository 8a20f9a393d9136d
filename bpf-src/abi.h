/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * Layouts and numbers shared with user space; src/bpf/abi.rs mirrors every line of this file.
 *
 * May be included by anything. Integers are in host order, addresses in network order, an IPv4 address is stored
 * IPv4-mapped (::ffff:a.b.c.d). All structures are whole 8-byte words. A change that an older daemon would misread
 * raises TM_ABI_VERSION.
 */
#ifndef TM_ABI_H
#define TM_ABI_H

#include <linux/types.h>

#define TM_ABI_VERSION 3

/* Entries of `conf`: tunnels, and the underlay devices on which they are decapsulated. Index 0 is neither. Slots below
 * are those, from there mappings. */
#define TM_TUNNEL_INDEXES 64

/* Tunnels that one underlay device decapsulates. */
#define TM_UNDERLAY_PORTS 8

/* Entries of `unknown`. */
#define TM_UNKNOWN_ENTRIES 1024

/* A slot and its flags share one 32-bit word. */
#define TM_SLOT_MASK 0x0fffffffU
#define TM_SLOT_ENDPOINT 0x80000000U

/* Places in tm_conf.detail: of the IPv6 address, and of our underlay devices by address family. */
#define TM_LOCAL6 2
#define TM_ETHERNET4 1
#define TM_ETHERNET6 6

/* tm_conf.flags */
#define TM_CONF_VALID 0x1U
#define TM_CONF_UNDERLAY 0x2U    /* an underlay device, not a tunnel */
#define TM_CONF_FAST 0x4U        /* the underlay's program may decapsulate it */
#define TM_CONF_GENEVE 0x8U      /* Geneve, else VXLAN */
#define TM_CONF_ZERO_CSUM6 0x10U /* IPv6 packets without a UDP checksum are accepted */
#define TM_CONF_GRE 0x20U        /* GRE, whose outer headers are smaller */

/* tm_if_entry.flags */
#define TM_IF_INHERIT_TTL 0x1U
#define TM_IF_INHERIT_TOS 0x2U
#define TM_IF_DF 0x4U
#define TM_IF_CHECKSUM 0x8U
#define TM_IF_FAST 0x10U   /* the fast lane, where the packet allows it */
#define TM_IF_GENEVE 0x20U /* Geneve, else VXLAN */

/* Why a packet was dropped. Names in src/bpf/abi.rs, in this order; append only. */
enum tm_drop {
	TM_DROP_UNKNOWN_KEY,    /* nobody mapped the key that a packet came with */
	TM_DROP_NO_TUNNEL_KEY,  /* bpf_skb_get_tunnel_key failed: the device isn't in external mode */
	TM_DROP_NO_CONF,        /* the tunnel has no valid entry in `conf` */
	TM_DROP_WRONG_DEVICE,   /* this device isn't the one that was mapped */
	TM_DROP_NO_ENTRY,       /* the interface has no entry in `if2tunkey` */
	TM_DROP_TARGET_GONE,    /* the device to send to is gone */
	TM_DROP_SPLIT_HORIZON,  /* came in from a tunnel, was about to leave through one */
	TM_DROP_WRONG_HOOK,     /* an endpoint's program saw a packet that the workload didn't send */
	TM_DROP_SET_TUNNEL_KEY, /* bpf_skb_set_tunnel_key failed */
	TM_DROP_REDIRECT,       /* the redirect helper refused */
	TM_DROP_INCONSISTENT,   /* an entry failed its check at every try */
	TM_DROP_TOO_BIG,        /* doesn't fit into the tunnel; its sender was told, unless it sends too many */
	TM_DROP_ENCAPSULATE,    /* the fast lane could not write the outer header */
	TM_DROP_DECAPSULATE,    /* the fast lane could not remove the outer header */
	TM_DROP_SPARE_1,        /* not used yet */
	TM_DROP_SPARE_2,        /* not used yet */
	TM_DROP_REASONS,
};

/* Key of `tunkey2if` and of `unknown`. */
struct tm_tunkey {
	__u32 tunnel;
	__u32 id;
	__u8 remote[16];
};

/* Value of `tunkey2if`, read in one 64-bit load. */
struct tm_slot_ref {
	__u32 slot; /* TM_SLOT_MASK | TM_SLOT_ENDPOINT */
	__u32 check;
};

/* Value of `if2tunkey`; its key is an ifindex. */
struct tm_if_entry {
	__u32 slot; /* TM_SLOT_MASK | TM_SLOT_ENDPOINT */
	__u32 check;
	__u32 tunnel;
	__u32 id;
	__u8 remote[16];
	__u8 local[16];
	__u8 ttl;
	__u8 tos;
	__u16 flags;
	__be16 port;  /* UDP port of the far side; for the fast lane */
	__u16 header; /* sum of the outer IPv4 header's 16-bit words that no packet changes; for the fast lane */
};

/* Value of `conf`, by index. */
struct tm_conf {
	__u32 ifindex;
	__u32 flags;
	__u32 mark; /* for tc_index of a port's packets; 0: not written */
	/* Of a tunnel: the largest packet that our underlay device has room for, over IPv4 in the lower half and over IPv6 in
	 * the upper; 0: not known. */
	__u32 room;
	char name[16];
	/*
	 * Of an underlay device: tunnel index << 16 | UDP port in network order; the first 0 ends it. Of a tunnel that is
	 * decapsulated on the underlay, our addresses, to which its packets come: the first word is the IPv4 address, the
	 * four from TM_LOCAL6 are the IPv6 address, zeros where there is none. Of every tunnel the devices with our
	 * addresses, where those are Ethernet devices, at TM_ETHERNET4 and TM_ETHERNET6; else 0.
	 */
	__u32 detail[TM_UNDERLAY_PORTS];
};

/* Value of `devs`, by slot: what the kernel calls struct bpf_devmap_val. Program is always 0. */
struct tm_dev {
	__u32 ifindex;
	__u32 program;
};

/* Value of `counters`, by slot. Slot 0: drops that belong to no tunnel or mapping. Sent and received as the tenant
 * sees it: rx was decapsulated for it, tx was sent by it. A GSO packet counts as its segments. */
struct tm_counters {
	__u64 rx_packets;
	__u64 rx_bytes;
	__u64 tx_packets;
	__u64 tx_bytes;
	__u64 rx_fast;      /* of rx_packets, those that the underlay's program decapsulated */
	__u64 tx_fast;      /* of tx_packets, those that were encapsulated without the tunnel device */
	__u64 by_neighbour; /* when, and to which next hop, the fast lane last sent by the neighbour and not its address */
	__u64 drops[TM_DROP_REASONS];
	__u64 next_answer_ns; /* CLOCK_MONOTONIC: paces the answers to what is too big */
};

/* Value of `unknown`. */
struct tm_unknown {
	__u64 packets;
	__u64 last_seen_ns; /* CLOCK_MONOTONIC */
};

/* Index of `meta` whose `build` is the cookie of the network namespace that the pins belong to. */
#define TM_META_NAMESPACE TM_TUNNEL_INDEXES

/* Value of `meta`: which object the pinned program was loaded from; index 0 is handle_egress, index t the
 * handle_ingress of tunnel t or the handle_underlay of underlay device t. Programs don't read it. */
struct tm_meta {
	__u64 build;
	__u32 program;
	__u32 abi;
};

/*
 * The check that ties a value to its key, because the kernel recycles hash elements under readers: the upper half of
 * a sum of 64-bit words times odd constants.
 */
#define TM_CHECK_0 0xb510d446f1130d99ULL
#define TM_CHECK_1 0xbc358b2b0d789519ULL
#define TM_CHECK_2 0xc1da378597aed493ULL
#define TM_CHECK_3 0xe9939c630de5fe7fULL
#define TM_CHECK_4 0x9bcdadea32734b6fULL
#define TM_CHECK_5 0x99dbffe970c4db37ULL
#define TM_CHECK_6 0xf313409c626eb5f9ULL
#define TM_CHECK_7 0xb0b158f5337b0235ULL
#define TM_CHECK_8 0xdfc87f3ab59b5fd5ULL

#endif
