"""The command that measures the runtimes, and the tables, the plot and the words of docs/runtimes.md."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from config import InputError
from lab.common.quick import demand_whole, load
from lab.common.statements import judge, span
from lab.measurements.jobs import BASE, Job, Precision, Result
from learning.presets import get_preset
from results.documents import measured_on, replace_between
from utils import ROOT, provenance, resolve_precision, write_json

if TYPE_CHECKING:
    from images.sources import ImageDataset

PAGE = ROOT / "docs" / "runtimes.md"
RECORD = ROOT / "docs" / "records" / "runtimes.json"
MARKERS = "<!-- runtimes -->", "<!-- /runtimes -->"
EPOCHS = 25
NOISE = 0.05  # of a speed: processes of the same work differ so much
COLOURS = {
    ("fp32", "NCHW"): "#9ecae1",
    ("fp32", "channels_last"): "#0072b2",
    ("bf16", "NCHW"): "#f4b183",
    ("bf16", "channels_last"): "#d55e00",
}


@dataclass
class Runtimes:
    """Compare the network as it is, compiled, traced, scripted and exported: first call, speed, exactness, memory.

    By precision (fp32, and bf16 where the processor has it) and memory layout, training and inference, on the CPU, and on the GPU
    where there is one. Takes about eight minutes on two cores.
    """

    preset: str = "sprint"
    """Preset of the network."""
    dataset: str = "auto"
    """cifar10, cifar100, mnist, fashion_mnist, digits, shapes, folder:PATH or npz:FILE; the times do not depend on it."""
    data_dir: Path = ROOT / "data"
    """Folder that holds the data sets; missing public ones are downloaded to it."""
    batch_size: int = 128
    """Images a call."""
    rounds: int = 7
    """How often each runtime is timed, over a quarter of a second or more."""
    quick: bool = False
    """One precision and layout, two rounds, no compiled training, on shapes."""
    docs: bool = False
    """Put tables, words and plot into docs/runtimes.md."""

    def run(self) -> int:
        demand_whole(self.quick, self.docs)
        get_preset(self.preset)
        if self.batch_size < 1 or self.rounds < 1:
            raise InputError("--batch-size and --rounds must be 1 or more")
        import torch

        accelerator = torch.accelerator.current_accelerator(check_available=True)
        devices = ["cpu", *([accelerator.type] if accelerator and not self.quick else [])]
        dataset = load(self.dataset, self.quick, self.data_dir)
        if self.batch_size > len(dataset.test.labels):
            raise InputError(f"--batch-size is {self.batch_size}: {dataset.name} has {len(dataset.test.labels)} test images")
        show(self.preset, dataset, devices, self.batch_size, 2 if self.quick else self.rounds, self.quick, self.docs)
        return 0


def base_of(result: Result, results: list[Result]) -> Result:
    """The base with the same work, precision, layout and device."""
    return next(r for r in results if r.job == replace(result.job, variant=BASE))


def differ(a: Result, b: Result) -> bool:
    """Whether the speeds differ by more than their spread over the rounds, in which both were timed by turns, and by more than
    NOISE, which a few rounds do not show."""
    return judge(a.images_per_second, b.images_per_second, floor=NOISE * min(a.median, b.median)).is_clear


def pays_after(result: Result, base: Result) -> float | None:
    """Images after which the dearer first call is made up for by the faster steady ones; None for never, or where the
    speeds do not differ."""
    saved = 1 / base.median - 1 / result.median
    return max(0.0, (result.first_call - base.first_call) / saved) if saved > 0 and differ(result, base) else None


def table(results: list[Result], images: int) -> str:
    """A Markdown table of the results of one work on one device; `images` make an epoch."""
    training = results[0].job.work == "training"
    heads = [
        "runtime",
        "precision",
        "layout",
        "first call",
        "images/s: median (min to max)",
        "times base",
        *([f"{EPOCHS} epochs", "pays after"] if training else ["pays after"]),
        f"difference of the {'loss' if training else 'logits'}",
        "peak memory",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * 3 + "|--:" * (len(heads) - 3) + "|"]
    for result in results:
        job, base = result.job, base_of(result, results)
        if result.failed:
            cells = [f"left out: {result.failed.replace('|', '/')}", *[""] * (len(heads) - 4)]
        else:
            rates = result.images_per_second
            cells = [
                f"{result.first_call:.2f} s",
                f"{result.median:,.0f} ({min(rates):,.0f} to {max(rates):,.0f})",
                f"{result.median / base.median:.2f}" if base.images_per_second else "",
            ]
            if training:
                cells.append(f"{result.first_call + EPOCHS * images / result.median:,.0f} s")
            cells += [
                _when(result, base, images),
                f"{result.difference:.1e}" if result.difference else "0",
                f"{result.peak_memory / 1e6:,.0f} MB" if result.peak_memory else "",
            ]
        lines.append(f"| {' | '.join([job.variant, job.precision, job.layout, *cells])} |")
    return "\n".join(lines)


def _when(result: Result, base: Result, images: int) -> str:
    if result is base or not base.images_per_second:
        return ""
    after = pays_after(result, base)
    if after is None:
        return "never" if differ(result, base) else "as fast"
    return f"{after / images:,.1f} epochs" if result.job.work == "training" else f"{after:,.0f} images"


def in_words(results: list[Result], images: int) -> str:
    """What the tables show: the fastest base, and when compiling pays."""
    paragraphs = []
    for device, work in dict.fromkeys((r.job.device, r.job.work) for r in results):
        done = [r for r in results if (r.job.device, r.job.work) == (device, work) and r.images_per_second]
        bases = [r for r in done if r.job.variant == BASE]
        if not bases:
            continue
        best, fastest = max(bases, key=lambda r: r.median), max(done, key=lambda r: r.median)
        slowest = min(bases, key=lambda r: r.median)
        start = f"**{work.capitalize()} on {device}.** The base"
        if differ(best, slowest):
            sentences = [
                f"{start} is fastest in {best.job.precision}, {best.job.layout}: {best.median:,.0f} images a second, "
                f"{best.median / slowest.median:.1f} times as many as in {slowest.job.precision}, {slowest.job.layout}."
            ]
        else:
            forms = " or ".join(f"{r.job.precision}, {r.job.layout}" for r in bases)
            sentences = [
                f"{start} computes {best.median:,.0f} images a second in {forms}"
                + ("." if len(bases) == 1 else "; none of these is clearly faster.")
            ]
        compiled = [(r, base_of(r, done)) for r in done if r.job.variant.startswith("torch.compile")]
        pays = [(r, after) for r, base in compiled if (after := pays_after(r, base)) is not None]
        if compiled and not pays:
            factors = [r.median / base.median for r, base in compiled]
            sentences.append(
                f"Compiling never pays here: the compiled network runs at {span(factors, '.2f')} times the base's speed."
            )
        elif compiled:
            r, after = min(pays, key=lambda pair: pair[1])
            when = f"{after / images:,.1f} epochs of {images:,} images" if work == "training" else f"{after:,.0f} images"
            sentences.append(
                f"Compiling pays in {len(pays)} of {len(compiled)} cases. {r.job.variant} in {r.job.precision}, {r.job.layout} "
                f"pays soonest: after {when}, with a first call of {r.first_call:.0f} s."
            )
        sentences.append(
            f"{fastest.job.variant} in {fastest.job.precision}, {fastest.job.layout} is the fastest of all: "
            f"{fastest.median / best.median:.2f} times the speed of the fastest base."
            if differ(fastest, best)
            else "No runtime is clearly faster than the fastest base."
        )
        paragraphs.append(" ".join(sentences))
    return "\n\n".join(paragraphs)


def words_and_tables(results: list[Result], images: int, batch_size: int) -> str:
    """The Markdown of the page: `in_words`, then a table for each work on each device; `images` make an epoch."""
    parts = [in_words(results, images)]
    for device, work in dict.fromkeys((r.job.device, r.job.work) for r in results):
        parts.append(
            f"### {work.capitalize()} on {device}, batches of {batch_size}\n\n"
            + table([r for r in results if (r.job.device, r.job.work) == (device, work)], images)
        )
    return "\n\n".join(parts)


def plot(results: list[Result], path: Path) -> None:
    """Images a second by variant, as a PNG: one panel for each work and device, bars from zero, min to max as a line."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import StrMethodFormatter

    panels = list(dict.fromkeys((r.job.device, r.job.work) for r in results))
    variants = list(dict.fromkeys(r.job.variant for r in results))
    forms = list(dict.fromkeys((r.job.precision, r.job.layout) for r in results))
    figure = Figure(figsize=(10, 4.8 * ((len(panels) + 1) // 2)), layout="constrained")
    grid = figure.subplots((len(panels) + 1) // 2, min(2, len(panels)), squeeze=False, sharey=True)
    height = 0.8 / len(forms)
    for axes, (device, work) in zip(grid.flat, panels, strict=False):
        for k, form in enumerate(forms):
            done = {
                r.job.variant: r
                for r in results
                if (r.job.device, r.job.work) == (device, work) and (r.job.precision, r.job.layout) == form and r.images_per_second
            }
            at = [variants.index(variant) + (k - (len(forms) - 1) / 2) * height for variant in done]
            medians = [r.median for r in done.values()]
            errors = [
                [r.median - min(r.images_per_second) for r in done.values()],
                [max(r.images_per_second) - r.median for r in done.values()],
            ]
            axes.barh(
                at,
                medians,
                height,
                xerr=errors,
                color=COLOURS[form],
                label=", ".join(form),
                error_kw={"linewidth": 1, "ecolor": "#333333"},
            )
        axes.set(title=f"{work} on {device}", xlabel="images per second", yticks=range(len(variants)), yticklabels=variants)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0, 0].invert_yaxis()
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(forms))
    figure.savefig(path, dpi=110)


def show(preset: str, dataset: ImageDataset, devices: list[str], batch_size: int, rounds: int, quick: bool, docs: bool) -> None:
    """Measure, print and, with `docs`, rewrite PAGE and its plot."""
    import torch

    from lab.measurements.runtimes import BUILD, LAYOUTS, measure

    jobs = []
    for device in devices:
        native = resolve_precision("auto", torch.device(device))
        precisions: list[Precision] = ["fp32", "bf16"] if native == torch.bfloat16 else ["fp32"]
        for work in ("training", "inference"):
            for precision in precisions[-1:] if quick else precisions:
                for layout in ("channels_last",) if quick else LAYOUTS:
                    jobs += [
                        Job(variant, work, precision, layout, device, batch_size)
                        for variant in BUILD
                        if not (quick and variant.startswith("torch.compile") and (work == "training" or "," in variant))
                    ]
    results = measure(get_preset(preset), dataset, jobs, rounds)
    images = len(dataset.train.labels)
    text = words_and_tables(results, images, batch_size)
    print(text)
    if quick:
        print("\nwith --quick: one precision, one layout, and no compiled training or max-autotune")
    if docs:
        write_json(
            RECORD,
            {
                "preset": preset,
                "dataset": dataset.name,
                "batch_size": batch_size,
                "epoch_images": images,
                "results": [{name: value for name, value in asdict(r).items() if name != "output"} for r in results],
                **provenance(),
            },
        )
        plot(results, PAGE.with_suffix(".png"))
        replace_between(
            PAGE,
            MARKERS,
            f"{text}\n\nThe network of the preset `{preset}` on {dataset.name}, {rounds} rounds of a "
            f"quarter of a second; all of them are in `records/runtimes.json`. {measured_on()}",
        )
