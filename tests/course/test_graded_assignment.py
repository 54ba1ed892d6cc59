"""grade and leaderboard with an assignment: target, limits and demands are its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import run_main
from course import leaderboard
from course.examiner import above_target, needed
from course.store import Store
from made_up import files, submission, submit, write_colours
from made_up import graded as finished


def test_more_than_the_target() -> None:
    import numpy as np

    assert above_target(10_000) == 5_501
    assert above_target(10_000, 0.9939) == 9_940
    assert above_target(1_000, 0.7) == 701
    labels = np.arange(10_000) % 10
    assert (needed(labels), needed(labels, 0.85)) == (5_501, 8_501)


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, str]:
    """A store with one submission graded under an assignment, that assignment, and what grade printed."""
    folder = tmp_path_factory.mktemp("assignment")
    npz, store, rules = write_colours(folder / "colours.npz"), folder / "store.sqlite", folder / "colours.toml"
    rules.write_text(
        "max_parameters = 10\nmax_latency_ms = 10_000\n"
        'forbid = ["max_pool", "separable", "dilated", "strided", "residual"]\nrequire = ["pointwise"]\nlayers = "C1 GAP c2"\n'
        "target_accuracy = 0.6\nseconds = 77\nmax_epochs = 40\n"
        "[bonus]\nmax_parameters = 5\n"
    )
    submit(folder, store, {"first": files()})
    result = run_main("grade", "--store", store, "--assignment", rules, "--dataset", f"npz:{npz}", "--repeats", 1, "--threads", 1)
    assert result.returncode == 0, result.stderr
    return store, rules, result.stdout + result.stderr


def test_the_constraints_are_the_assignment_s_without_its_bonus(graded: tuple[Path, Path, str]) -> None:
    store, _, output = graded
    with Store(store) as opened:
        (entry,) = opened.entries()
    assert entry.state == "graded", output
    assert {name: passed for name, _, _, passed in entry.result["constraints"]} == {
        "parameters": False,
        "layers": False,
        "1x1 convolution": False,
        **{f"no {kind}": True for kind in ("max-pooling", "depthwise separable", "dilated", "strided convolution")},
        "no sum of branches": True,
        "latency of one image": True,
    }
    assert (entry.result["assignment"], entry.result["target"], entry.result["timeout"]) == ("colours", 0.6, 77)
    assert entry.result["runs"][0]["accuracies"][-1] > 0.6


def test_the_board_of_an_assignment(graded: tuple[Path, Path, str], tmp_path: Path) -> None:
    store, rules, _ = graded
    page = tmp_path / "board.html"
    board = run_main("leaderboard", "--store", store, "--assignment", rules, "--html", page).stdout
    assert "First" in board
    assert "6 of 9, not: parameters, " in board
    assert "assignment colours, on npz:" in board
    assert "Seconds to more than 60% accuracy" in page.read_text()
    other = run_main("leaderboard", "--store", store, "--assignment", "mnist-8k").stdout
    assert "nothing is graded yet" in other
    assert "First" in run_main("leaderboard", "--store", store).stdout


def test_what_failed_under_another_assignment_is_not_listed(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite") as store:
        for name in ("mnist-8k", "speed-55"):
            finished(store, None, name[:5], assignment=name)
        store.add(submission("x"))
    result = run_main("leaderboard", "--store", tmp_path / "s.sqlite", "--assignment", "mnist-8k", "--format", "csv")
    assert [line.split(",")[2] for line in result.stdout.splitlines()] == ["number", "mnist", "x"]


def test_without_an_assignment_the_page_says_55(tmp_path: Path) -> None:
    assert "more than 55% accuracy" in leaderboard.as_html([], [])
