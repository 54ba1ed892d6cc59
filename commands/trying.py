"""The networks that `fit` tries: each is checked, trained for a short time, the better ones for longer, the best one to the end."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from config import InputError, TrainConfig
from images.data import ImageDataset, Split, statistics, stratified_split
from learning import checkpoint
from learning.fitting import AVERAGED_SHARE, MIN_STEPS, demand_fits, fit_to_data
from learning.history import Observer, Observers, Training
from learning.last_epochs import LastEpochs, count_kept
from learning.log import Log
from learning.search import Space
from learning.study import RUNGS, Result, best, give_back, next_trial, open_study, results, score, told
from limits.assignments import Assignment
from model import Net
from training import Diverged, Trainer
from utils import network_card, seed_everything

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial
    from torch import Tensor

SHORTEST = 60
"""The shortest runs take one in so many parts of the search, but not less than LEAST_UNIT seconds."""
LEAST_UNIT = 0.5
PROBE = 6
"""Steps by which the time of a step is known before a run."""
LEAST_STEPS = 10
"""Of a run that says anything."""
FEW = 2000
"""Validation images that rank the candidates, at most; the final training has all of them."""
EVALUATIONS = 20
"""Of the final training, unless they would take more than a tenth of it."""
MARGIN = 0.95
"""Share of the time that the final training is planned for: not all steps take the same time."""
MOST_EPOCHS = 300
"""Of any training, or MOST_STEPS steps where these are more: further passes over few images bring nothing."""
MOST_STEPS = 10 * MIN_STEPS
PATIENCE = 40
"""Networks that may fail the limits, without one that satisfies them, before it is said that there is none."""


class Clock(Observer):
    """When each step ended; and a bar that moves on with the time."""

    def __init__(self, bar: tqdm | None = None) -> None:
        self.times: list[float] = []
        self.bar = bar

    def trained(self, trainer: Training, inputs: Tensor) -> None:
        self.times.append(time.monotonic())
        if self.bar is not None:
            self.bar.update(min(self.bar.format_dict["elapsed"], self.bar.total) - self.bar.n)

    @property
    def step_seconds(self) -> float:
        """Mean seconds of two or more steps; the first ones, which prepare what all use, do not count."""
        first = min(2, len(self.times) - 2)
        return (self.times[-1] - self.times[first]) / (len(self.times) - 1 - first)


@dataclass
class Run:
    """A finished training."""

    trainer: Trainer
    step_seconds: float
    rest_seconds: float
    """What it took besides its steps: two evaluations on the validation images, most of all."""

    @property
    def score(self) -> float:
        """What candidates are ranked by."""
        history = self.trainer.history
        return score(history.val_accuracy, history.evaluations[-1].val_loss)


class Candidates:
    """The search on `dataset`, and the training of the best network that it finds.

    `config` is how all are trained, but for what `rules` and the size of the data ask for. Raises InputError where the data do not
    suffice, or where no network of model.Net is what `rules` demand.
    """

    def __init__(self, dataset: ImageDataset, rules: Assignment, config: TrainConfig) -> None:
        if (rules.last_epochs or 0) > MOST_EPOCHS:
            raise InputError(f"{rules.name} judges the last {rules.last_epochs:,} epochs, but fit trains for {MOST_EPOCHS} at most")
        self.whole, self.rules = dataset, rules
        fitted = fit_to_data(replace(config, steps=MIN_STEPS, ema_decay=0.0), dataset)
        self.config = replace(demanded(fitted, rules), ema_decay=config.ema_decay)
        demand_fits(self.config, dataset)
        train, val = dataset.train, dataset.val
        if val is None and self.config.val_images:
            train, val = stratified_split(train, self.config.val_images, self.config.seed)  # as the Trainer does
        self.val = val or train
        few = stratified_split(self.val, FEW, self.config.seed)[1] if len(self.val.labels) > FEW else self.val
        self.searched = replace(dataset, train=train, val=few)
        mean, std = statistics(train.images)
        self.normalisation = {"mean": list(mean), "std": list(std)}
        self.steps_per_epoch = len(train.labels) // self.config.batch_size
        self.space = Space(rules, dataset.num_channels, dataset.num_classes, dataset.image_size)
        self.bar: tqdm | None = None

    @property
    def about(self) -> dict[str, Any]:
        """What a study of these candidates is about: of two studies that differ in it, the accuracies cannot be compared."""
        return {
            "data": self.whole.content() | {"classes": list(self.whole.classes)},
            "limits": self.rules.limits,
            "validation images (--seed)": self.config.seed,
        }

    def search(self, place: str, ends: float, share: float) -> Result:
        """Try candidates for a share of the time that is left until `ends` on the monotonic clock; the best one of the study.

        The length of the runs follows from that time, but in a study that is continued. Raises InputError as `open_study` does, and
        where no network within the limits is found.
        """
        began, whole = time.monotonic(), ends
        ends = began + share * (ends - began)
        study = open_study(place, self.about, max(LEAST_UNIT, (ends - began) / SHORTEST))
        if there := len(results(study)):
            tried = f"{there} networks have" if there > 1 else "one network has"
            print(f"note: going on with a study in which {tried} been tried", file=sys.stderr)
        unit, refused, reasons = study.user_attrs["unit"], 0, ""
        layout = "{l_bar}{bar}| {n:.0f} of {total:.0f} s{postfix}"
        with told(place), tqdm(total=max(0.0, ends - time.monotonic()), bar_format=layout, disable=None, leave=False) as self.bar:
            while ends - time.monotonic() > unit or not results(study):
                trial = next_trial(study, self.space.known())
                try:
                    reasons = self._try(study, trial, unit, ends)
                except BaseException:
                    give_back(study, trial)
                    raise
                if reasons:
                    refused += 1
                    self._write(f"network {trial.number} is left out: {reasons}")
                if (refused == PATIENCE or reasons and time.monotonic() > whole) and not results(study):
                    raise InputError(
                        f"none of {refused} networks satisfies the assignment {self.rules.name}; the last one: {reasons}"
                    )
        found = self.best(study)
        assert found
        return found

    def best(self, study: Study) -> Result | None:
        """The best candidate of a study so far."""
        return best(results(study), len(self.searched.val.labels) if self.searched.val else 0)

    def train(self, net: dict[str, Any], ends: float, out: Path) -> Run:
        """Train this network for as many steps as it can make until `ends` on the monotonic clock, the test split included.

        Writes a log to `out`.
        """
        whole = replace(self.searched, val=self.val)
        probe = self._run(net, 2 * PROBE, whole)
        one = probe.rest_seconds / 2  # evaluation
        test = one * len(self.whole.test.labels) / len(self.val.labels)
        left = MARGIN * (ends - time.monotonic()) - test
        if self.rules.last_epochs:  # they are shown by an evaluation after each epoch
            evaluations, step_seconds = 0, probe.step_seconds + one / self.steps_per_epoch
            left -= self.rules.last_epochs * test
        else:
            evaluations, step_seconds = max(1, min(EVALUATIONS, int(left / 10 / one) if one else EVALUATIONS)), probe.step_seconds
        left -= (evaluations + 2) * one  # two more choose the weights
        if self.rules.seconds:
            left = min(left, MARGIN * self.rules.seconds - evaluations * one - probe.rest_seconds)
        steps = self._capped(left / step_seconds)
        print(f"training it for {steps:,} steps ({steps / self.steps_per_epoch:.3g} epochs)", flush=True)
        return self._run(net, steps, self.whole, out, max(1, steps // evaluations) if evaluations else self.steps_per_epoch)

    def resume(self, out: Path) -> Run:
        """Go on with a final training from the checkpoint in `out`. Raises InputError where it is no `fit` of these data."""
        kept = checkpoint.read(out / "checkpoint.pt")
        card = kept["card"]
        if card.get("preset") != "fit":
            raise InputError(f"{out} holds a run of another command than fit: pass another --out")
        checkpoint.demand_same_images(out / "checkpoint.pt", card, self.whole.content())
        known = {each.name for each in fields(TrainConfig)}
        config = TrainConfig(**{name: value for name, value in kept["config"].items() if name in known})
        self.normalisation = {"mean": card["mean"], "std": card["std"]}
        return self._trained(card["net"], config, self.whole, out, is_resumed=True)

    def train_shortly(self, net: dict[str, Any], seconds: float, before: Run | None = None) -> Run:
        """Train this network for about so many seconds, as all candidates are; an earlier run says how long a step of it takes."""
        before = before or self._run(net, PROBE, self.searched, is_probe=True)
        rest = min(before.rest_seconds, seconds / 2)
        return self._run(net, self._capped((seconds - rest) / before.step_seconds), self.searched)

    def _try(self, study: Study, trial: Trial, unit: float, ends: float) -> str:
        """Check and train the candidate of `trial`, and tell the study; returns what it fails of the limits."""
        from optuna.trial import TrialState

        candidate = self.space.repaired(self.space.suggest(trial))
        if candidate.failed:
            trial.set_user_attr("refused", candidate.reasons)
            study.tell(trial, state=TrialState.FAIL)
            return candidate.reasons
        trial.set_user_attr("net", candidate.net)
        trial.set_user_attr("parameters", self.space.parameters(candidate.net))
        is_first = trial.user_attrs.get("known") == 0
        state = TrialState.COMPLETE
        run: Run | None = None
        trained = 0.0
        try:
            for rung in RUNGS:
                if run and ends - time.monotonic() < unit * rung:
                    break  # no time for a longer one
                run, trained = self.train_shortly(candidate.net, unit * rung, run), unit * rung
                trial.report(run.score, rung)
                trial.set_user_attr("accuracy", run.trainer.history.val_accuracy)
                if rung < RUNGS[-1] and not is_first and trial.should_prune():
                    state = TrialState.PRUNED
                    break
        except Diverged as error:  # any other fault is of the data or the settings, and so of all networks
            study.tell(trial, state=TrialState.FAIL)
            return str(error)
        assert run
        study.tell(trial, run.score if state == TrialState.COMPLETE else None, state)
        self._say(study, trial, run, trained, ends)
        return ""

    def _say(self, study: Study, trial: Trial, run: Run, seconds: float, ends: float) -> None:
        leader, left = self.best(study), max(0.0, ends - time.monotonic())
        assert leader
        line = (
            f"network {trial.number}: {run.trainer.history.val_accuracy:.1%} after {seconds:.3g} s of training, "
            f"{trial.user_attrs['parameters']:,} parameters; the best of the longest runs is {leader.number} with "
            f"{leader.accuracy:.1%}; {left:.0f} s of the search are left"
        )
        if self.bar is not None:
            self.bar.set_postfix_str(f"best: {leader.accuracy:.1%}", refresh=False)
        self._write(line)

    def _write(self, line: str) -> None:
        """Print a line above the bar."""
        if self.bar is not None:
            self.bar.write(line)
            sys.stdout.flush()

    def _capped(self, steps: float) -> int:
        """As many steps as bring something, and as the assignment allows."""
        epochs = max(MOST_EPOCHS, MOST_STEPS / self.steps_per_epoch)
        epochs = min(epochs, self.rules.max_epochs or epochs)
        return max(min(LEAST_STEPS, int(epochs * self.steps_per_epoch)), min(int(steps), int(epochs * self.steps_per_epoch)), 1)

    def _run(
        self,
        net: dict[str, Any],
        steps: int,
        dataset: ImageDataset,
        out: Path | None = None,
        eval_every: int = 0,
        is_probe: bool = False,
    ) -> Run:
        """Train a network of these arguments for `steps`; with `out`, the final one, on all there is."""
        epochs = steps / self.steps_per_epoch
        config = replace(
            self.config,
            steps=steps,
            eval_every=eval_every or steps,
            checkpoint_every=eval_every,
            ema_decay=min(self.config.ema_decay, max(0.0, 1 - AVERAGED_SHARE / steps)),
        )
        if self.rules.peak_epoch and self.rules.peak_epoch < epochs:
            config = replace(config, pct_start=self.rules.peak_epoch / epochs)
        if is_probe and dataset.val:
            few = slice(0, self.config.batch_size)
            dataset = replace(dataset, val=Split(dataset.val.images[few], dataset.val.labels[few]))
        return self._trained(net, config, dataset, out)

    def _trained(
        self, net: dict[str, Any], config: TrainConfig, dataset: ImageDataset, out: Path | None, is_resumed: bool = False
    ) -> Run:
        seed_everything(config.seed)
        model = Net(dataset.num_channels, dataset.num_classes, **net)
        card = dict(self.normalisation)
        clock: Clock = Clock(None if out else self.bar)
        observer: Observer = clock
        if out:
            card |= network_card(model, dataset.num_channels, dataset.image_size, net, preset="fit", data=dataset.content())
            count = self.rules.last_epochs or (count_kept(out) if is_resumed else 0)
            last = [LastEpochs(out, count)] if count else []
            observer = Observers(clock, Log(out), *last)
        bar = None if out else tqdm(disable=True)
        began = time.monotonic()
        trainer = Trainer(model, dataset, config, out, card=card, observer=observer, progress=bar)
        trainer.fit(is_resumed)
        took = time.monotonic() - began
        pace = clock.step_seconds if len(clock.times) > 1 else took  # of a single step, no more is known
        return Run(trainer, pace, max(0.0, took - pace * len(clock.times)))


def demanded(config: TrainConfig, rules: Assignment) -> TrainConfig:
    """`config` with what the assignment demands of a training, but for its length and its peak."""
    if rules.batch_size:
        draw = math.gcd(config.images_per_draw, rules.batch_size)
        config = replace(config, batch_size=rules.batch_size, images_per_draw=draw)
    wanted = rules.augmentation
    return replace(
        config,
        flip=config.flip or wanted.flip,
        shift_scale_rotate=config.shift_scale_rotate or wanted.shift_scale_rotate,
        hole=wanted.hole or config.hole,
    )
