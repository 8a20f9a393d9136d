"""What the BCC example does: one bpf(2) call for each entry, from Python. Prints the seconds that the calls took.

usage: onebyone.py MAP KEY_SIZE VALUE_SIZE FILE [MAP KEY_SIZE VALUE_SIZE FILE]...
FILE holds key and value of each entry, one behind the other.
"""
import ctypes
import sys
import time

BPF_MAP_UPDATE_ELEM, BPF_OBJ_GET = 2, 7
SYS_BPF = {"x86_64": 321, "aarch64": 280}[__import__("platform").machine()]
libc = ctypes.CDLL(None, use_errno=True)


class Attr(ctypes.Structure):
    _fields_ = [("map_fd", ctypes.c_uint32), ("pad", ctypes.c_uint32), ("key", ctypes.c_uint64),
                ("value", ctypes.c_uint64), ("flags", ctypes.c_uint64)]


class Path(ctypes.Structure):
    _fields_ = [("pathname", ctypes.c_uint64), ("fd", ctypes.c_uint32), ("flags", ctypes.c_uint32)]


def open_map(path):
    text = ctypes.create_string_buffer(path.encode())
    attr = Path(ctypes.addressof(text), 0, 0)
    fd = libc.syscall(SYS_BPF, BPF_OBJ_GET, ctypes.byref(attr), ctypes.sizeof(attr))
    if fd < 0:
        sys.exit(f"{path}: errno {ctypes.get_errno()}")
    return fd


total = 0.0
for n in range(1, len(sys.argv), 4):
    path, key_size, value_size, file = sys.argv[n], int(sys.argv[n + 1]), int(sys.argv[n + 2]), sys.argv[n + 3]
    fd = open_map(path)
    with open(file, "rb") as f:
        data = ctypes.create_string_buffer(f.read())
    base, step = ctypes.addressof(data), key_size + value_size
    start = time.perf_counter()
    for at in range(base, base + len(data) - 1, step):
        attr = Attr(fd, 0, at, at + key_size, 0)
        if libc.syscall(SYS_BPF, BPF_MAP_UPDATE_ELEM, ctypes.byref(attr), ctypes.sizeof(attr)) != 0:
            sys.exit(f"{path}: errno {ctypes.get_errno()}")
    total += time.perf_counter() - start
print(total)
