"""The command `course export`: packs this grader, its settings and the data set for the systems that courses use."""

from __future__ import annotations

import dataclasses
import datetime
import io
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from config import InputError
from course.commands import LIMIT, demand_possible
from utils import ASSIGNMENT, ROOT, STATED

if TYPE_CHECKING:
    from limits.assignments import Assignment, Course

# What grades, and what students may use: the folders and files of this project that go along.
PARTS = (
    "course",
    "images",
    "limits",
    "assignments",
    "config.py",
    "model.py",
    "transform.py",
    "utils.py",
    "requirements.txt",
    "LICENSE",
)
KINDS = (".py", ".sh", ".toml", ".txt", ".jinja", ".yaml", ".md", "")  # of files in them
SET_UP = 900.0  # seconds around the trainings, for installing and starting
EXECUTABLE = ("setup.sh", "run_autograder", "score.sh")
IMAGE = "python:3.12"
TIME = "%Y-%m-%d %H:%M:%S"  # in competition.yaml, in UTC


@dataclasses.dataclass
class Export:
    """Pack the grader for Gradescope (autograder.zip), Codabench (a bundle) or GitHub (files for a template repository).

    It grades there as `grade` does here, with the same checks, harness, limits and score. docs/grading.md says how to hand the
    file in, and how well labels are kept from submissions in each system.
    """

    system: tyro.conf.Positional[Literal["gradescope", "codabench", "classroom"]]
    """Where it is to run; classroom is GitHub, with or without a classroom."""
    out: Path
    """The zip file to write."""
    assignment: Annotated[str, ASSIGNMENT] = ""
    dataset: Annotated[str, STATED] = ""
    """The data set to grade on (default: the assignment's, or cifar10). npz:FILE and folder:PATH go into the zip; public ones are
    downloaded where it runs."""
    timeout: Annotated[float | None, STATED] = None
    """Time limit in seconds for training; the same limit applies to set-up (default: the assignment's, or 360)."""
    repeats: Annotated[int | None, STATED] = None
    """Runs of each submission, each with its own seed; the score is their median (default: the assignment's, or 3)."""
    count_init: bool = False
    """Add the time before the clock to the score: imports, Model.__init__ and optimizer_factory."""
    threads: int = 0
    """Number of threads for torch, unless a submission sets another; 0 uses torch's default (one per core)."""
    points: Annotated[float | None, STATED] = None
    """Points for reaching the target accuracy within the limit (gradescope, classroom; default: the assignment's, or 70)."""
    constraint_points: Annotated[float | None, STATED] = None
    """Points for meeting all constraints, each of which earns an equal part (gradescope, classroom; default: the assignment's, or
    30)."""
    visibility: Annotated[Literal["visible", "after_due_date", "after_published", "hidden"] | None, STATED] = None
    """When students see the tests and their points (gradescope; default: the assignment's, or visible)."""
    docker_image: str = IMAGE
    """The image to grade in, with Python 3.10 or newer; the bundle has a Dockerfile for one with all packages (codabench)."""

    def run(self) -> int:
        from limits.assignments import Course, default, load
        from utils import write_atomically

        rules = load(self.assignment) if self.assignment else default()
        timeout = self.timeout if self.timeout is not None else (rules.seconds if self.assignment else None) or LIMIT
        named = ("repeats", "points", "constraint_points", "visibility")
        given = {name: value for name in named if (value := getattr(self, name)) is not None}
        # Not checked again by pydantic: its messages are about a file.
        usual = Course() if rules.num_constraints else Course(constraint_points=0)
        course = ((self.assignment and rules.course) or usual).model_copy(update=given)
        demand_possible(timeout, course.repeats, self.threads)
        if not (course.points >= 0 and course.constraint_points >= 0 and 0 < course.points + course.constraint_points < 1e6):
            raise InputError("--points and --constraint-points must be 0 or more, and one of them above 0")
        if self.out.suffix != ".zip":
            raise InputError(f"--out is {self.out}: it must end in .zip")
        packed = self.pack(rules, course, timeout)
        write_atomically(self.out, packed)
        print(f"{len(packed) / 1e6:.1f} MB written to {self.out}: {NEXT[self.system]}")
        return 0

    def pack(self, rules: Assignment, course: Course, timeout: float) -> bytes:
        """The zip file."""
        from course.harness import TARGET
        from course.terms import demands

        name, data = self.data(rules)
        target = (self.assignment and rules.target_accuracy) or TARGET
        settings = {
            "grade": {
                "assignment": rules.name if self.assignment else "",
                "dataset": name,
                "timeout": timeout,
                "repeats": course.repeats,
                "count_init": self.count_init,
                "threads": self.threads,
            },
            "target": target,
            "course": course.model_dump(include={"points", "constraint_points", "visibility"}),  # the system has its own deadline
        }
        now = datetime.datetime.now(datetime.timezone.utc)
        end = course.deadline and course.deadline.astimezone(datetime.timezone.utc)
        if self.system == "codabench" and end and end <= now:
            print(f"note: the deadline was {end:{TIME}} UTC: the phase gets no end", file=sys.stderr)
        seconds = course.repeats * (2 * timeout + 60) + SET_UP
        about: dict[str, Any] = {
            "title": rules.name if self.assignment else "A compact CNN",
            "about": rules.about if self.assignment else "",
            "target": f"{100 * target:.4g}%",
            "timeout": f"{timeout:g}",
            "repeats": course.repeats,
            "has_data": data is not None,
            "dataset": name,
            "docker_image": self.docker_image,
            "start": f"{now:{TIME}}",
            "end": f"{end:{TIME}}" if end and end > now else "",
            "time_limit": round(seconds / 60) if self.system == "classroom" else round(seconds),
            "demands": demands(rules),
        }
        grader = dict(project_files())
        grader["export.json"] = (json.dumps(settings, indent=2) + "\n").encode()
        if self.assignment:
            grader[f"assignments/{rules.name}.toml"] = assignment_file(self.assignment).read_bytes()
        if data is not None and self.system != "codabench":
            grader["data.npz"] = data
        prefix = {"gradescope": "grader", "codabench": "scoring_program/grader", "classroom": ".github/grader"}[self.system]
        files = {f"{prefix}/{path}": content for path, content in grader.items()}
        files |= system_files(self.system, about)
        if self.system == "codabench":
            files["logo.png"] = logo(about["target"])
            if data is not None:
                files["reference_data/data.npz"] = data
        return zipped(files)

    def data(self, rules: Assignment) -> tuple[str, bytes | None]:
        """The name of the data set where it is graded, and its file if it goes along. Raises InputError."""
        from images import data, loading

        name = self.dataset or (rules.dataset if self.assignment else "") or "cifar10"
        if ":" not in name:
            if name not in loading.PUBLIC:
                raise InputError(f"unknown data set '{name}': choose from {', '.join(loading.PUBLIC)}, folder:PATH, npz:FILE")
            return name, None
        import numpy as np

        dataset = data.load(name, ROOT / "data")
        buffer = io.BytesIO()
        (train_x, train_y), (test_x, test_y) = dataset.train, dataset.test
        np.savez(buffer, train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y)
        return "npz:data.npz", buffer.getvalue()


NEXT = {
    "gradescope": "upload it under Configure Autograder, with Ubuntu 22.04 or newer and the most memory and time",
    "codabench": "upload it under Benchmarks, Management, Upload",
    "classroom": "unpack it in the template repository of the assignment; students can read everything in it",
}


def project_files() -> Iterator[tuple[str, bytes]]:
    """Path in the package -> content of what grades."""
    for part in PARTS:
        path = ROOT / part
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and file.suffix in KINDS and "__pycache__" not in file.parts:
                yield file.relative_to(ROOT).as_posix(), file.read_bytes()
    yield "grade.py", (ROOT / "course" / "templates" / "grade.py.jinja").read_bytes()


def system_files(system: str, about: dict[str, Any]) -> dict[str, bytes]:
    """Path in the zip -> content of the system's own files, filled in."""
    from course.templating import TEMPLATES, render

    places = {
        "classroom.yml": ".github/workflows/classroom.yml",
        "metadata.yaml": "scoring_program/metadata.yaml",
        "score.sh": "scoring_program/score.sh",
        "Dockerfile": "scoring_program/Dockerfile",
    }
    files = {}
    for file in sorted((TEMPLATES / system).iterdir()):
        name = file.name.removesuffix(".jinja")
        if name != "detailed_results.html":  # which the grader fills in
            text = render(f"{system}/{file.name}", **about) if name != file.name else file.read_text()
            files[places.get(name, name)] = text.encode()
    return files


def assignment_file(name: str) -> Path:
    """The file of an assignment that `load` has found."""
    from limits.assignments import FOLDER, names

    return FOLDER / f"{name}.toml" if name in names() else Path(name)


def logo(text: str) -> bytes:
    """A square picture with the text, which Codabench requires."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (256, 256), "#1d4ed8")
    ImageDraw.Draw(image).text((128, 128), text, "white", ImageFont.load_default(72), "mm")
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    """A zip file of them; the scripts may be executed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            info = zipfile.ZipInfo(path)
            info.external_attr = (0o755 if Path(path).name in EXECUTABLE else 0o644) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return buffer.getvalue()
