"""The grader's side of the process in which a submission runs. Started by sandbox.py, never by hand.

    python inside.py JSON     (fd of the channel, folder of the submission, limits, ...)

It shares the process with a stranger's code, so nothing rests on it that the grader can have from outside (examiner.py):

- Time is the grader's clock, read when messages arrive; nothing that this process says about time is used.
- The labels of the test split never come here: outputs go out, the accuracy is computed outside.
- The training split comes when the clock is started, the test images when the first epoch is said to be over. Before that there is
  nothing to learn from, and what is done after counts.

What can only be observed here: that the loop is the course's, with its loss, its batches and whole epochs. `Guard` remembers the
functions that the loop rests on before the submission is loaded and finds most replacements; the loop counts the images of each
epoch. A submission that alters this process so that neither notices can train on less than the whole split in an epoch, or on
more. Its time and accuracy are still true. Nor does the loop know what `forward` makes of a batch.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import gc
import json
import mmap
import os
import resource
import shutil
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import harness  # beside this file: a script's own folder is where Python looks first
import seccomp

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38


class Channel:
    """Messages to and from the grader: the length in 4 bytes, JSON, then as many raw bytes as both sides know of."""

    def __init__(self, fd: int) -> None:
        self.socket = socket.socket(fileno=fd)
        self.socket.set_inheritable(False)

    def send(self, at: str, raw: bytes = b"", **message: Any) -> None:
        text = json.dumps({"at": at, **message}).encode()
        self.socket.sendall(struct.pack("!I", len(text)) + text + raw)

    def send_ready(self, rooms: list[str], seconds_an_image: float) -> None:
        """Say that the submission may come, and hand over the folders in which it can write."""
        folders = [os.open(room, os.O_RDONLY) for room in rooms]
        text = json.dumps({"at": "ready", "seconds_an_image": seconds_an_image}).encode()
        socket.send_fds(self.socket, [struct.pack("!I", len(text)) + text], folders)
        for folder in folders:
            os.close(folder)

    def receive(self) -> tuple[dict[str, Any], int | None]:
        """The grader's next message, and the file that came with it. Ends this process where the grader is gone."""
        data, ancillary, _, _ = self.socket.recvmsg(4, socket.CMSG_SPACE(4))
        while len(data) < 4:
            data += self._some(4 - len(data))
        text = b""
        while len(text) < struct.unpack("!I", data)[0]:
            text += self._some(struct.unpack("!I", data)[0] - len(text))
        return json.loads(text), array.array("i", ancillary[0][2])[0] if ancillary else None

    def _some(self, count: int) -> bytes:
        data = self.socket.recv(count)
        if not data:
            os._exit(1)
        return data


def confine(limits: dict[str, int]) -> None:
    """Set limits that cannot be undone, by names of the resource module, for this process and what it starts."""
    for name, value in limits.items():
        kind = getattr(resource, name)
        _, hard = resource.getrlimit(kind)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
    with contextlib.suppress(OSError, AttributeError):  # Linux only; a change of user has undone what the parent set
        prctl = ctypes.CDLL(None).prctl
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory runs out, the kernel takes this process first
    seccomp.deny()


class Guard:
    """Finds out when a function or class that the course's loop rests on is replaced."""

    def __init__(self, modules: list[ModuleType]) -> None:
        self.modules = modules
        self.before = dict(self._parts())

    def check(self) -> None:
        """Raises BadInput with the name of a part that is no longer what it was."""
        now = dict(self._parts())
        for name, parts in self.before.items():
            if name not in now or any(a is not b for a, b in zip(parts, now[name], strict=True)):
                raise harness.BadInput(f"it replaced {name}, which the harness uses")

    def _parts(self) -> Iterator[tuple[str, tuple[Any, Any]]]:
        """Name -> (object, its code) of everything callable in the modules, and in their classes."""
        for module in self.modules:
            for name, value in list(vars(module).items()):
                if not callable(value) or (module.__name__ == "builtins" and name in ("print", "_")):
                    continue
                yield f"{module.__name__}.{name}", (value, getattr(value, "__code__", None))
                if isinstance(value, type):
                    for key, member in list(vars(value).items()):
                        if isinstance(member, (FunctionType, staticmethod, classmethod, property)):
                            yield f"{module.__name__}.{name}.{key}", (member, getattr(member, "__code__", None))


class Images:
    """A split as torchvision's data sets are: (transform(PIL image), label), without label -1.

    `memory` holds the images' colour planes as bytes, and where `labelled` the labels as int64.
    """

    def __init__(self, memory: Any, shape: list[int], labelled: bool, transform: Callable[[Any], Any]) -> None:
        import numpy as np

        count, height, width, channels = shape
        size = int(np.prod(shape))
        # Colour plane after plane, as torchvision's CIFAR10 holds them, so that taking an image costs what it costs there.
        planes = np.frombuffer(memory, np.uint8, size).reshape(count, channels, height, width)
        self.images = planes[:, 0] if channels == 1 else planes.transpose(0, 2, 3, 1)
        self.as_pil = channels in (1, 3, 4)  # others have no PIL mode and stay arrays
        self.labels = np.frombuffer(memory, np.uint8, offset=size).view(np.int64).tolist() if labelled else [-1] * count
        self.transform = transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        image = self.images[index]
        return self.transform(Image.fromarray(image) if self.as_pil else image), self.labels[index]


class RemoteExaminer:
    """The harness's examiner, whose clock and labels are the grader's."""

    def __init__(self, channel: Channel, transform: Callable[[Any], Any], num_classes: int, guard: Guard) -> None:
        self.channel, self.transform, self.num_classes, self.guard = channel, transform, num_classes, guard
        self.test: Images | None = None

    def start(self) -> Images:
        self.channel.send("start")
        return self._split(labelled=True)

    def tick(self) -> None:
        pass  # the grader ends the process at the limit

    def test_set(self) -> Images:
        self.guard.check()
        self.channel.send("trained")
        if self.test is None:
            self.test = self._split(labelled=False)
        return self.test

    def mark(self, logits: Any, labels: Any) -> bool:
        if tuple(logits.shape) != (len(labels), self.num_classes):
            raise harness.BadInput(
                f"its forward returned {tuple(logits.shape)} for {len(labels)} test images of "
                f"{self.num_classes} classes, not {(len(labels), self.num_classes)}"
            )
        raw = logits.float().cpu().contiguous().numpy().tobytes()
        self.guard.check()
        self.channel.send("mark", raw)
        message, _ = self.channel.receive()
        return message["stop"]

    def _split(self, labelled: bool) -> Images:
        message, fd = self.channel.receive()
        assert fd is not None  # the grader sends the file with this message
        memory = mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)  # shared with the grader
        os.close(fd)
        return Images(memory, message["shape"], labelled, self.transform)


def seconds_an_image(image_size: list[int], num_channels: int) -> float:
    """What the loop's loader takes for one image at the least, without any transform: measured before the submission is there."""
    import time

    import torch

    count, nothing = 1000, torch.zeros(1)
    images = Images(
        bytes(count * (image_size[0] * image_size[1] * num_channels + 8)),
        [count, *image_size, num_channels],
        True,
        lambda _: nothing,
    )
    least = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        for _ in torch.utils.data.DataLoader(images, batch_size=count, shuffle=True):  # type: ignore[arg-type]  # as harness.train
            pass
        least = min(least, (time.perf_counter() - started) / count)
    return least


def offer_cifar10(folder: str) -> None:
    """Let torchvision's CIFAR10 give the training split in `folder`, wherever a submission has it look or download to."""
    import torchvision

    class CIFAR10(torchvision.datasets.CIFAR10):
        train_list = torchvision.datasets.CIFAR10.train_list
        test_list: list[tuple[str, str]] = []

        def __init__(
            self, root: Any = None, train: bool = True, transform: Any = None, target_transform: Any = None, download: bool = False
        ) -> None:
            if not train:
                raise RuntimeError("the grader offers the training split of CIFAR-10 only")
            super().__init__(folder, True, transform, target_transform)

    for module in (torchvision.datasets, torchvision.datasets.cifar):
        module.CIFAR10 = CIFAR10


def examine(channel: Channel, task: dict[str, Any], check_constraints: Callable[..., Any]) -> None:
    """Take the submission through the course's loop and tell the grader how far it is."""
    import builtins
    import time

    import torch

    folder, (num_channels, num_classes) = Path(task["folder"]), task["network"]
    data = torch.utils.data
    guard = Guard(
        [
            builtins,
            time,
            json,
            socket,
            struct,
            torch.nn,
            torch.nn.functional,
            torch.nn.modules.loss,
            torch.nn.modules.module,
            torch.autograd,
            data,
            data.dataloader,
            data.sampler,
            data._utils.fetch,
            data._utils.collate,
            data._utils.worker,
            harness,
            sys.modules["__main__"],
        ]
    )

    def reached(stage: str) -> None:
        guard.check()
        channel.send(stage)

    try:
        model, config = harness.load(folder, num_channels, num_classes, task["seed"], reached)
        optimizer = config.optimizer_factory(model)
        guard.check()
        harness.train(model, config, optimizer, RemoteExaminer(channel, config.transforms, num_classes, guard))
    except harness.BadInput as error:
        channel.send("failed", reason=str(error)[: harness.MAX_REASON])
    except BaseException as error:  # also SystemExit and KeyboardInterrupt
        channel.send("failed", reason=f"{harness.one_line(error)}{harness.place(error, folder)}")
    else:
        channel.send("done")
        message, _ = channel.receive()
        if message["inspect"]:
            channel.send("inspected", **inspect(model, tuple(task["image_size"]), num_channels, check_constraints))
    os._exit(0)  # what the submission has registered for the end is not waited for


def inspect(model: Any, image_size: tuple[int, int], num_channels: int, check_constraints: Callable[..., Any]) -> dict[str, Any]:
    """The number of parameters and the assignment's constraints of a network, as the constraints module finds them."""
    import torch

    # Not by the model's own methods, which it may have replaced.
    found: dict[str, Any] = {"parameters": sum(parameter.numel() for parameter in torch.nn.Module.parameters(model))}
    try:
        constraints = [each for each in check_constraints(model, image_size, num_channels) if not each.is_bonus]
        found["constraints"] = [[each.name, each.value, each.limit, each.passed] for each in constraints]
    except Exception as error:  # a network that cannot be traced
        found["problem"] = str(error)[: harness.MAX_REASON]
    return found


def main() -> None:
    task = json.loads(sys.argv[1])
    confine(task["limits"])
    channel = Channel(task["channel"])
    for path in Path(task["files"]).iterdir():
        if not (Path(task["folder"]) / path.name).exists():
            shutil.copyfile(path, Path(task["folder"]) / path.name)
    # What is loaded here is not counted as the submission's import. None of it becomes garbage: to look takes a tenth.
    gc.disable()
    project = Path(__file__).resolve().parent.parent
    sys.path.append(str(project))
    import torchvision.datasets  # noqa: F401
    import torchvision.transforms  # noqa: F401

    from limits.assignments import parse
    from limits.constraints import check

    assignment = parse(task["assignment"], "the assignment")
    ours = {
        name: module
        for name, module in sys.modules.items()
        if Path(getattr(module, "__file__", None) or "/").parent in (project, project / "limits")
    }
    for name in ours:
        del sys.modules[name]  # a submission's `import config` means its own

    def check_constraints(model: Any, image_size: tuple[int, int], num_channels: int) -> list[Any]:
        # Parts of limits are imported when they are used. Nothing of the submission is imported after this.
        sys.modules.update({name: module for name, module in ours.items() if name.partition(".")[0] == "limits"})
        return check(model, image_size, num_channels, assignment=assignment)

    gc.freeze()
    gc.enable()
    if task["cifar10"]:
        offer_cifar10(task["cifar10"])
    channel.send_ready(task["rooms"], seconds_an_image(task["image_size"], task["network"][0]))
    channel.receive()
    examine(channel, task, check_constraints)


if __name__ == "__main__":
    main()
