"""What processes use, as the kernel tells it in /proc: for limits that are watched where the kernel does not set them."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

BUFFER = 212_992  # bytes that the kernel may hold for a pipe or a socket


def send_signal(pid: int, number: int) -> None:
    """Send it, unless the process is gone or not ours."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def stat_fields(pid: int | str) -> list[str]:
    """The fields of /proc/PID/stat after the name (which may hold anything): state, parent, ...; none where it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []


def is_alive(pid: int) -> bool:
    """Whether it has not ended."""
    return bool(fields := stat_fields(pid)) and fields[0] not in "ZX"


def descendants(ancestor: int, ended: bool = False) -> set[int]:
    """The live processes (`ended` ones, too) that `ancestor` started, those that they started, and so on; and itself unless that is
    this one.
    """
    parents = {
        int(name): int(fields[1])
        for name in os.listdir("/proc")
        if name.isdigit() and (fields := stat_fields(name)) and (ended or fields[0] not in "ZX")
    }
    found, new = set(), {ancestor} & set(parents)
    while new:
        found |= new
        new = {pid for pid, parent in parents.items() if parent in new} - found
    return found - {os.getpid()}


def keeps_to_our_cores(pid: int) -> bool:
    """Whether no thread of the process may run on a core that is not the grader's."""
    with contextlib.suppress(OSError):
        return all(os.sched_getaffinity(int(thread)) <= os.sched_getaffinity(0) for thread in os.listdir(f"/proc/{pid}/task"))
    return True


def resident(pid: int) -> int:
    """Resident memory in bytes."""
    with contextlib.suppress(OSError, IndexError), open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def proportional(pid: int) -> int:
    """Resident memory in bytes, pages that several processes share divided among them; slower to find out."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup") as file:
        return next((int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:")), 0)
    return resident(pid)


def threads_of_user() -> int:
    """Threads that the grader's user has now."""
    count = 0
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, IndexError):
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == os.getuid():
                count += int(stat_fields(name)[17])
    return count


def processor_seconds(processes: set[int]) -> float:
    """What they have used so far, with the children of theirs that they have waited for."""
    ticks = [int(field) for pid in processes for field in stat_fields(pid)[11:15]]
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


def files_below(top: Path, most: int) -> tuple[int, int]:
    """Bytes and number of the files and folders below `top`, counted until there are more than `most`.

    Raises OSError or, before Python 3.12, RecursionError where they are nested too deeply or closed to us.
    """

    def hidden(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):  # else removed meanwhile
            raise error

    size = count = 0
    for folder, folders, files in os.walk(top, onerror=hidden):
        count += len(folders) + len(files)
        if count > most:
            break
        for name in files:
            with contextlib.suppress(FileNotFoundError):
                size += os.lstat(os.path.join(folder, name)).st_blocks * 512
    return size, count


def sockets(processes: set[int]) -> int:
    """Local sockets in those of the processes' network namespaces that are not ours. Of some no process has a descriptor: they wait
    to be accepted or received.
    """
    spaces = {os.stat("/proc/self/ns/net").st_ino: 0}
    for pid in processes:
        with contextlib.suppress(OSError):  # it has ended
            space = os.stat(f"/proc/{pid}/ns/net").st_ino
            if space not in spaces:
                with open(f"/proc/{pid}/net/unix", errors="replace") as file:
                    spaces[space] = sum(1 for _ in file)
    return sum(spaces.values())


def kept_by_descriptors(processes: set[int], given: set[tuple[int, int]], devices: set[int]) -> tuple[int, bool]:
    """Bytes in files without a name that are still open, in memory or on disk, and in pipes and sockets; and whether that is all:
    the descriptors of a program that we may not read are closed to us.

    Left out are the files `given` to them, as (device, inode), and all on these `devices`.
    """
    sizes: dict[tuple[int, int], int] = {}
    known, is_all = set(), True
    for pid in processes:
        try:
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(FileNotFoundError):
                    file = os.stat(f"/proc/{pid}/fd/{name}")
                    if stat.S_ISREG(file.st_mode) and file.st_nlink == 0 and file.st_dev not in devices:
                        sizes[file.st_dev, file.st_ino] = file.st_blocks * 512
                    elif stat.S_ISFIFO(file.st_mode):
                        sizes[file.st_dev, file.st_ino] = BUFFER
                    elif stat.S_ISSOCK(file.st_mode):
                        known.add(file.st_ino)
        except (FileNotFoundError, ProcessLookupError):  # it has ended
            continue
        except OSError:
            is_all = False
    kept = sum(size for inode, size in sizes.items() if inode not in given)
    return kept + BUFFER * max(len(known), sockets(processes)), is_all
