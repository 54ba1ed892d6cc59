"""Where a submission runs: apart from the grader, its files, the network and other processes, as far as this machine lets us.

In namespaces, made by bubblewrap or by util-linux's unshare, it sees a file system of its own: the system's programs and libraries
and this Python read-only, its folder and /tmp, and of this project just the files that run it. No data set, no store, no
home folder is there. It has no network and sees no process but its own. Where the grader is root, the submission runs as a user of
its own, since root is exempt from limits on processes. What it writes is in memory of a fixed size that goes with the namespaces.
Where systemd-run can make a control group it limits memory, processes and cores of all together. `Sandbox.notices` says what cannot
be had here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import os
import secrets
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from config import InputError
from course import seccomp
from course.workplace import workplace
from utils import SPIN_COUNT

ROOT = Path(__file__).resolve().parent.parent
INSIDE = Path(__file__).resolve().parent / "inside.py"
PROJECT_FILES = [
    INSIDE,
    INSIDE.with_name("harness.py"),
    INSIDE.with_name("seccomp.py"),
    ROOT / "config.py",
    ROOT / "utils.py",
    ROOT / "limits",
]
FILES = "/files"  # where a submission's files are in a namespace, read-only; inside.py copies them to /submission
ROOMS = ("/submission", "/tmp", "/dev/shm")  # in a namespace, where it may write
ROOM, ROOM_FILES = 1_000_000_000, 20_000  # bytes and files in each of them; process.Limits are of all together
SYSTEM = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/localtime",
    "/sys/devices/system/cpu",
    "/nix/store",
    "/gnu/store",
)
# scikit-learn's data sets, the labels of `digits` among them, below a Python or a folder of packages
LABELS = [f"{where}sklearn/datasets/data" for where in ("", *(f"{lib}/python3*/*-packages/" for lib in ("lib*", "local/lib*")))]
KINDS = ("bwrap", "unshare", "none")

# The first process of the pid namespace has neither filter nor limits. bubblewrap's own would have no rights either, so that a
# submission of the same user could write to its memory. This one keeps a right that the submission gives up: the kernel then
# refuses that.
FIRST = ("sh", "-c", '"$@"; exit $?', "sh")

# What bubblewrap does, by mount(8): $1 is an empty folder that becomes the root, then come KIND FROM TO of each mount, then the
# command. The shell stays as the first process of the pid namespace: when it dies, so does everything in it.
BUILD_ROOT = """
root=$1; shift
mount -t tmpfs -o mode=755,size=1m tmpfs "$root"
while [ "$1" != -- ]; do
  to=$root$3
  if [ -d "$2" ] || [ "$1" = hide ] || [ "$1" = room ]; then mkdir -p "$to"; else mkdir -p "${to%/*}"; [ -e "$to" ] || : > "$to"; fi
  case $1 in
    hide) mount -t tmpfs -o mode=755,size=1m tmpfs "$to" ;;
    room) mount -t tmpfs -o "mode=1777,$2" tmpfs "$to" ;;
    *) mount --rbind "$2" "$to" ;;
  esac
  if [ "$1" = read ]; then mount -o remount,bind,ro "$to"; fi
  shift 3
done
shift
mkdir "$root/proc"
mount -t proc proc "$root/proc"
for name in sys sysrq-trigger irq bus; do
  [ -e "$root/proc/$name" ] || continue
  mount --bind "$root/proc/$name" "$root/proc/$name"
  mount -o remount,bind,ro "$root/proc/$name"
done
for link in fd:/proc/self/fd stdin:/proc/self/fd/0 stdout:/proc/self/fd/1 stderr:/proc/self/fd/2; do
  ln -s "${link#*:}" "$root/dev/${link%%:*}"
done
mount -o remount,bind,ro "$root"
cd "$root"
pivot_root . .
umount -l .
cd /submission
"$@"
"""


class Mount(NamedTuple):
    """`kind` is read, write (devices), hide (an empty folder over what is there), or room (an empty one to write to)."""

    kind: str
    source: str
    target: str


@dataclass(frozen=True)
class Sandbox:
    """A way of running a submission that works here."""

    kind: str
    """bwrap, unshare, or none: without namespaces."""
    user: int | None
    """The user it runs as; None for the grader's own."""
    is_asked_for: bool = False
    """Whether this kind was named, not found to be the best."""

    @property
    def has_namespaces(self) -> bool:
        return self.kind != "none"

    def notices(self) -> list[str]:
        """What could not be had, a sentence each."""
        missing = []
        if not control_group(1 << 30, 64):
            missing.append(
                "no control group of its own for a submission (systemd-run makes none here): the grader counts its memory, "
                "processes and cores twice a second and ends it, so that it may have too much for that long"
            )
        if not seccomp.library():
            missing.append(
                "no filter for system calls (libseccomp.so.2 is not installed, or the kernel has none): a submission may leave "
                "something in the kernel, as in a keyring, and find it in its next run"
            )
        if self.has_namespaces:
            if self.user is None and not os.getuid():
                missing.append(
                    "submissions cannot run as a user of their own (is this Python readable for everybody?): the kernel does not "
                    "limit how many processes they start, the grader ends them when it sees more than allowed"
                )
            return missing
        whose = "everybody on this machine" if self.user is not None else "you"
        more = "" if self.user is not None else ", write where you can, and kill the grader"
        network = "" if seccomp.library() else ", use the network"
        why = "as you asked with --sandbox none" if self.is_asked_for else "here (neither bubblewrap nor unshare works)"
        better = "Leave out --sandbox" if self.is_asked_for else "Install bubblewrap"
        return [
            *missing,
            f"no namespaces {why}: a submission can read what {whose} can read (the data set's labels and the store, too)"
            f"{network}{more}. {better}, or grade in a machine of its own",
        ]

    def fresh(self) -> Sandbox:
        """The same with a user that no run had before: the kernel keeps more by user than it tells."""
        return self if self.user is None else dataclasses.replace(self, user=unused_user())

    def folder(self, work: Path) -> Path:
        """Where the submission's process works, on its files from the folder `work`/submission."""
        return Path("/submission") if self.has_namespaces else work / "submission"

    def start(
        self,
        command: Sequence[str],
        work: Path,
        fds: Sequence[int] = (),
        environment: dict[str, str] | None = None,
        readable: Sequence[Path] = (),
        hidden: Sequence[Path] = (),
        group: Sequence[str] = (),
    ) -> subprocess.Popen[bytes]:
        """Start `command` in its folder, in a process group of its own, its output and errors in one pipe.

        Args:
            work: a `workplace`; its folder submission becomes the working and home folder.
            fds: open files that it inherits.
            environment: more variables than the few that every command gets.
            readable: files and folders that it may read besides the system and Python.
            hidden: files and folders that it must not see, should they be among those.
            group: the command that puts the one after it into a `control_group`.
        """
        if self.user is not None and not self.has_namespaces:
            for name in ("submission", "tmp"):
                os.chown(work / name, self.user, self.user)
        home, temporary = ("/submission", "/tmp") if self.has_namespaces else (str(work / "submission"), str(work / "tmp"))
        variables = {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": home,
            "TMPDIR": temporary,
            "LANG": "C.UTF-8",
            "USER": "student",
            "CUDA_VISIBLE_DEVICES": "",
            "NO_ALBUMENTATIONS_UPDATE": "1",
            # As utils.limit_spinning, for the same reason. It is read when torch is loaded, before a submission could set it: the
            # same for all.
            "GOMP_SPINCOUNT": SPIN_COUNT,
            **(environment or {}),
        }
        if self.has_namespaces:
            command = [*self._enter(work, mounts(work, readable, hidden)), *self._drop_rights(), *command]
        as_user = None if self.has_namespaces else self.user
        if group:  # systemd-run needs variables of the grader's to find its service
            command = [*group, "env", "-i", *(f"{name}={value}" for name, value in variables.items()), *command]
        return subprocess.Popen(
            command,
            cwd="/" if self.has_namespaces else work / "submission",
            env=None if group else variables,
            pass_fds=fds,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            user=as_user,
            group=as_user,
            extra_groups=None if as_user is None else [],
        )

    def _enter(self, work: Path, plan: list[Mount]) -> list[str]:
        """The command that makes the namespaces and runs in them the one that follows it."""
        program = shutil.which(self.kind)
        assert program is not None  # `works` has found it
        if self.kind == "unshare":
            devices = [Mount("write", f"/dev/{name}", f"/dev/{name}") for name in ("null", "zero", "full", "random", "urandom")]
            # Should the grader die, so do unshare and, through its --kill-child, all the rest.
            return [
                "setpriv",
                "--pdeathsig=KILL",
                program,
                "--mount",
                "--pid",
                "--net",
                "--ipc",
                "--uts",
                *(["--user", "--map-root-user"] if self.user is None else []),
                "--fork",
                "--kill-child",
                "--propagation",
                "private",
                "sh",
                "-euc",
                BUILD_ROOT,
                "sh",
                str(work / "root"),
                *itertools.chain(*plan, *devices),
                "--",
            ]
        mounted: list[str] = []
        for mount in plan:
            # The folders above it are for everybody to pass, whatever they are outside.
            for folder in [*Path(mount.target).parents][-2::-1]:
                mounted += ["--perms", "0755", "--dir", str(folder)]
            if mount.kind == "room":
                mounted += ["--perms", "1777", "--size", str(ROOM)]
            option = {"read": "--ro-bind", "write": "--bind"}.get(mount.kind, "--tmpfs")
            mounted += [option, mount.target] if option == "--tmpfs" else [option, mount.source, mount.target]
        rights = (
            ["--unshare-user"]
            if self.user is None
            else [text for name in ("SETUID", "SETGID") for text in ("--cap-add", f"CAP_{name}")]
        )
        return [
            program,
            "--unshare-pid",
            "--unshare-net",
            "--unshare-ipc",
            "--unshare-uts",
            *rights,
            "--cap-add",
            "CAP_SETPCAP",
            "--as-pid-1",
            "--die-with-parent",
            "--dev",
            "/dev",
            "--proc",
            "/proc",
            *mounted,
            "--remount-ro",
            "/dev",
            "--remount-ro",
            "/",
            "--chdir",
            "/submission",
            "--",
            *FIRST,
        ]

    def _drop_rights(self) -> list[str]:
        """The command that gives up the rights which making the namespaces took, and those of their first process."""
        user = [] if self.user is None else [f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups"]
        return ["setpriv", *user, "--ambient-caps=-all", "--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]

    def works(self) -> str:
        """Try it with a small command; returns what goes wrong, or nothing."""
        if self.kind != "none" and not shutil.which(self.kind):
            return f"{self.kind} is not installed"
        script = (
            "import importlib.util, sys; open(importlib.util.find_spec('torch').origin).close(); open(sys.argv[1]).close(); "
            "open('probe', 'w').close(); print('it works')"
        )
        with workplace() as work:
            try:
                with self.start([sys.executable, "-B", "-c", script, str(INSIDE)], work) as process:
                    output = process.communicate(timeout=60)[0].decode(errors="replace")
            except (OSError, subprocess.SubprocessError) as error:
                return str(error)
        return "" if output.strip() == "it works" else " ".join(output.split())[-200:] or "it ends without a word"


def unused_user() -> int:
    """A user id drawn from those that no machine's accounts and services have."""
    with open("/proc/self/uid_map") as file:
        mapped = sum(int(line.split()[2]) for line in file)
    return 1_900_000_000 + secrets.randbelow(100_000_000) if mapped >= 2_000_000_000 else 20_000 + secrets.randbelow(40_000)


@functools.lru_cache(maxsize=4)
def control_group(memory: int, processes: int) -> tuple[str, ...]:
    """The command that runs what follows in a control group with these limits, on the grader's cores; () where there is none."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    command = ("systemd-run", *(["--user"] if os.getuid() else []), "--scope", "--quiet", "--collect")
    for limit in (f"MemoryMax={memory}", "MemorySwapMax=0", f"TasksMax={processes}", f"AllowedCPUs={cores}"):
        command += ("-p", limit)
    # Where a part is not delegated to users, systemd-run leaves out the limit without a word.
    look = ["sh", "-c", "cat /sys/fs/cgroup/$(cut -d: -f3 /proc/self/cgroup)/memory.max"]
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        found = subprocess.run([*command, *look], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10, check=True)
        if abs(int(found.stdout or 0) - memory) < 1 << 16:  # whole pages
            return command
    return ()


def mounts(work: Path, readable: Sequence[Path], hidden: Sequence[Path]) -> list[Mount]:
    """The submission's file system, outer folders first."""
    python = [
        Path(sys.prefix),
        Path(sys.base_prefix),
        Path(os.path.realpath(sys.executable)).parent.parent,
        *map(Path, [*site.getsitepackages(), site.getusersitepackages()]),
    ]
    wanted = [path for path in (*map(Path, SYSTEM), *python, *(path.resolve() for path in python)) if os.path.exists(path)]
    secret = [path if path.is_dir() else path.parent for path in map(Path.resolve, hidden)]
    secret += [path for folder in wanted for pattern in LABELS for path in folder.glob(pattern)]
    wanted = [
        path
        for path in dict.fromkeys(wanted)
        if path != Path("/") and (not _inside(path, {*wanted} - {path}) or _inside(path, secret))
    ]
    plan = [Mount("read", str(path), str(path)) for path in (*wanted, *PROJECT_FILES, *readable)]
    plan += [Mount("hide", "none", str(path)) for path in dict.fromkeys(secret) if _inside(path, wanted)]
    plan += [Mount("read", str(work / "submission"), FILES)]
    plan += [Mount("room", f"size={ROOM},nr_inodes={ROOM_FILES}", target) for target in ROOMS]
    return sorted(plan, key=lambda mount: mount.target.count("/"))


def _inside(path: Path, others: Sequence[Path] | set[Path]) -> bool:
    return any(path.is_relative_to(other) for other in others)


@functools.lru_cache(maxsize=4)
def find(kind: str = "auto") -> Sandbox:
    """The best sandbox that works here, or the named one. Raises InputError where that one does not."""
    users: list[int | None] = [unused_user(), None] if os.getuid() == 0 else [None]
    problems = []
    for candidate in _candidates(kind, users):
        problem = candidate.works()
        if not problem:
            return candidate
        problems.append(f"{candidate.kind}: {problem}")
    raise InputError(f"no sandbox works here ({'; '.join(problems)})")


def _candidates(kind: str, users: list[int | None]) -> Iterator[Sandbox]:
    for name in KINDS if kind == "auto" else [kind]:
        for user in users:
            yield Sandbox(name, user, kind != "auto")
