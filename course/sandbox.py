"""Where a submission runs: apart from the grader, its files, the network and other processes, as far as this machine lets us.

In namespaces, made by bubblewrap or by util-linux's unshare, it sees a file system of its own: the system's programs and libraries
and this Python read-only, its folder and /tmp, and of this project just the files that run it. No data set, no store, no
home folder is there. It has no network and sees no process but its own. Where the grader is root, the submission runs as a user of
its own, since root is exempt from limits on processes. Where there are no namespaces `Sandbox.notices` says what is missing.
"""

from __future__ import annotations

import functools
import itertools
import os
import shutil
import site
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from config import InputError

ROOT = Path(__file__).resolve().parent.parent
INSIDE = Path(__file__).resolve().parent / "inside.py"
PROJECT_FILES = [INSIDE, INSIDE.with_name("harness.py"), ROOT / "config.py", ROOT / "limits"]
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
KINDS = ("bwrap", "unshare", "none")

# What bubblewrap does, by mount(8): $1 is an empty folder that becomes the root, then come KIND FROM TO of each mount, then the
# command. The shell stays as the first process of the pid namespace: when it dies, so does everything in it.
BUILD_ROOT = """
root=$1; shift
mount -t tmpfs -o mode=755,size=1m tmpfs "$root"
while [ "$1" != -- ]; do
  to=$root$3
  if [ -d "$2" ] || [ "$1" = hide ]; then mkdir -p "$to"; else mkdir -p "${to%/*}"; [ -e "$to" ] || : > "$to"; fi
  case $1 in
    hide) mount -t tmpfs -o mode=755,size=1m tmpfs "$to" ;;
    *) mount --rbind "$2" "$to" ;;
  esac
  if [ "$1" = read ]; then mount -o remount,bind,ro "$to"; fi
  shift 3
done
shift
mkdir "$root/proc"
mount -t proc proc "$root/proc"
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
    """`kind` is read, write, or hide (an empty folder over what is there)."""

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

    @property
    def has_namespaces(self) -> bool:
        return self.kind != "none"

    def notices(self) -> list[str]:
        """What could not be had, a sentence each."""
        if self.has_namespaces:
            return (
                []
                if self.user is not None or os.getuid()
                else [
                    "submissions cannot run as a user of their own (is this Python readable for everybody?): the kernel does not "
                    "limit how many processes they start, the grader ends them when it sees more than allowed"
                ]
            )
        whose = "everybody on this machine" if self.user is not None else "you"
        more = "" if self.user is not None else ", write where you can, and kill the grader"
        return [
            f"no namespaces here (neither bubblewrap nor unshare works): a submission can read what {whose} can read (the data "
            f"set's labels and the store, too), use the network{more}. Install bubblewrap, or grade in a machine of its own"
        ]

    def folder(self, work: Path) -> Path:
        """Where the submission's process finds the folder `work`/submission."""
        return Path("/submission") if self.has_namespaces else work / "submission"

    def start(
        self,
        command: Sequence[str],
        work: Path,
        fds: Sequence[int] = (),
        environment: dict[str, str] | None = None,
        readable: Sequence[Path] = (),
        hidden: Sequence[Path] = (),
    ) -> subprocess.Popen:
        """Start `command` in its folder, in a process group of its own, its output and errors in one pipe.

        Args:
            work: a `workplace`; its folder submission becomes the working and home folder.
            fds: open files that it inherits.
            environment: more variables than the few that every command gets.
            readable: files and folders that it may read besides the system and Python.
            hidden: files and folders that it must not see, should they be among those.
        """
        if self.user is not None:
            for folder in (work, *(work / name for name in ("submission", "tmp", "shm"))):
                os.chown(folder, self.user, self.user)
        home, temporary = ("/submission", "/tmp") if self.has_namespaces else (str(work / "submission"), str(work / "tmp"))
        variables = {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": home,
            "TMPDIR": temporary,
            "LANG": "C.UTF-8",
            "USER": "student",
            "CUDA_VISIBLE_DEVICES": "",
            "NO_ALBUMENTATIONS_UPDATE": "1",
            **(environment or {}),
        }
        as_user = {}
        if self.has_namespaces:
            command = [*self._enter(work, mounts(work, readable, hidden)), *self._drop_rights(), *command]
        elif self.user is not None:
            as_user = {"user": self.user, "group": self.user, "extra_groups": []}
        return subprocess.Popen(
            command,
            cwd="/" if self.has_namespaces else work / "submission",
            env=variables,
            pass_fds=fds,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            **as_user,
        )

    def _enter(self, work: Path, plan: list[Mount]) -> list[str]:
        """The command that makes the namespaces and runs in them the one that follows it."""
        if self.kind == "unshare":
            devices = [Mount("write", f"/dev/{name}", f"/dev/{name}") for name in ("null", "zero", "full", "random", "urandom")]
            # Should the grader die, so do unshare and, through its --kill-child, all the rest.
            return [
                "setpriv",
                "--pdeathsig=KILL",
                shutil.which("unshare"),
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
            option = {"read": "--ro-bind", "write": "--bind", "hide": "--tmpfs"}[mount.kind]
            mounted += [option, mount.target] if mount.kind == "hide" else [option, mount.source, mount.target]
        rights = (
            ["--unshare-user"]
            if self.user is None
            else [text for name in ("SETUID", "SETGID", "SETPCAP") for text in ("--cap-add", f"CAP_{name}")]
        )
        return [
            shutil.which("bwrap"),
            "--unshare-pid",
            "--unshare-net",
            "--unshare-ipc",
            "--unshare-uts",
            *rights,
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
        ]

    def _drop_rights(self) -> list[str]:
        """The command that gives up the rights which making the namespaces took."""
        if self.user is not None:
            return [
                "setpriv",
                f"--reuid={self.user}",
                f"--regid={self.user}",
                "--clear-groups",
                "--bounding-set=-all",
                "--no-new-privs",
            ]
        return ["setpriv", "--bounding-set=-all", "--no-new-privs"] if self.kind == "unshare" else []

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


class workplace:  # noqa: N801 (used as a function)
    """A fresh temporary folder with what `Sandbox.start` needs; removed at the end, whatever a submission has made of it."""

    def __enter__(self) -> Path:
        import tempfile

        self.path = Path(tempfile.mkdtemp(prefix="convsprint-grade-")).resolve()
        for name in ("submission", "tmp", "shm", "root"):
            (self.path / name).mkdir()
        return self.path

    def __exit__(self, *_: object) -> None:
        # rm, since Python's own rmtree recurses, and so fails on folders nested deeply enough.
        subprocess.run(["rm", "-rf", "--", self.path], stderr=subprocess.DEVNULL, check=False)
        if self.path.exists():
            subprocess.run(["chmod", "-R", "u+rwx", "--", self.path], stderr=subprocess.DEVNULL, check=False)
            subprocess.run(["rm", "-rf", "--", self.path], stderr=subprocess.DEVNULL, check=False)


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
    wanted = [
        path
        for path in dict.fromkeys(wanted)
        if path != Path("/") and (not _inside(path, {*wanted} - {path}) or _inside(path, secret))
    ]
    plan = [Mount("read", str(path), str(path)) for path in (*wanted, *PROJECT_FILES, *readable)]
    plan += [Mount("hide", "none", str(path)) for path in dict.fromkeys(secret) if _inside(path, wanted)]
    plan += [
        Mount("write", str(work / "submission"), "/submission"),
        Mount("write", str(work / "tmp"), "/tmp"),
        Mount("write", str(work / "shm"), "/dev/shm"),
    ]
    return sorted(plan, key=lambda mount: mount.target.count("/"))


def _inside(path: Path, others: Sequence[Path] | set[Path]) -> bool:
    return any(path.is_relative_to(other) for other in others)


@functools.lru_cache(maxsize=4)
def find(kind: str = "auto") -> Sandbox:
    """The best sandbox that works here, or the named one. Raises InputError where that one does not."""
    users = [40_000 + os.getpid() % 20_000, None] if os.getuid() == 0 else [None]
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
            yield Sandbox(name, user)
