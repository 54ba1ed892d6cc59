"""What students are told of an assignment: its demands on their network, the limits of the training, deadline and points."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator

from limits.assignments import Assignment, Course, Demands

DAY = datetime.timedelta(days=1)


def demands(rules: Assignment) -> list[str]:
    """What it demands of a network, a line each as its file says it."""
    named = {*Demands.model_fields, "blocks", "layers_per_block"}
    shown = rules.model_dump(include=named, exclude_defaults=True, mode="json")
    return [f"{name}: {json.dumps(value)}" for name, value in shown.items()]


def terms(rules: Assignment) -> Iterator[str]:
    """What it demands of a training, and how that is graded, in sentences."""
    limits = [f"within {rules.seconds:g} s"] if rules.seconds else []
    limits += [f"at most {rules.max_epochs:g} epochs"] if rules.max_epochs else []
    if rules.target_accuracy:
        yield f"Target: {', '.join([f'more than {100 * rules.target_accuracy:.4g}% test accuracy', *limits])}."
    elif limits:
        yield f"Limits: {', '.join(limits)}."
    if rules.dataset:  # the name of a file says what it is
        yield f"Data set: {'one that you do not see' if ':' in rules.dataset else rules.dataset}."
    if not rules.course:
        return
    runs = "one run" if rules.course.repeats == 1 else f"the median of {rules.course.repeats} runs"
    yield f"Score: the seconds of the training, {runs}."
    yield (
        f"Points: {rules.course.points:g} for the target, "
        f"{rules.course.constraint_points:g} for the demands on the network in equal parts."
    )


def schedule(course: Course) -> str:
    """The deadline, and what becomes of what is late, in sentences; "" where there is none."""
    if course.deadline is None:
        return ""
    ends = course.deadline + course.late_days * DAY
    if is_closed(course):
        return f"The deadline was {moment(ends)}: nothing is taken any more."
    if not course.late_days:
        return f"Deadline: {moment(ends)}."
    begins = "The deadline was" if is_late(course) else "Deadline:"
    cost = f"Each day that has begun costs {course.late_penalty:g}% of the points. " if course.late_penalty else ""
    late = f"Late submissions are taken until {moment(ends)}. {cost}None of them has a place on the board."
    return f"{begins} {moment(course.deadline)}. {late}"


def is_late(course: Course) -> bool:
    """Whether the deadline is over."""
    return course.deadline is not None and datetime.datetime.now(datetime.timezone.utc) > course.deadline


def is_closed(course: Course) -> bool:
    """Whether nothing is taken any more, not even what is late."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return course.deadline is not None and now > course.deadline + course.late_days * DAY


def moment(when: datetime.datetime) -> str:
    """As 2026-12-01 18:00 UTC+01:00."""
    return f"{when:%Y-%m-%d %H:%M} {when.tzinfo}"
