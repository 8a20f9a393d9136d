/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * The maps, by the names that operators see.
 *
 * For programs. The loader sets max_entries of tunkey2if, if2tunkey, devs and counters and pins all of them.
 */
#ifndef TM_MAPS_H
#define TM_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "abi.h"

/* Tunnels, by tunnel index. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct tm_conf);
	__uint(max_entries, TM_TUNNEL_INDEXES);
} conf SEC(".maps");

/* What came out of a tunnel: whose is it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct tm_tunkey);
	__type(value, struct tm_slot_ref);
	__uint(max_entries, 1024);
} tunkey2if SEC(".maps");

/* What an interface sends: where does it go. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, struct tm_if_entry);
	__uint(max_entries, 1024);
} if2tunkey SEC(".maps");

/* Devices by slot. The kernel itself empties a slot when its device is deleted or leaves the namespace. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__type(key, __u32);
	__type(value, struct tm_dev);
	__uint(max_entries, 1024);
} devs SEC(".maps");

/* Packets, bytes and drops, by slot. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct tm_counters);
	__uint(max_entries, 1024);
} counters SEC(".maps");

/* Keys that nobody mapped. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct tm_tunkey);
	__type(value, struct tm_unknown);
	__uint(max_entries, TM_UNKNOWN_ENTRIES);
} unknown SEC(".maps");

/* Which object the pinned programs came from; for user space only. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct tm_meta);
	__uint(max_entries, TM_META_NAMESPACE + 1);
} meta SEC(".maps");

#endif
