"""The runtimes: each trains and predicts as the base does, failures become rows, the words follow from the numbers."""

import json
import multiprocessing
import os
from dataclasses import replace

import pytest
import torch

import main
from conftest import ROOT, random_split, run_main
from images.sources import ImageDataset
from lab.measurements import runtimes, runtimes_page
from lab.measurements.jobs import BASE, Job, Result
from lab.measurements.runtimes import BUILD
from learning.presets import PRESETS

EAGER = [name for name in BUILD if "compile" not in name]
JOB = Job(BASE, "training", "fp32", "NCHW", "cpu", 64)


@pytest.fixture(scope="module")
def noise():
    return ImageDataset("noise", random_split(2000), random_split(100), tuple("abcdefghij"))


@pytest.fixture(scope="module")
def inputs(noise, tmp_path_factory):
    path = tmp_path_factory.mktemp("runtimes") / "inputs.pt"
    runtimes._save_inputs(PRESETS["sprint"], noise, 64, path)
    return torch.load(path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning", "ignore:.*deprecated:DeprecationWarning")
def test_every_runtime_takes_the_same_training_steps(inputs):
    losses = {}
    for variant in EAGER:
        step = runtimes._training(replace(JOB, variant=variant), inputs)
        losses[variant] = [step().item() for _ in range(4)]
    assert losses[BASE][-1] < losses[BASE][0]
    for variant in EAGER:
        assert losses[variant] == pytest.approx(losses[BASE], rel=1e-3), variant


@pytest.mark.parametrize("layout", ["NCHW", "channels_last"])
def test_inputs_have_the_layout(inputs, layout, monkeypatch):
    seen = []
    monkeypatch.setitem(BUILD, BASE, lambda network, images: seen.append((network, images)) or network)
    for work, prepare in (("training", runtimes._training), ("inference", runtimes._inference)):
        prepare(replace(JOB, work=work, layout=layout), inputs)()
    for network, images in seen:
        assert images.is_contiguous(memory_format=runtimes.LAYOUTS[layout])
        assert network.C2[0].conv.weight.is_contiguous(memory_format=runtimes.LAYOUTS[layout])


@pytest.mark.slow
def test_measure_runs_each_in_a_process_and_survives_a_failure(noise):
    jobs = [
        Job(variant, "inference", precision, "channels_last", "cpu", 64)
        for precision in ("fp32", "bf16")
        for variant in (BASE, "torch.jit.trace", "no such runtime")
    ]
    results = runtimes.measure(PRESETS["sprint"], noise, jobs, rounds=2)
    assert [r.job for r in results] == jobs
    for r in results:
        if r.job.variant == "no such runtime":
            assert r.failed == "KeyError: 'no such runtime'"
            assert not r.images_per_second
        else:
            assert not r.failed
            assert len(r.images_per_second) == 2
            assert len(r.output) == 64 * 10
            assert r.peak_memory > 50e6
    assert results[0].difference == 0
    assert results[1].difference < 1e-3
    assert 1e-3 < results[3].difference < 1  # bf16 against fp32
    assert not multiprocessing.active_children()


def test_a_process_that_dies_is_a_failure():
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=os._exit, args=(3,))
    process.start()
    theirs.close()
    result = Result(JOB)
    assert runtimes._ask(ours, process, result) is None
    assert result.failed == "the process ended with exit code 3"


def made_up(variant: str, rates: list[float], first_call: float = 0.0, **more) -> Result:
    return Result(replace(JOB, variant=variant, work=more.pop("work", "training")), first_call, rates, [1.0], **more)


def test_compiling_pays_after_what_it_saves():
    base, fast, slow = made_up(BASE, [100.0], 1.0), made_up("torch.compile", [200.0], 11.0), made_up("torch.export", [50.0])
    assert runtimes_page.pays_after(fast, base) == pytest.approx(2000)  # 10 s at 5 ms an image
    assert runtimes_page.pays_after(slow, base) is None
    assert runtimes_page.pays_after(made_up("torch.compile", [90.0, 104.0, 120.0], 2.0), base) is None  # within the spread


def test_table_and_words():
    results = [
        made_up(BASE, [90.0, 100.0, 110.0], peak_memory=500_000_000),
        made_up("torch.compile", [200.0], 10.0, difference=2e-6),
        made_up("torch.jit.script", [], failed="RuntimeError: a | b"),
    ]
    table = runtimes_page.table(results, images=1000).splitlines()
    assert len({line.count("|") for line in table}) == 1  # as many cells in each row
    assert "| 100 (90 to 110) | 1.00 | 250 s |  | 0 | 500 MB |" in table[2]
    assert "| 10.00 s | 200 (200 to 200) | 2.00 | 135 s | 2.0 epochs | 2.0e-06 |" in table[3]
    assert "left out: RuntimeError: a / b" in table[4]
    words = runtimes_page.in_words(results, images=1000)
    assert "Compiling pays in 1 of 1 cases" in words
    assert "after 2.0 epochs of 1,000 images" in words
    assert "Compiling never pays" in runtimes_page.in_words([results[0], made_up("torch.compile", [50.0], 10.0)], 1000)


def test_the_page_is_what_the_record_says():
    """Words and tables of docs/runtimes.md are those that the present code makes of its record."""
    record = json.loads(runtimes_page.RECORD.read_text())
    results = [Result(**each | {"job": Job(**each["job"])}) for each in record["results"]]
    text = runtimes_page.words_and_tables(results, record["epoch_images"], record["batch_size"])
    assert text in runtimes_page.PAGE.read_text(encoding="utf-8")


def test_quick_on_the_command_line(monkeypatch, capsys):
    """One precision, one layout, no compiled training; each job is a row."""
    asked = []

    def measure(preset: object, dataset: ImageDataset, jobs: list[Job], rounds: int) -> list[Result]:
        assert (dataset.name, rounds) == ("digits", 2)
        asked.extend(jobs)
        return [Result(job, 1.0, [100.0, 110.0], [1.0]) for job in jobs]

    monkeypatch.setattr(runtimes, "measure", measure)
    assert main.main(["lab", "runtimes", "--quick", "--dataset", "digits"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("| base", "| torch"))]
    assert len(rows) == len(asked) == 2 * len(EAGER) + 1
    assert len({(job.precision, job.layout, job.device, job.batch_size) for job in asked}) == 1
    assert [job.work for job in asked if "compile" in job.variant] == ["inference"]


@pytest.mark.slow  # that a failure becomes a row, and what --quick measures, is shown above
def test_quick_on_the_command_line_without_a_compiler(shapes_npz):
    """What torch cannot compile is left out with the reason; the rest is measured."""
    result = run_main("lab", "runtimes", "--quick", "--dataset", f"npz:{shapes_npz}", env=os.environ | {"CXX": "/no/compiler"})
    assert result.returncode == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if line.startswith(("| base", "| torch"))]
    assert len(rows) == 2 * len(EAGER) + 1
    assert all(("left out" in row) == row.startswith("| torch.compile") for row in rows)


def test_the_plot_and_the_page(tmp_path, monkeypatch, noise):
    results = [
        made_up(BASE, [90.0, 110.0]),
        made_up("torch.compile", [50.0, 60.0], 9.0),
        made_up(BASE, [300.0], work="inference"),
        made_up("torch.compile", [], work="inference", failed="no"),
    ]
    monkeypatch.setattr(runtimes, "measure", lambda *_: results)
    monkeypatch.setattr(runtimes_page, "PAGE", tmp_path / "runtimes.md")
    monkeypatch.setattr(runtimes_page, "RECORD", tmp_path / "runtimes.json")
    (tmp_path / "runtimes.md").write_text("\n".join(runtimes_page.MARKERS))
    runtimes_page.show("sprint", noise, ["cpu"], 64, 2, quick=False, docs=True)
    assert (tmp_path / "runtimes.png").stat().st_size > 5000
    assert "### Inference on cpu" in (tmp_path / "runtimes.md").read_text()
    record = json.loads((tmp_path / "runtimes.json").read_text())
    assert [result["images_per_second"] for result in record["results"]] == [r.images_per_second for r in results]


def test_the_shipped_page_has_every_runtime():
    page = (ROOT / "docs" / "runtimes.md").read_text()
    for variant in BUILD:
        assert page.count(f"| {variant} |") >= 8, variant  # two works, two precisions or reasons, two layouts


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "none"], ["unknown preset 'none'"]),
        (["--rounds", "0"], ["--rounds"]),
        (["--quick", "--docs"], ["--quick", "--docs"]),
        (["--dataset", "cifar11"], ["cifar10"]),
        (["--quick", "--dataset", "digits", "--batch-size", "5000"], ["--batch-size", "test images"]),
    ],
)
def test_bad_usage(arguments, words, capsys):
    assert main.main(["lab", "runtimes", *arguments]) == 2
    errors = capsys.readouterr().err
    assert all(word in errors for word in words)
