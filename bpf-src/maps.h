/* SPDX-License-Identifier: (Apache-2.0 OR GPL-2.0-only) */
/*
 * The maps, under the names that operators look for with bpftool. Included by the programs only.
 *
 * max_entries of the hashes, devs and counters is what user space sets when it creates them.
 */
#ifndef TM_MAPS_H
#define TM_MAPS_H

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

#define TM_DEFAULT_CAPACITY 256

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct tm_conf);
	__uint(max_entries, TM_TUNNELS);
} conf SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct tm_tunkey);
	__type(value, struct tm_slot);
	__uint(max_entries, TM_DEFAULT_CAPACITY);
} tunkey2if SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, struct tm_if_value);
	__uint(max_entries, TM_DEFAULT_CAPACITY);
} if2tunkey SEC(".maps");

/* By slot; a tunnel's slot is its index. TC may look it up, only XDP may redirect through it. */
struct {
	__uint(type, BPF_MAP_TYPE_DEVMAP);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
	__uint(max_entries, TM_DEFAULT_CAPACITY);
} devs SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct tm_counters);
	__uint(max_entries, TM_DEFAULT_CAPACITY);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct tm_tunkey);
	__type(value, struct tm_unknown);
	__uint(max_entries, TM_UNKNOWN_KEYS);
} unknown SEC(".maps");

/* Not read by the programs; pinned beside the others for user space. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct tm_meta);
	__uint(max_entries, 1);
} meta SEC(".maps");

#endif /* TM_MAPS_H */
