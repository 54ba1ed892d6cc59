"""What `course export` packs runs as its system would run it, and finds what our own grading finds.

The folders are laid out as the systems document it, with a prefix in place of /autograder and /app; the packages are those of this
environment, so pip finds nothing to install and has no index to ask.
"""

import datetime
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import pytest
import yaml

from conftest import ROOT, assert_refused, run_main
from course import exporting, formats, once, points
from course.store import Entry, Store
from limits.assignments import Course
from made_up import RESULT, run, submit, write_colours

# It knows the colours of the first {right} classes, learns nothing, and so has the same accuracy in every order of the images.
MODEL = """
import torch

class Model(torch.nn.Module):
    '''Distances to known colours.'''

    def __init__(self, num_channels: int, num_classes: int) -> None:
        super().__init__()
        colours = torch.tensor([[220, 30, 30], [30, 220, 30], [30, 30, 220], [200, 200, 200]]) / 255
        colours[{right}:] = 9
        self.register_buffer("colours", colours)
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        '''(N, C, H, W) -> logits (N, num_classes).'''
        return -self.scale * ((x.mean((2, 3))[:, None] - self.colours) ** 2).sum(-1)
"""
CONFIG = """
import torch
from torchvision.transforms import ToTensor

class CONFIG:
    batch_size, num_epochs, transforms = 20, 2, ToTensor()

    @staticmethod
    def optimizer_factory(model):
        return torch.optim.SGD(model.parameters(), lr=0.0)
"""
RULES = 'max_parameters = 1\nforbid = ["max_pool"]\ntarget_accuracy = 0.6\nseconds = 60\n'
RULES += "[course]\nrepeats = 1\npoints = 50\nvisibility = 'after_published'\ndeadline = 2090-12-01T18:00:00+01:00\nlate_days = 2\n"
PEOPLE = {"good": 3, "bad": 2}  # -> how many of the four colours their networks know


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Path:
    """The folder of the data set and the assignment."""
    folder = tmp_path_factory.mktemp("ours")
    write_colours(folder / "colours.npz")
    (folder / "colours.toml").write_text(RULES)
    return folder


@pytest.fixture(scope="module")
def ours(task) -> tuple[Path, dict[str, Entry]]:
    """That folder with the submissions, and what our own grading says of these."""
    folder, store = task, task / "store.sqlite"
    contents = {n: {"model.py": MODEL.format(right=k).encode(), "config.py": CONFIG.encode()} for n, k in PEOPLE.items()}
    submit(folder, store, contents)
    (folder / "tmp").mkdir()
    options = ("--assignment", folder / "colours.toml", "--dataset", f"npz:{folder / 'colours.npz'}", "--threads", 1)
    result = run_main("grade", "--store", store, *options, env={**os.environ, "TMPDIR": str(folder / "tmp")})
    assert result.returncode == 0, result.stderr
    with Store(store) as opened:
        entries = {entry.contributors[0][1]: entry for entry in opened.entries()}
    assert {name: entry.state for name, entry in entries.items()} == {"good": "graded", "bad": "failed"}
    return folder, entries


def export(system: str, ours: Path, out: Path, *options: object) -> None:
    """Export to a zip and unpack it to the folder `out`, with the rights that the zip gives."""
    archive = out.with_suffix(".zip")
    named = ("--assignment", ours / "colours.toml", "--dataset", f"npz:{ours / 'colours.npz'}")
    result = run_main("course", "export", system, "--out", archive, *named, "--threads", 1, *options)
    assert result.returncode == 0, result.stderr
    assert f"MB written to {archive}" in result.stdout
    with zipfile.ZipFile(archive) as opened:
        opened.extractall(out)
        for info in opened.infolist():
            (out / info.filename).chmod(info.external_attr >> 16)


def run_clean(folder: Path, *command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    """The command in an environment that has nothing of ours but this Python."""
    (folder / "tmp").mkdir(exist_ok=True)
    variables = {"PATH": f"{sys.prefix}/bin:/usr/bin:/bin", "HOME": str(folder), "TMPDIR": str(folder / "tmp"), "PIP_NO_INDEX": "1"}
    return subprocess.run(
        [*map(str, command)], cwd=cwd, env=variables | environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def autograder(ours, tmp_path_factory) -> tuple[Path, dict[str, str]]:
    """/autograder as Gradescope builds it, set up; and the environment in which to run it."""
    folder = tmp_path_factory.mktemp("gradescope")
    root, tools = folder / "autograder", folder / "tools"
    export("gradescope", ours[0], root / "source")
    shutil.copy(root / "source" / "run_autograder", root / "run_autograder")
    (root / "results").mkdir()
    (root / "venv").symlink_to(sys.prefix)  # what setup.sh would make
    tools.mkdir()
    (tools / "apt-get").write_text(f'#!/bin/sh\necho "$@" >> {folder}/installed\n')
    (tools / "apt-get").chmod(0o755)
    environment = {"AUTOGRADER": str(root), "PATH": f"{tools}:/usr/bin:/bin"}
    result = run_clean(folder, "bash", root / "source" / "setup.sh", cwd=root, **environment)
    assert result.returncode == 0, result.stderr
    assert "python3-venv" in (folder / "installed").read_text()
    assert (root / "source" / "grader" / "data.npz").stat().st_mode & 0o777 == 0o600
    return root, environment


def gradescope(autograder: tuple[Path, dict[str, str]], submission: Path) -> dict:
    root, environment = autograder
    shutil.rmtree(root / "submission", ignore_errors=True)
    shutil.copytree(submission, root / "submission")
    (root / "results" / "results.json").unlink(missing_ok=True)
    result = run_clean(root.parent, root / "run_autograder", cwd=root, **environment)
    assert result.returncode == 0, result.stderr
    return json.loads((root / "results" / "results.json").read_text())


@pytest.mark.slow
def test_gradescope_grades_as_we_do(ours, autograder):
    folder, entries = ours
    results = gradescope(autograder, folder / "good")
    files, target, parameters, pooling, teachers = results["tests"]
    assert [(test.get("status"), test["score"], test["max_score"], test["visibility"]) for test in results["tests"]] == [
        ("passed", 0, 0, "after_published"),
        ("passed", 50, 50, "after_published"),
        ("failed", 0, 15, "after_published"),
        ("passed", 15, 15, "after_published"),
        (None, 0, 0, "hidden"),
    ]
    assert "more than 60% test accuracy within 60 s" in target["name"]
    assert "75.00% after epoch 1" in target["output"]
    (run_here,) = entries["good"].result["runs"]
    seconds, *rest = results["leaderboard"]
    assert (seconds["name"], seconds["order"]) == ("Seconds", "asc")
    assert 0 < seconds["value"] < 60
    assert rest == [
        {"name": "Accuracy", "value": run_here["accuracies"][0], "order": "desc"},
        {"name": "Parameters", "value": entries["good"].result["parameters"], "order": "asc"},
        {"name": "Constraints met", "value": 1, "order": "desc"},
    ]
    assert [parameters["output"], pooling["output"]] == [
        f"{value} (required: {limit})" for _, value, limit, _ in entries["good"].result["constraints"]
    ]
    assert results["stdout_visibility"] == "hidden"
    assert r"**65 of 80 points \(target 50 of 50, constraints 15 of 30\)**" in results["output"]
    assert "seed 0: stopped by target" in teachers["output"]


@pytest.mark.slow
def test_gradescope_names_what_is_refused(ours, autograder, tmp_path):
    shutil.copytree(ours[0] / "good", tmp_path / "zip" / "in-a-folder")
    (tmp_path / "zip" / "in-a-folder" / "model.py").write_text("import os\n")
    results = gradescope(autograder, tmp_path / "zip")
    assert "leaderboard" not in results
    assert [(test.get("status"), test["score"], test["max_score"]) for test in results["tests"]] == [
        ("failed", 0, 0),
        ("failed", 0, 50),
        (None, 0, 30),
        (None, 0, 0),
    ]
    assert "no class Model" in results["tests"][0]["output"]
    assert "60%" in results["tests"][1]["name"]


@pytest.fixture(scope="module")
def bundle(task, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("codabench") / "bundle"
    export("codabench", task, folder, "--docker-image", "me/grader:1")
    return folder


def test_the_bundle_has_all_that_competition_yaml_names(bundle):
    competition = yaml.safe_load((bundle / "competition.yaml").read_text())
    assert (competition["version"], competition["docker_image"], competition["title"]) == (2, "me/grader:1", "colours")
    (task,), (phase,), (board,) = competition["tasks"], competition["phases"], competition["leaderboards"]
    named = [competition["image"], competition["terms"], *(page["file"] for page in competition["pages"])]
    assert all((bundle / name).stat().st_size for name in named)
    assert (bundle / task["scoring_program"] / "metadata.yaml").is_file()
    assert [path.name for path in (bundle / task["reference_data"]).iterdir()] == ["data.npz"]
    assert not list((bundle / task["scoring_program"]).rglob("*.npz"))
    assert phase["tasks"] == [task["index"]]
    assert phase["execution_time_limit"] > 2 * 60
    # In UTC, and texts: Codabench takes the midnight before what YAML reads as a time.
    assert phase["end"] == "2090-12-01 17:00:00"
    assert datetime.datetime.strptime(phase["start"], exporting.TIME) < datetime.datetime.now()
    assert [(column["key"], column["sorting"]) for column in board["columns"]] == list(formats.ORDERS.items())


def lay_out(bundle: Path, submission: Path, folder: Path) -> tuple[Path, list[str]]:
    """/app as Codabench's worker makes it for the scoring of a submission, and the command that it runs."""
    app = folder / "app"
    shutil.copytree(bundle / "scoring_program", app / "program")
    shutil.copytree(bundle / "reference_data", app / "input" / "ref")
    shutil.copytree(submission, app / "input" / "res")  # a submission without metadata is handed on as it is
    (app / "output").mkdir()
    command = yaml.safe_load((app / "program" / "metadata.yaml").read_text())["command"]
    return app, command.replace("/app", str(app)).split()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["good", "bad"])
def test_codabench_grades_as_we_do(ours, bundle, tmp_path, name):
    folder, entries = ours
    app, command = lay_out(bundle, folder / name, tmp_path)
    result = run_clean(tmp_path, *command, cwd=app / "program")
    page = (app / "output" / "detailed_results.html").read_text()
    entry = entries[name]
    if name == "bad":
        assert result.returncode == 1
        assert result.stderr.endswith(f"error: {entry.reason}\n")
        assert entry.reason in page
        assert not (app / "output" / "scores.json").exists()
        return
    assert result.returncode == 0, result.stderr
    found = json.loads((app / "output" / "scores.json").read_text())
    competition = yaml.safe_load((bundle / "competition.yaml").read_text())
    assert list(found) == [column["key"] for column in competition["leaderboards"][0]["columns"]]
    assert 0 < found.pop("seconds") < 60
    assert found == {"accuracy": 0.75, "parameters": entry.result["parameters"], "constraints_met": 1}
    assert "passed" in page


def test_a_phase_whose_deadline_is_over_has_no_end_and_that_is_said(tmp_path):
    (tmp_path / "hw.toml").write_text("max_parameters = 1\n[course]\ndeadline = 2020-12-01T18:00:00+01:00\n")
    for system, notes in (("codabench", 1), ("gradescope", 0)):
        result = run_main("course", "export", system, "--out", f"{system}.zip", "--assignment", "hw.toml", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        assert result.stderr.count("note: the deadline was 2020-12-01 17:00:00 UTC") == notes
    with zipfile.ZipFile(tmp_path / "codabench.zip") as archive:
        assert "end" not in yaml.safe_load(archive.read("competition.yaml"))["phases"][0]


@pytest.mark.parametrize(
    ("paths", "found"),
    [
        (("model.py", "old/model.py"), ""),
        (("hw/model.py",), "hw"),
        (("hw/model.py", "__MACOSX/hw/._model.py", ".git/config"), "hw"),  # as macOS packs, and as git clones
        (("hw1/model.py", "hw2/model.py"), ""),
        (("config.py", "hw/model.py"), ""),
    ],
)
def test_the_folder_that_a_zip_has_its_files_in(tmp_path, paths, found):
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert once._folder_of(tmp_path) == tmp_path / found


SPY = """
        def readable(pid: int) -> list[str]:
            found = []
            for path in [f"/proc/{pid}/mem", *(f"/proc/{pid}/fd/{n}" for n in os.listdir(f"/proc/{pid}/fd"))]:
                try:
                    open(path, "rb").close()
                except OSError:
                    continue
                found.append(path)
            return found

        assert readable(os.getpid()), "it cannot even read itself"
        assert not readable(os.getppid()), f"of the grader it reads {readable(os.getppid())}"
        assert not os.path.exists("INPUT/ref/data.npz"), "it reads the labels"
"""


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="it gives up root's rights")
def test_without_a_sandbox_a_submission_does_not_find_the_labels(ours, bundle, tmp_path):
    """As in Codabench's containers: without namespaces, and without the right to become another user."""
    app, command = lay_out(bundle, ours[0] / "good", Path(tempfile.mkdtemp(dir="/tmp")))
    try:
        settings = json.loads((app / "program" / "grader" / "export.json").read_text())
        settings["grade"]["sandbox"] = "none"
        (app / "program" / "grader" / "export.json").write_text(json.dumps(settings))
        code = MODEL.format(right=3).replace("import torch\n", "import os, torch\n")
        code = code.replace("        self.scale", SPY.replace("INPUT", str(app / "input")) + "        self.scale")
        (app / "input" / "res" / "model.py").write_text(code)
        no_rights = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs")
        result = run_clean(app.parent, *no_rights, *command, cwd=app / "program")
        assert result.returncode == 0, result.stderr
        assert "as you asked with --sandbox none" in result.stderr
        assert json.loads((app / "output" / "scores.json").read_text())["accuracy"] == 0.75
    finally:
        shutil.rmtree(app.parent)


@pytest.mark.slow
def test_the_workflow_for_github_grades_as_we_do(ours, tmp_path):
    folder, entries = ours
    repository = tmp_path / "repository"
    export("classroom", folder, repository)
    shutil.copytree(folder / "good", repository, dirs_exist_ok=True)
    workflow = yaml.safe_load((repository / ".github" / "workflows" / "classroom.yml").read_text())
    assert workflow["name"] == "Autograding Tests"
    assert workflow[True] == ["push", "workflow_dispatch"]  # `on`, as YAML 1.1 reads it
    ((name, job),) = workflow["jobs"].items()
    assert name == "run-autograding-tests"
    summary = tmp_path / "summary.md"
    install, grade = [step["run"] for step in job["steps"] if "run" in step]
    for script in (install, grade):
        result = run_clean(tmp_path, "bash", "-e", "-c", script, cwd=repository, GITHUB_STEP_SUMMARY=str(summary))
        assert script == grade or result.returncode == 0, result.stderr
    assert result.returncode == 1  # a constraint is not met
    assert result.stdout.splitlines()[-2:] == [
        "::notice title=Autograding complete::Points 65/80",
        '::notice title=Autograding report::{"totalPoints": 65.0, "maxPoints": 80.0}',
    ]
    feedback = summary.read_text()
    assert "65 of 80 points" in feedback
    assert "| 75.00% | 1 |" in feedback
    assert "constraint *parameters*" in feedback
    assert f"Trainable parameters: {entries['good'].result['parameters']}." in feedback


def entry(state: str, **result: object) -> Entry:
    score = 3.0 if state == "graded" else None
    return Entry(
        1, state, "" if score else "not above 55%", "hw", [("Ada", "ada")], [], [], time.time(), 1, 2, "", score, RESULT | result
    )


def test_the_points_of_constraints_add_up():
    three = [["a", "1", "2", True], ["b", "1", "2", None], ["c", "1", "2", False]]
    found = points.checks(entry("graded", constraints=three, runs=[run(3.0)]), Course(points=70, constraint_points=10))
    assert [(check.verdict, check.points, check.max_points) for check in found[2:]] == [
        ("passed", 3.33, 3.33),
        ("unknown", 0, 3.34),
        ("failed", 0, 3.33),
    ]
    failed = points.checks(
        entry("failed", constraints=[], problem="cannot be traced", runs=[run(None)]), Course(points=70, constraint_points=10)
    )
    assert [(check.points, check.max_points) for check in failed] == [(0, 0), (0, 70), (0, 10)]
    assert failed[1].output == "not above 55%\nseed 0: "
    assert failed[2].output == "cannot be traced"


def test_all_points_end_the_workflow_in_green():
    met = entry("graded", constraints=[["a", "1", "2", True]], runs=[run(3.0)])
    assert formats.classroom(met, Course()) == (
        [
            "::notice title=Autograding complete::Points 100/100",
            '::notice title=Autograding report::{"totalPoints": 100.0, "maxPoints": 100.0}',
        ],
        True,
    )


def test_what_others_wrote_is_text_on_the_page(tmp_path):
    nasty = entry("failed", constraints=[["<script>", "<b>", "&", False]], runs=[run(None) | {"reason": "<img>"}])
    assert not formats.codabench(nasty, Course(), tmp_path)
    page = (tmp_path / "detailed_results.html").read_text()
    assert not [tag for tag in ("<script", "<b>", "<img") if tag in page]
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--out", "x.tar"], "must end in .zip"),
        (["--out", "x.zip", "--dataset", "cifar11"], "unknown data set 'cifar11'"),
        (["--out", "x.zip", "--dataset", "npz:missing.npz"], "missing.npz"),
        (["--out", "x.zip", "--points", "0", "--constraint-points", "0"], "--points"),
        (["--out", "x.zip", "--points", "nan"], "--points"),
        (["--out", "x.zip", "--timeout", "0"], "--timeout"),
        (["--out", "x.zip", "--timeout", "inf"], "--timeout"),
        (["--out", "x.zip", "--repeats", "1" + 400 * "0"], "--repeats"),
        (["--out", "x.zip", "--threads", "99999999999"], "--threads"),
        (["--out", "x.zip", "--assignment", "speed"], "unknown assignment"),
    ],
)
def test_bad_options_are_refused_in_one_line(tmp_path, options, words):
    assert_refused(run_main("course", "export", "gradescope", *options, cwd=tmp_path), words)
    assert not list(tmp_path.iterdir())


def test_options_come_before_the_file_and_nothing_is_promised_that_cannot_be_earned(tmp_path):
    (tmp_path / "hw.toml").write_text("target_accuracy = 0.6\n[course]\npoints = 50\nconstraint_points = 0\nrepeats = 2\n")
    (tmp_path / "bare.toml").write_text("target_accuracy = 0.6\n")
    for options, course, repeats in (
        (("hw.toml", "--points", 9), {"points": 9.0, "constraint_points": 0.0, "visibility": "visible"}, 2),
        (("bare.toml", "--repeats", 5), {"points": 70.0, "constraint_points": 0.0, "visibility": "visible"}, 5),
    ):
        result = run_main("course", "export", "gradescope", "--out", "a.zip", "--assignment", *options, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        with zipfile.ZipFile(tmp_path / "a.zip") as archive:
            settings = json.loads(archive.read("grader/export.json"))
        assert (settings["course"], settings["grade"]["repeats"]) == (course, repeats)


def test_a_public_data_set_does_not_go_along(tmp_path):
    out = tmp_path / "a.zip"
    assert run_main("course", "export", "codabench", "--out", out).returncode == 0
    with zipfile.ZipFile(out) as archive:
        names = archive.namelist()
        settings = json.loads(archive.read("scoring_program/grader/export.json"))
        assert "reference_data" not in archive.read("competition.yaml").decode()
    assert settings["grade"]["dataset"] == "cifar10"
    assert not [name for name in names if name.endswith((".npz", ".pyc", ".png")) and name != "logo.png"]
    ours = {path.relative_to(ROOT).as_posix() for path in (ROOT / "course").glob("*.py")}
    assert {f"scoring_program/grader/{path}" for path in ours} <= set(names)
