"""The study of a `fit`: the networks that were tried and how well they did, in a file or in PostgreSQL, for several processes."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import InputError
from utils import demand_regular_file

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial, Trial
    from sqlalchemy.engine import Engine

NAME = "fit"
SCHEMES = ("postgresql://", "postgres://")
RUNGS = (1, 3, 9)
"""Lengths of the runs of a candidate, in units of the shortest one; only the best third of those that made one makes the next."""
REDUCTION = 3
RANDOM_TRIALS = 8
"""Candidates before the sampler (TPE, Bergstra et al. 2011) has seen enough to prefer some."""
LOST_AFTER = 1800
"""Seconds after which the candidate of another machine that is heard of no more is tried again."""


@dataclass(frozen=True)
class Result:
    """How well a candidate did."""

    number: int
    """That of its trial."""
    net: dict[str, Any]
    """Arguments of model.Net besides the channel and class counts."""
    parameters: int
    rung: int
    """Length of its longest run, one of RUNGS."""
    accuracy: float
    """Validation accuracy of that run, 0 to 1."""
    score: float
    """The same less a thousandth of the loss, which tells candidates of equal accuracy apart."""
    is_first: bool
    """Whether it is the default preset's network."""


def score(accuracy: float, loss: float) -> float:
    """What candidates are ranked by; `accuracy` from 0 to 1, `loss` in nats."""
    return accuracy - min(loss, 10.0) / 1000


def open_study(place: str, about: dict[str, Any], unit: float) -> Study:
    """The study at `place`, a file or postgresql://USER@HOST/DATABASE, made where there is none yet.

    `about` says what limits and what data it is for, `unit` how many seconds its shortest runs take: a study that is there keeps
    its own. Raises InputError where Optuna is missing, the place cannot be used, or its study is about something else.
    """
    demand_optuna()
    import optuna
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    url, name = _address(place)
    options: dict[str, Any] = {"connect_args": {"timeout": 60} if url.startswith("sqlite") else {"connect_timeout": 10}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna says of some of its parts that they are experimental
        sampler = optuna.samplers.TPESampler(n_startup_trials=RANDOM_TRIALS, multivariate=True)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=RUNGS[0], reduction_factor=REDUCTION)
    with told(place):
        _demand_study(url, name, options)
        for attempt in range(5):
            try:
                storage = optuna.storages.RDBStorage(url, engine_kwargs={**options, "pool_pre_ping": True})
                if url.startswith("sqlite"):
                    _lock_at_begin(storage.engine)
                study = optuna.create_study(
                    storage=storage, sampler=sampler, pruner=pruner, study_name=NAME, direction="maximize", load_if_exists=True
                )
                break
            except (SQLAlchemyError, StorageInternalError):  # another process makes the same tables at the same time
                if attempt == 4:
                    raise
                time.sleep(0.2 * (attempt + 1))
    kept = study.user_attrs
    if "about" not in kept:
        study.set_user_attr("unit", unit)
        study.set_user_attr("about", about)
    else:
        differ = [what for what in about if kept["about"].get(what) != about[what]]
        if differ:
            raise InputError(
                f"the study {name} is about other {' and '.join(differ)}: pass another --study; where you named none, "
                "--overwrite begins anew"
            )
    return study


def demand_optuna() -> None:
    """Raise InputError where Optuna is missing."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise InputError("fit requires Optuna: .venv/bin/pip install -r requirements-fit.txt") from error


@contextlib.contextmanager
def told(place: str) -> Iterator[None]:
    """What goes wrong with the study at `place` is an InputError, in one line without a password."""
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except ImportError as error:
        raise InputError("a study in PostgreSQL requires psycopg: .venv/bin/pip install -r requirements-postgres.txt") from error
    except (SQLAlchemyError, StorageInternalError) as error:
        reason = getattr(error, "orig", None) or getattr(error.__cause__, "orig", None) or error
        raise InputError(f"cannot use the study {name_of(place)}: {' '.join(str(reason).split())[:200]}") from error


def name_of(place: str) -> str:
    """`place` without a password."""
    return _address(place)[1]


def _address(place: str) -> tuple[str, str]:
    """SQLAlchemy's address of `place`, and its name without a password."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    if place.startswith(SCHEMES):
        try:
            url = make_url(place.replace("postgres://", "postgresql://", 1)).set(drivername="postgresql+psycopg")
        except (ArgumentError, ValueError) as error:
            raise InputError("cannot read the study's address: it is postgresql://USER:PASSWORD@HOST:PORT/DATABASE") from error
        return url.render_as_string(hide_password=False), url.set(drivername="postgresql", query={}).render_as_string()
    if "://" in place:
        raise InputError("a study is a file or postgresql://USER@HOST/DATABASE: no other kind of address works")
    path = Path(place)
    if path.exists():
        demand_regular_file(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab"):
            pass
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    return f"sqlite:///{path.resolve()}", str(path)


def _demand_study(url: str, name: str, options: dict[str, Any]) -> None:
    """Raise InputError where a database that is there holds something else."""
    from sqlalchemy import create_engine, inspect

    engine = create_engine(url, **options)
    try:
        tables = inspect(engine).get_table_names()
    finally:
        engine.dispose()
    if tables and not {"studies", "version_info"} & {*tables}:
        raise InputError(f"{name} is a database, but not a study: pass another --study")


def _lock_at_begin(engine: Engine) -> None:
    """Have each transaction in SQLite lock the file when it begins, not when it first writes.

    Optuna reads that a trial waits, then says that it runs. PostgreSQL locks the row that was read; SQLite has no such lock, and
    two processes took the same trial. The recipe is SQLAlchemy's ("Serializable isolation / Savepoints / Transactional DDL").
    """
    from sqlalchemy import event

    @event.listens_for(engine, "connect")
    def connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver then begins nothing of its own

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # of connections from before


def next_trial(study: Study, known: list[dict[str, Any]]) -> Trial:
    """The next candidate to try: what is `known` first, then what killed processes have left, then what the sampler proposes."""
    from optuna.trial import TrialState

    trials = study.get_trials(deepcopy=False)
    if not trials:
        for number, parameters in enumerate(known):
            study.enqueue_trial(parameters, user_attrs={"known": number}, skip_if_exists=True)
    for left in trials:
        if left.state == TrialState.RUNNING and _is_lost(left):
            give_back(study, left)
    trial = study.ask()
    trial.set_user_attr("process", [socket.gethostname(), os.getpid()])
    return trial


def give_back(study: Study, trial: Trial | FrozenTrial) -> None:
    """Have another process, or a later one, try the candidate of `trial` anew."""
    from optuna.trial import TrialState

    with contextlib.suppress(RuntimeError, ValueError):  # another process has done so
        study.tell(trial.number, state=TrialState.FAIL)
        kept = {name: value for name, value in trial.user_attrs.items() if name == "known"}
        study.enqueue_trial(trial.params, user_attrs=kept)


def _is_lost(trial: FrozenTrial) -> bool:
    host, process = trial.user_attrs.get("process", ("", 0))
    if host == socket.gethostname():
        if process == os.getpid():
            return False
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False
    return bool(trial.datetime_start) and time.time() - trial.datetime_start.timestamp() > LOST_AFTER  # type: ignore[union-attr]


def results(study: Study) -> list[Result]:
    """How well each candidate did that has made a run, in the order of their numbers."""
    found = []
    for trial in study.get_trials(deepcopy=False):
        if trial.intermediate_values and "net" in trial.user_attrs:
            rung = max(trial.intermediate_values)
            value, about = trial.intermediate_values[rung], trial.user_attrs
            accuracy = about.get("accuracy", value)  # a process that was killed may not have said it
            is_first = about.get("known") == 0
            found.append(Result(trial.number, _net(about["net"]), about["parameters"], rung, accuracy, value, is_first))
    return found


def best(found: list[Result], val_images: int) -> Result | None:
    """The best of those with the longest runs; None where there is none.

    Among `val_images` images, a lead over the default preset's network that is not above one standard error of the accuracy is
    taken for luck: that network is then the best.
    """
    if not found:
        return None
    longest = [result for result in found if result.rung == max(one.rung for one in found)]
    leader = max(longest, key=lambda result: result.score)
    for first in (result for result in longest if result.is_first):
        # At 0% and 100% the binomial deviation is 0: with one more image of each kind it is not.
        share = (first.accuracy * val_images + 1) / (val_images + 2)
        if leader.score - first.score <= math.sqrt(share * (1 - share) / val_images):
            return first
    return leader


def _net(kept: dict[str, Any]) -> dict[str, Any]:
    """The arguments of model.Net as they were before a study made lists of their tuples."""
    return {name: _tuples(value) for name, value in kept.items()}


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
