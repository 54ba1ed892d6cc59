"""Networks that fit tries satisfy the limits before they cost anything; its study outlives processes and knows what it is for."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import socket
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from config import InputError
from learning.presets import PRESETS
from learning.search import WIDTHS, Space, receptive_field
from learning.study import Result, best, give_back, next_trial, open_study, results
from limits.assignments import Assignment, load, names, parse
from limits.constraints import check
from limits.receptive_field import receptive_field_of
from limits.tracing import trace_model
from model import Net

optuna = pytest.importorskip("optuna", reason="requirements-fit.txt is not installed")
FixedTrial, TrialState = optuna.trial.FixedTrial, optuna.trial.TrialState


def space_of(rules: Assignment) -> Space:
    return Space(rules, rules.channels, rules.classes, rules.size)


def random_nets(space: Space, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """What random trials describe, not yet repaired."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return [space.suggest(study.ask()) for _ in range(count)]


@pytest.mark.parametrize("name", names())
def test_networks_satisfy_the_limits(name: str) -> None:
    rules = load(name)
    space = space_of(rules)
    for net in [space.suggest(FixedTrial(space.known()[0])), *random_nets(space, 2)]:
        candidate = space.repaired(net)
        assert not candidate.failed, candidate.reasons
        model = Net(rules.channels, rules.classes, **candidate.net)
        assert all(one.passed for one in check(model, rules.size, rules.channels, assignment=rules) if not one.is_bonus)


@pytest.mark.parametrize(
    ("demands", "words"),
    [
        ({"forbid": ["linear"]}, "each network of fit has linear, which the assignment mine forbids"),
        ({"forbid": ["dropout", "gap"]}, "each network of fit has gap"),
        ({"require": [["gap", "dropout"], ["average_pool", "dropout"]]}, "no network of fit has average_pool or dropout"),
        ({"blocks": ["A", "B", "O"]}, "have the blocks C1 C2 C3 C4 O, but the assignment mine demands A B O"),
    ],
)
def test_demands_that_no_network_can_meet_are_refused_at_once(demands: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        space_of(parse({"name": "mine", **demands}, "mine"))


@pytest.mark.parametrize("kind", ["gap", "linear"])
def test_what_is_refused_is_in_each_network(kind: str) -> None:
    rules = parse({"name": "mine", "forbid": [kind]}, "mine")
    space = space_of(parse({"name": "all"}, "all"))
    for net in random_nets(space, 3):
        assert not all(one.passed for one in check(Net(3, 10, **net), (32, 32), 3, assignment=rules))


LIMITS = {
    "max_mult_adds": {"max_mult_adds": 2_000_000},
    "max_size_kb": {"max_size_kb": {"float32": 100, "int8": 40}},
    "no separable": {"forbid": ["separable", "strided"]},
    "no dilated": {"forbid": ["dilated", "max_pool", "batch_norm"], "require": ["separable", "separable", "strided"]},
    "no pointwise": {"forbid": ["pointwise"], "require": ["max_pool", "max_pool"], "min_receptive_field": 60},
    "dilated": {"require": ["dilated", "dilated", "dilated", "pointwise"], "max_parameters": 20_000},
}


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
def test_each_kind_of_limit(limits: dict[str, Any]) -> None:
    space = space_of(parse({"name": "mine", **limits}, "mine"))
    for net in random_nets(space, 3, seed=1):
        candidate = space.repaired(net)
        assert not candidate.failed, candidate.reasons


def test_a_network_is_no_smaller_than_the_limits_ask() -> None:
    space = space_of(parse({"name": "mine", "max_parameters": 20_000}, "mine"))
    known = space.suggest(FixedTrial(space.known()[0]))
    assert 17_000 < space.parameters(space.repaired(known).net) < 20_000
    free = space_of(parse({"name": "mine"}, "mine"))
    assert free.repaired(free.suggest(FixedTrial(free.known()[0]))).net["widths"] == (32, 64, 96, 96)


def test_the_first_networks_are_those_of_presets() -> None:
    space = space_of(load("c1c2c3c4o"))
    first, second = (space.repaired(space.suggest(FixedTrial(known))).net for known in space.known()[:2])
    default = {"pools": (2, 2, 1, 1), "widths": (32, 64, 96, 96)}
    assert {name: first[name] for name in default} == default
    fast85 = PRESETS["fast85"].net  # the assignment's own
    assert {name: second[name] for name in ("widths", "pools", "kinds")} == {
        name: fast85[name] for name in ("widths", "pools", "kinds")
    }


def test_what_cannot_be_satisfied_is_said() -> None:
    space = space_of(parse({"name": "mine", "max_parameters": 300}, "mine"))
    candidate = space.repaired(random_nets(space, 1)[0])
    assert candidate.net["widths"] == (WIDTHS[0],) * 4
    assert "parameters: " in candidate.reasons and "< 300" in candidate.reasons
    with pytest.raises(InputError, match="normalisation that the assignment mine allows"):
        space_of(parse({"name": "mine", "forbid": ["batch_norm", "group_norm", "layer_norm"]}, "mine"))
    for layers in ("c1 C2 C3 C4 GAP c5", "C1 C2 C3 C4", "C1 P1 P2 C2 C3 C4 GAP c5", "C1 C2 C3 GAP c4", "CCPCPCPCPC GAP c"):
        with pytest.raises(InputError, match="cannot build the layers of the assignment mine"):
            space_of(parse({"name": "mine", "layers": layers}, "mine"))


def test_demanded_layers_may_begin_with_pooling() -> None:
    rules = parse({"name": "mine", "layers": "C1 P1 c2 C3 C4 P2 c5 C6 GAP c7"}, "mine")
    for net in random_nets(space_of(rules), 3):
        assert not space_of(rules).repaired(net).failed


def test_the_receptive_field_by_arithmetic() -> None:
    for net in random_nets(space_of(parse({"name": "mine"}, "mine")), 4, seed=3):
        model = Net(3, 10, **net)
        assert receptive_field_of(trace_model(model, (32, 32), 3)).arithmetic == receptive_field(net, net["kinds"])


FIRST = Result(0, {}, 1000, 9, 0.60, 0.60, True)


def other(accuracy: float, rung: int = 9) -> Result:
    return dataclasses.replace(FIRST, number=1, rung=rung, accuracy=accuracy, score=accuracy, is_first=False)


def test_a_lead_that_may_be_luck_does_not_count() -> None:
    assert best([], 10) is None
    assert best([FIRST, other(0.65)], 20) is FIRST  # one image of 20
    assert best([FIRST, other(0.65)], 2000).number == 1
    assert best([FIRST, other(0.80)], 20).number == 1
    assert best([FIRST, other(0.99, rung=3)], 2000) is FIRST  # which has not been trained for as long
    assert best([dataclasses.replace(FIRST, rung=1), other(0.5, rung=3)], 20).number == 1
    assert best([dataclasses.replace(FIRST, accuracy=0.0, score=0.0), other(1.0)], 6).number == 1


ABOUT = {"data": {"classes": ["a", "b"]}, "limits": {"max_parameters": 5}}
KNOWN = [{"x": 0.25}, {"x": 0.75}]


def test_a_study_is_about_one_thing(place: str) -> None:
    open_study(place, ABOUT, 2.0)
    again = open_study(place, ABOUT, 7.0)
    assert again.user_attrs["unit"] == 2.0
    with pytest.raises(InputError, match="is about other limits: pass another --study"):
        open_study(place, {**ABOUT, "limits": {"max_parameters": 6}}, 2.0)


def test_known_networks_come_first_and_lost_ones_again(place: str) -> None:
    study = open_study(place, ABOUT, 1.0)
    trial = next_trial(study, KNOWN)
    assert trial.suggest_float("x", 0, 1) == 0.25
    gone = multiprocessing.get_context("spawn").Process()
    gone.start()
    gone.join()
    trial.set_user_attr("process", [socket.gethostname(), gone.pid])  # as if a process that was killed had asked
    second = next_trial(open_study(place, ABOUT, 1.0), KNOWN)
    assert second.suggest_float("x", 0, 1) == 0.75
    third = next_trial(study, KNOWN)
    assert third.suggest_float("x", 0, 1) == 0.25 and third.user_attrs["known"] == 0
    give_back(study, third)
    fourth = next_trial(study, KNOWN)
    assert fourth.suggest_float("x", 0, 1) == 0.25 and fourth.user_attrs["process"][1] == os.getpid()
    states = [one.state for one in study.get_trials()]
    assert states.count(TrialState.FAIL) == 2 and states.count(TrialState.RUNNING) == 2
    assert results(study) == []


def test_no_two_take_the_same_network(place: str) -> None:
    known = [{"x": number / 20} for number in range(20)]
    next_trial(open_study(place, ABOUT, 1.0), known)
    together = threading.Barrier(4)

    def take() -> list[int]:
        study = open_study(place, ABOUT, 1.0)  # a connection of its own, as a process has
        together.wait(60)
        return [next_trial(study, known).number for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        taken = [number for one in [pool.submit(take) for _ in range(4)] for number in one.result(60)]
    assert len({*taken}) == 20


def test_only_the_best_third_goes_on(tmp_path: Path) -> None:
    study = open_study(str(tmp_path / "s"), ABOUT, 1.0)
    goes_on = []
    for accuracy in (0.5, 0.4, 0.6, 0.3, 0.55):
        trial = study.ask()
        trial.report(accuracy, 1)
        goes_on.append(not trial.should_prune())
        study.tell(trial, state=TrialState.PRUNED)
    assert goes_on == [True, False, True, False, False]


def test_a_place_that_is_no_study_is_refused(tmp_path: Path) -> None:
    database, text = tmp_path / "other.sqlite", tmp_path / "text"
    with sqlite3.connect(database) as connection:
        connection.execute("CREATE TABLE grades (id INTEGER)")
    connection.close()
    text.write_text("not a database, and long enough to be seen as one " * 50)
    for place, words in (
        (database, "is a database, but not a study"),
        (text, "file is not a database"),
        ("/proc/none/study", "cannot write"),
        ("redis://host", "no other kind of address"),
        (tmp_path, "not a regular file"),
    ):
        with pytest.raises(InputError, match=words):
            open_study(str(place), ABOUT, 1.0)
    with sqlite3.connect(database) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("grades",)]
    connection.close()


def test_a_database_that_does_not_answer_is_refused_without_its_password() -> None:
    with pytest.raises(InputError, match="cannot use the study postgresql://") as refused:
        open_study("postgresql://ada:secret@127.0.0.1:1/study", ABOUT, 1.0)
    assert "secret" not in str(refused.value) and "\n" not in str(refused.value)
