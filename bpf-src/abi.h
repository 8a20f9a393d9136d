/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0-only) */
/*
 * What the programs and user space agree on: layouts, limits, flags, drop reasons.
 *
 * Include it anywhere. src/bpf/abi.rs mirrors it; a test compares both with the BTF of the compiled object.
 * Integers are in host byte order, addresses in network byte order. An IPv4 address is stored IPv4-mapped
 * (::ffff:a.b.c.d), so that a key has one form for both families.
 */
#ifndef TM_ABI_H
#define TM_ABI_H

#include <linux/types.h>

#define TM_TUNNELS 64        /* entries of conf; index 0 is never a tunnel */
#define TM_SLOT_NONE 0       /* counters of drops that belong to no tunnel or mapping */
#define TM_UNKNOWN_KEYS 1024 /* keys that are remembered although nobody mapped them */

/* The word "slot | flags" of both hashes: a slot has 28 bits. */
#define TM_SLOT_MASK 0x0fffffffU
#define TM_SLOT_ENDPOINT 0x80000000U /* deliver to the peer of the device */

#define TM_CONF_VALID 1U

/* Flags of tm_if_value. */
#define TM_IF_INHERIT_TTL 1U
#define TM_IF_INHERIT_TOS 2U
#define TM_IF_DF 4U
#define TM_IF_CHECKSUM 8U

/* Bytes, so that bpftool shows an address as people write it; aligned, so that it is read by words. */
struct tm_addr {
	__u8 byte[16];
} __attribute__((aligned(4)));

typedef __u32 __attribute__((may_alias)) tm_word;

#define TM_WORD(addr, n) (((tm_word *)(addr)->byte)[n])

/* Key of tunkey2if and of unknown. */
struct tm_tunkey {
	__u32 tunnel;
	__u32 id;
	struct tm_addr remote;
};

/* Value of tunkey2if: written and read as one 64-bit word. */
struct tm_slot {
	__u32 slot; /* slot | flags */
	__u32 check;
} __attribute__((aligned(8)));

/* Value of if2tunkey. */
struct tm_if_value {
	__u32 slot; /* slot | flags */
	__u32 check;
	struct tm_tunkey key;
	struct tm_addr local;
	__u8 ttl;
	__u8 tos;
	__u16 flags;
	__u32 reserved;
} __attribute__((aligned(8)));

/* Entry of conf. */
struct tm_conf {
	__u32 ifindex; /* the tunnel device; 0: none at present */
	__u32 flags;
	__u32 mark; /* value for tc_index in port mode; 0: not written */
	__u32 reserved;
	char name[16]; /* of the tunnel, NUL-terminated */
};

enum tm_drop {
	TM_DROP_UNKNOWN_KEY,    /* nobody mapped the key; see the map unknown */
	TM_DROP_NO_TUNNEL_KEY,  /* the packet carries no readable tunnel key */
	TM_DROP_NO_CONF,        /* conf has no such tunnel */
	TM_DROP_WRONG_DEVICE,   /* this interface isn't the one that was mapped */
	TM_DROP_NO_ENTRY,       /* a program of ours runs here, but nothing maps the interface */
	TM_DROP_TARGET_GONE,    /* the device to redirect to is gone */
	TM_DROP_SPLIT_HORIZON,  /* came in through a port of ours, would leave through another */
	TM_DROP_SET_TUNNEL_KEY, /* bpf_skb_set_tunnel_key failed */
	TM_DROP_REDIRECT,       /* bpf_redirect or bpf_redirect_peer failed */
	TM_DROP_INCONSISTENT,   /* the entry was being replaced at every look */
	TM_DROP_REASONS,
};

/* Entry of counters, per CPU, by slot. Packets count the segments of GSO packets. */
struct tm_counters {
	__u64 rx_packets;
	__u64 rx_bytes;
	__u64 tx_packets;
	__u64 tx_bytes;
	__u64 drops[TM_DROP_REASONS];
};

/* Value of unknown. */
struct tm_unknown {
	__u64 packets;
	__u64 last_seen; /* bpf_ktime_get_boot_ns */
};

/* Entry of meta: what belongs to the pins as a whole. */
struct tm_meta {
	__u64 netns_cookie;   /* the network namespace the pins belong to */
	__u32 layout;         /* version of this ABI */
	enum tm_drop reasons; /* how many drop reasons the counters have */
};

#define TM_LAYOUT 1

#endif /* TM_ABI_H */
