"""Takes from a process, and from all that it will start, the system calls that no training needs (libseccomp, through ctypes).

Each of them would keep something in the kernel beyond the process, where the next run could find it, or go round a limit.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os

DENIED = {
    errno.EPERM: (
        # What outlives a process: keyrings, the kernel's log, and which pages of the system's files lie in memory.
        "add_key request_key keyctl syslog mincore cachestat fadvise64 readahead preadv2 pwritev2 "
        # New namespaces and mounts, in which limits would begin anew.
        "unshare setns chroot pivot_root mount umount2 open_tree move_mount mount_setattr fsopen fsconfig fsmount fspick quotactl "
        # Memory that belongs to no process.
        "shmget shmat msgget semget mq_open "
        # Other processes' memory and files, and the widest doors into the kernel.
        "ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp bpf perf_event_open userfaultfd "
        "io_uring_setup io_uring_enter io_uring_register"
    ),
    errno.ENOSYS: "clone3 memfd_create memfd_secret",  # then the C library and others do it in their older way
    # These go for done: the cores stay those of the job, and the times of /dev/null, which all runs share, tell nothing.
    0: "sched_setaffinity utime utimes futimesat utimensat",
}
CLONE_NEW = (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)  # a kind of namespace each
PR_SET_DUMPABLE = 4  # would hide its files from a grader that is not root
AF_UNIX = 1  # the others' buffers are large and uncounted, and some reach a virtual machine's host from any namespace
SOCK_DGRAM, SOCK_RAW = 2, 3  # one holds what many sent that are closed since, so that counting sockets would not do
SO_SNDBUF = 7
ALLOW, ERRNO = 0x7FFF0000, 0x00050000
NOT_EQUAL, EQUAL, MASKED = 1, 4, 7
SPEC_ALLOW, OPTIMIZE = 7, 8  # no slower code for the filter's sake; a tree instead of a list


class Comparison(ctypes.Structure):
    _fields_ = [("argument", ctypes.c_uint), ("operator", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


@functools.lru_cache(maxsize=1)
def library() -> ctypes.CDLL | None:
    """libseccomp; None where it is not installed, or the kernel has no filters."""
    if not os.path.exists("/proc/sys/kernel/seccomp"):
        return None
    try:
        found = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return None
    found.seccomp_init.restype = ctypes.c_void_p
    return found


def deny() -> None:
    """Set the filter for this thread and all that it starts from now on; it cannot be lifted. Nothing where there is no `library`.

    Raises OSError where the kernel refuses it.
    """
    if not (seccomp := library()):
        return
    context = ctypes.c_void_p(seccomp.seccomp_init(ALLOW))
    seccomp.seccomp_attr_set(context, SPEC_ALLOW, 1)
    seccomp.seccomp_attr_set(context, OPTIMIZE, 2)
    rules: list[tuple[int, str, tuple[int, ...]]] = [
        (number, name, ()) for number, names in DENIED.items() for name in names.split()
    ]
    rules += [(errno.EPERM, "clone", (0, MASKED, flag, flag)) for flag in CLONE_NEW]
    rules.append((errno.EPERM, "prctl", (0, EQUAL, PR_SET_DUMPABLE)))
    rules.append((0, "setsockopt", (2, EQUAL, SO_SNDBUF)))  # goes for done: usage.BUFFER holds for each
    for name in ("socket", "socketpair"):
        rules.append((errno.EAFNOSUPPORT, name, (0, NOT_EQUAL, AF_UNIX)))
        rules += [(errno.ESOCKTNOSUPPORT, name, (1, MASKED, 0xF, kind)) for kind in (SOCK_DGRAM, SOCK_RAW)]
    for number, name, comparison in rules:
        call = seccomp.seccomp_syscall_resolve_name(name.encode())
        if call != -1:  # else unknown to this library
            arguments: list[Comparison] = [Comparison(*comparison)] if comparison else []
            array = (Comparison * 1)(*arguments)
            if problem := seccomp.seccomp_rule_add_array(context, ERRNO | number, call, len(arguments), array):
                raise OSError(-problem, f"no filter for {name}")
    if problem := seccomp.seccomp_load(context):
        raise OSError(-problem, "the filter for system calls is refused")
    seccomp.seccomp_release(context)
