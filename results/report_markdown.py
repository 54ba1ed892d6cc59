"""The report of a training as Markdown, with its pictures beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from results.documents import escape, table

if TYPE_CHECKING:
    from results.notes import Placed, Section


def as_markdown(page: dict[str, Any]) -> str:
    """The page that the values `page` make in report.html.jinja. A student's own words are in it as they were written."""
    notes: Placed = page["notes"]
    history, target = page["history"], page["target"]
    parts = [f"# {escape(page['title'])}"]
    if page["author"]:
        parts.append(f"Author: {escape(page['author'])}")
    verdict = ""
    if target is not None:
        verdict = f"; the target of {100 * target:.4g}% was {'reached' if page['accuracy'] > target else 'missed'}"
    parts.append(f"{page['num_correct']:,} of {page['num_test']:,} test images classified correctly{verdict}.")
    figures = [("Test accuracy", f"{page['accuracy']:.2%}"), ("Time on the clock", f"{history.total_seconds:,.1f} s")]
    figures += [("Images seen", f"{history.images_seen:,}")]
    if page["parameters"] is not None:
        figures.append(("Parameters", f"{page['parameters']:,}"))
    figures.append(("Passes over the test split", f"{history.passes}"))
    parts.append(table(("figure", "value"), figures))
    parts += _words(notes.first)

    def section(title: str, *contents: str) -> None:
        own = notes.own.get(title)
        parts.extend([f"## {title}", *([own.source] if own and own.source else []), *contents])

    def picture(name: str, text: str) -> str:
        return f"![{escape(text)}]({name}.png)"

    section("Learning curves", picture("curves", page["curves_text"]), escape(page["curves_text"]))
    section("Confusion matrix", picture("confusion", page["confusion_text"]), escape(page["confusion_text"]))
    if page["augmented"]:
        section("Augmented images", picture("augmented", page["augmented_text"]), escape(page["augmented_text"]))
    scores = [
        (name, f"{recall:.1%}", f"{precision:.1%}", f"{f1:.1%}", f"{support:,}")
        for name, (precision, recall, f1, support) in zip(page["classes"], page["per_class"], strict=True)
    ]
    section("Per-class accuracy", table(("class", "recall", "precision", "F1", "images"), scores))
    section(
        "Most confident mistakes", picture("mistakes", "The most confident mistakes, each with the predicted and the true class")
    )
    if page["constraints"]:
        rows = [(one.name, one.verdict, one.value, one.limit) for one in page["constraints"]]
        named = [f"Assignment {escape(page['assignment'])}."] if page["assignment"] else []
        section(page["constraints_title"], *named, table(("constraint", "result", "value", "limit"), rows))
    if page["layers"]:
        section("Layers", table(("layer", "operation", "output", "receptive field"), page["layers"]))
    parts += _words(notes.last)
    section("Configuration", table(("option", "value"), page["configuration"]))
    section("Network", table(("entry", "value"), page["network"]))
    section("Environment", f"```\n{page['command']}\n```", table(("entry", "value"), page["environment"]))
    return "\n\n".join(parts) + "\n"


def _words(sections: Sequence[Section]) -> list[str]:
    return [part for one in sections for part in (f"## {one.heading}" if one.heading else "", one.source) if part]
