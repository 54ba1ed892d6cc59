"""The references are what they claim; the record, its table and its plot say what the runs said."""

import json
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torchinfo import summary

import processes
from benchmarks import accuracy, panel, pipeline, references, run_command, sprint
from benchmarks.references import REFERENCES, TARGET, run
from config import InputError, TrainConfig
from conftest import DATA, ROOT, assert_refused, random_split
from images import data
from images.sources import ImageDataset, Split
from limits.constraints import check
from model import Net
from results.documents import replace_between
from training import Trainer


@pytest.fixture(scope="module")
def noise():
    return ImageDataset("noise", random_split(2000), random_split(100), tuple("abcdefghij"))


@pytest.mark.parametrize(
    ("name", "parameters", "mult_adds"),
    [
        ("dense", 246_314, 12.7e6),
        ("airbench", 1_972_792, 118.2e6),  # airbench94: 1.97 million
        ("undownsampled", 198_757, 198e6),
    ],
)
def test_references_have_the_size_they_claim(name, parameters, mult_adds):
    model = REFERENCES[name].build(3, 10).eval()
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    table = summary(model, (1, 3, 32, 32), verbose=0)
    assert table.total_params == pytest.approx(parameters, rel=0.02)
    assert table.total_mult_adds == pytest.approx(mult_adds, rel=0.02)


def test_undownsampled_satisfies_the_assignment_at_full_resolution():
    model = REFERENCES["undownsampled"].build(3, 10).eval()
    assert all(constraint.passed for constraint in check(model))
    features = model.C4(model.C3(model.C2(model.C1(torch.zeros(1, 3, 32, 32)))))
    assert features.shape[2:] == (32, 32)


def test_airbench_stem_whitens(noise):
    model = REFERENCES["airbench"].build(3, 10)
    mean, std = data.statistics(noise.train.images)
    images = data.normalise(torch.from_numpy(noise.train.images[:200]), mean, std)
    images[:, :, 1:] += 3 * images[:, :, :-1]  # neighbours that go together
    model.whiten(images)
    with torch.no_grad():
        outputs = model.stem(images) - model.stem.bias[:, None, None]
    half = outputs.shape[1] // 2
    torch.testing.assert_close(outputs[:, half:], -outputs[:, :half])
    rows = outputs[:, :half].transpose(0, 1).flatten(1)
    torch.testing.assert_close(rows @ rows.T / rows.shape[1], torch.eye(half), atol=0.02, rtol=0)


def test_a_step_is_scaled_to_an_epoch(noise, monkeypatch):
    reference = REFERENCES["undownsampled"]
    assert reference.train.batch_size == 64
    monkeypatch.setitem(REFERENCES, "undownsampled", replace(reference, train=replace(reference.train, batch_size=2)))  # is quick
    entry = run("undownsampled", noise, seed=0, limit=0)
    assert entry["seconds"] == pytest.approx(entry["step_seconds"] * 2000 / 2)
    assert entry["step_seconds"] > 0


def test_a_run_is_cut_at_its_limit_and_keeps_its_curve(noise):
    entry = run("dense", noise, seed=3, limit=0.5)  # noise is not learned: only the limit ends it so early
    assert not entry["reached"]
    assert entry["seconds"] >= 0.5
    assert 0 < entry["images_seen"] < 5 * 1000
    assert entry["seed"] == 3
    assert all(0 < seconds <= entry["seconds"] and 0 <= accuracy <= 1 for seconds, accuracy in entry["curve"])


def made_up(seconds: float, reached: bool = True, **more) -> dict:
    return {
        "seed": 0,
        "seconds": seconds,
        "reached": reached,
        "parameters": 1234,
        "test_accuracy": 0.56,
        "test_passes": 1,
        "images_seen": 5,
        "process_seconds": seconds + 2,
        "curve": [(seconds / 2, 0.4), (seconds, 0.57)],
        **more,
    }


@pytest.fixture
def record():
    harness = made_up(4.0, accuracies=[0.5, 0.6], epoch_seconds=[2.0, 4.0])
    for name in ("curve", "test_accuracy"):
        del harness[name]
    step = {"seed": 0, "parameters": 5, "step_seconds": 4.0, "seconds": 3125.0, "process_seconds": 12.0}
    return sprint.make_record(
        {
            "sprint": [made_up(s) for s in (1.0, 0.8, 1.2)],
            "harness": [harness],
            "ours": [made_up(1.1)],
            "dense": [made_up(10.0), made_up(14.0, False)],
            "airbench": [made_up(70.0, False, curve=[])],
            "undownsampled": [step],
        },
        threads=2,
        quick=False,
    )


def test_summaries_count_every_run():
    assert sprint.summarise([made_up(s) for s in (3.0, 1.0, 2.0)]) == {
        "runs": 3,
        "median_seconds": 2.0,
        "min_seconds": 1.0,
        "max_seconds": 3.0,
        "misses": 0,
        "median_is_a_bound": False,
    }


@pytest.mark.parametrize(("missed_after", "bound"), [(1.0, True), (3.0, True), (9.0, False)])
def test_a_median_is_a_bound_where_a_miss_could_move_it(missed_after, bound):
    values = sprint.summarise([made_up(2.0), made_up(3.0), made_up(missed_after, reached=False)])
    assert (values["misses"], values["median_is_a_bound"]) == (1, bound)


def test_table(record):
    lines = [[cell.strip() for cell in line.split("|")] for line in sprint.table(record).splitlines() if line.startswith("|")]
    rows = {cells[1]: cells[2:-1] for cells in lines}
    about = sprint.ABOUT
    assert rows[about["sprint"]] == ["3", "1.00 s", "0.80", "1.20", "0", "", "1,234"]
    assert rows[about["process"]][1] == "3.00 s"
    assert rows[about["harness"]][1] == "4.00 s"
    assert rows[about["dense"]] == ["2", "> 12.0 s", "10.0", "14.0", "1", "> 12.0", "1,234"]
    assert rows[about["undownsampled"]] == ["1", "3,125 s", "3,125", "3,125", "-", "3,125", "5"]
    assert about["ours"] not in rows  # those runs look more often: for the curve only
    assert "2 threads" in sprint.table(record)


def test_table_of_an_interrupted_benchmark(record):
    del record["runs"]["dense"], record["summaries"]["dense"]
    assert sprint.ABOUT["dense"] not in sprint.table(record)


def test_readme_changes_between_the_markers_only(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("before <!-- sprint-table -->\nold\n<!-- /sprint-table --> after")
    replace_between(path, sprint.MARKERS, r"new \1")
    replace_between(path, sprint.MARKERS, r"new \1")
    assert path.read_text() == "before <!-- sprint-table -->\nnew \\1\n<!-- /sprint-table --> after"
    path.write_text("none")
    with pytest.raises(InputError, match="sprint-table"):
        replace_between(path, sprint.MARKERS, "new")


def test_plot_and_reading_of_a_record(record, tmp_path):
    path = tmp_path / "record.json"
    path.write_text(json.dumps(record))
    assert sprint.read_record(path) == json.loads(json.dumps(record))
    sprint.plot(sprint.read_record(path), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    path.write_text("[]")
    with pytest.raises(InputError, match="not a record"):
        sprint.read_record(path)


class Interrupted(sprint.Benchmark):
    """Makes its runs up, and is interrupted in the seventh."""

    def run_one(self, name, seed, folder):
        self.asked = [*getattr(self, "asked", []), (name, seed)]
        if len(self.asked) == 7:
            raise KeyboardInterrupt
        return made_up(1.0, seed=seed)


def test_runs_are_interleaved_and_an_interrupt_keeps_them(tmp_path):
    benchmark = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        benchmark.measure(range(5, 8), tmp_path / "records" / "record.json")
    whole_seed = (*sprint.EVERY_SEED, *sprint.FIRST_SEEDS)
    assert benchmark.asked == [(name, 5) for name in whole_seed] + [("sprint", 6), ("harness", 6)]
    runs = sprint.read_record(tmp_path / "records" / "record.json")["runs"]
    assert [run["seed"] for run in runs["sprint"]] == [5, 6]
    assert sum(map(len, runs.values())) == 6


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "benchmarks").glob("[!_]*.py")))
def test_every_script_explains_itself(script):
    result = processes.run(ROOT / "benchmarks" / script, "--help")
    assert result.returncode == 0, result.stderr
    assert "usage: " in result.stdout and f"python benchmarks/{script}" in result.stdout


def test_scripts_refuse_bad_input_in_one_line(tmp_path, monkeypatch, capsys):
    assert_refused(
        processes.run(ROOT / "benchmarks" / "sprint.py", "--data-dir", tmp_path, cwd=tmp_path), "no CIFAR-10", str(tmp_path)
    )
    monkeypatch.setattr(sys, "argv", ["references.py", "nothing", "--json", "x"])
    assert references.main() == 2
    assert "unknown reference 'nothing'" in capsys.readouterr().err


def test_every_reference_ends_at_the_target_of_the_sprint():
    assert all(reference.is_one_step or reference.train.early_exit_accuracy == TARGET for reference in REFERENCES.values())


@pytest.mark.slow
def test_pipeline_record(tmp_path):
    path = tmp_path / "records" / "pipeline.json"
    result = processes.run(
        ROOT / "benchmarks" / "pipeline.py",
        "--quick",
        "--dataset",
        "digits",
        "--presets",
        "sprint",
        "baseline",
        "--workers",
        "1",
        "--images-per-draw",
        "1",
        "16",
        "--json",
        path,
    )
    assert result.returncode == 0, result.stderr
    record = json.loads(path.read_text())
    assert record["dataset"] == "digits" and record["quick"]
    assert {"processor", "cores", "threads"} <= set(record["hardware"])
    assert {"torch", "numpy", "albumentations", "opencv"} <= set(record["versions"])
    rates = {(entry["workers"], entry["images_per_draw"]): entry["images_per_second"] for entry in record["pipeline"]}
    assert set(rates) == {(1, 1), (1, 16)}
    assert [entry["preset"] for entry in record["step"]] == ["sprint", "baseline"]
    # The sprint does not augment: it has nothing to start workers for.
    trainings = [(entry["preset"], entry["workers"]) for entry in record["training"]]
    assert trainings == [("sprint", 0), ("baseline", 1)]
    for entry in (*record["pipeline"], *record["step"], *record["training"]):
        values = entry["images_per_second"]
        assert 0 < values["min"] <= values["median"] <= values["max"]
    assert all(0 < entry["waiting_share"]["min"] <= entry["waiting_share"]["max"] < 1 for entry in record["training"])
    table = result.stdout
    assert f"{rates[1, 16]['median']:,.0f} (" in table and "| 1 a draw | 16 a draw |" in table
    assert f"{record['training'][1]['waiting_share']['median']:.1%} (" in table


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--presets", "nothing"), "unknown preset 'nothing'"),
        (("--steps", "10"), "--steps must be above 10"),
        (("--dataset", "digits", "--images-per-draw", "3"), "multiple of 3"),
    ],
)
def test_pipeline_refuses_bad_input_in_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pipeline.py", *arguments])
    assert run_command(pipeline.Pipeline, pipeline.__doc__) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1 and message in errors[0]


def test_pipeline_help_teaches(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pipeline.py", "--help"])
    with pytest.raises(SystemExit):
        run_command(pipeline.Pipeline, pipeline.__doc__)
    assert "Raise images_per_draw first" in " ".join(capsys.readouterr().out.split())


def test_summaries_of_a_pipeline():
    assert pipeline.summarise([3.0, 1.0, 8.0]) == {"median": 3.0, "min": 1.0, "max": 8.0}


def test_waiting_is_counted_and_kept(noise, tmp_path):
    config = TrainConfig(steps=6, batch_size=32, val_images=10, whiten_images=50, augment=1.0, workers=0)
    trainer = Trainer(Net(3, 10), noise, config, tmp_path)
    history = trainer.fit()
    assert 0 < history.waiting_seconds < history.total_seconds
    resumed = Trainer(Net(3, 10), noise, config, tmp_path).fit(resume=True)
    assert resumed.waiting_seconds == history.waiting_seconds  # nothing was left to wait for


def test_results_from_records(tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy, "RECORDS", tmp_path)
    evaluations = [{"val_accuracy": 0.7}, {"val_accuracy": 0.85}]
    machine = {"hardware": {"processor": "P", "bf16": None, "cores": 2, "threads": 2}, "versions": {"torch": "2"}}
    card = {
        "dataset": "cifar10",
        "parameters": 194_154,
        "mult_adds": 12_120_000,
        "epochs": 8.0,
        "seconds": 95.4,
        "val_accuracy": 0.8612,
        "test_accuracy": 0.8534,
        **machine,
    }
    records = {"fast85": {"card": card, "config": {"seed": 0}, "history": {"seconds": [40.0, 95.0], "evaluations": evaluations}}}
    text = accuracy.table(records)
    assert "| 194,154 | 12.1 M | 8 | 95 s | 86.12% | 85.34% |" in text
    assert "- `fast85`: CIFAR-10, seed 0, on P, 2 cores" in text
    assert "seeds" not in text
    digits = {"mnist-8k": records["fast85"] | {"card": card | {"dataset": "mnist"}, "config": {"seed": 3}}}
    assert "- `mnist-8k`: MNIST, seed 3, on P" in accuracy.table(records | digits)
    assert "CIFAR" not in accuracy.table(digits).split("\n\n")[1]
    runs = {
        "target": 0.85,
        "runs": [{}, {}, {}],
        "median_seconds": 95.2,
        "min_seconds": 90.0,
        "max_seconds": 99.9,
        "misses": 1,
        "command": "python main.py sprint --preset fast85",
        **machine,
    }
    (tmp_path / "fast85-seeds.json").write_text(json.dumps(runs))
    assert "median 95 s (90 to 100), 1 missed: `./run.sh sprint --preset fast85`." in accuracy.table(records)
    for plot in (
        partial(accuracy.plot_parameters, "cifar10"),
        partial(accuracy.plot_parameters, "cifar100"),
        accuracy.plot_learning,
    ):
        plot(records, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").stat().st_size > 10_000
        (tmp_path / "plot.png").unlink()


def test_results_without_records_are_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy, "RECORDS", tmp_path)
    with pytest.raises(InputError, match="no records"):
        accuracy.Results().run()


def test_inference_record(tmp_path):
    file = tmp_path / "record.json"
    result = processes.run(
        ROOT / "benchmarks" / "inference.py",
        "--presets",
        "sprint",
        "--batch-size",
        "16",
        "--rounds",
        "2",
        "--no-compile",
        "--json",
        file,
    )
    assert result.returncode == 0, result.stderr
    rates = json.loads(file.read_text())["images_per_second"]["sprint"]
    assert {"fp32"} < set(rates)
    assert all(len(values) == 2 and min(values) > 0 for values in rates.values())
    assert "| sprint | fp32 |" in result.stdout


def test_inference_of_an_unknown_preset_is_one_line():
    assert_refused(processes.run(ROOT / "benchmarks" / "inference.py", "--presets", "none"), "unknown preset 'none'")


@pytest.mark.slow
def test_panel_runs_the_courses_loop_on_its_sets(tmp_path):
    (tmp_path / "model.py").write_text(
        "import torch\nclass Model(torch.nn.Sequential):\n    def __init__(self, num_channels, num_classes):\n"
        "        super().__init__(torch.nn.Flatten(), torch.nn.Linear(num_channels * 1024, num_classes))\n"
    )
    (tmp_path / "config.py").write_text(
        "import torch, torchvision\nclass CONFIG:\n    batch_size, num_epochs = 500, 2\n"
        "    transforms = torchvision.transforms.ToTensor()\n"
        "    optimizer_factory = staticmethod(lambda model: torch.optim.Adam(model.parameters(), 1e-3))\n"
    )
    script, record = ROOT / "benchmarks" / "panel.py", tmp_path / "record.json"
    networks = [tmp_path, "dense"]
    result = processes.run(script, "--sets", "shapes", "--networks", *networks, "--json", record, "--limit", 200)
    assert result.returncode == 0, result.stderr
    (mine,), (dense,) = json.loads(record.read_text())["runs"]["shapes"].values()
    assert not mine["reached"] and mine["epochs"] == 2 and f"| shapes | {tmp_path} | 0 | missed in " in result.stdout
    assert dense["reached"]  # a broken reference would be easy to beat
    assert_refused(processes.run(script, "--sets", "pairs"), "unknown set 'pairs' of the panel")
    assert_refused(processes.run(script, "--sets", "shapes", "--networks", "none"), "no model.py and no config.py in none")


@pytest.mark.slow
def test_residual_reference_of_the_panel_learns():
    model, config = panel.reference("residual", 3, 2, seed=0)
    optimizer = config.optimizer_factory(model)
    labels = torch.arange(32) % 2
    images = (
        torch.full((32, 20, 20, 3), 60, dtype=torch.uint8)
        + torch.randint(60, (32, 20, 20, 3)).byte()
        + 80 * labels.byte()[:, None, None, None]
    )
    rates, losses = [], []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert rates == sorted(rates) and len(set(rates)) == 10  # it rises for the first 23% of 390 steps


def test_summary_of_the_panel_counts_misses_and_compares_with_the_best_other():
    def results(*seconds, missed=0):
        return [{"seconds": value, "reached": i >= missed} for i, value in enumerate(seconds)]

    easy = {"ours": results(1, 2, 3), "dense": results(9, 9, 9), "residual": results(4, 4, 5)}
    hard = {"ours": results(360, 8, 8, missed=1), "dense": results(1, 1, 1), "residual": results(4, 4, 5)}
    text = panel.summary({"easy": easy, "hard": hard})
    assert "| easy | 2.0 s (1.0 to 3.0), 0 of 3 missed | 9.0 s (9.0 to 9.0), 0 of 3 missed |" in text
    assert "| hard | 8.0 s (8.0 to 360.0), 1 of 3 missed |" in text
    assert [line.split("|")[-2].strip() for line in text.splitlines()[2:4]] == ["0.50", "8.00"]
    assert "ours takes 2.00 times as long as the best other" in text
    assert "ratio |" in panel.summary({"easy": {"ours": results(1)}}) and "times" not in panel.summary(
        {"easy": {"ours": results(1)}}
    )


@pytest.mark.parametrize(("kind", "classes", "members"), [("pairs", 10, 10), ("coarse", 10, 5), ("fine", 10, 1), ("three", 3, 5)])
def test_sets_of_the_panel_are_balanced_and_follow_from_their_seed(kind, classes, members):
    coarse = np.random.default_rng(0).permutation(np.repeat(np.arange(20), 5))  # of each fine class
    fine = np.tile(np.arange(100), 3)
    split = Split(np.repeat(fine.astype(np.uint8), 12).reshape(300, 2, 2, 3), fine)
    by_fine = ImageDataset("cifar100", split, split, tuple(map(str, range(100))))
    by_coarse = replace(by_fine, train=Split(split.images, coarse[fine]), test=Split(split.images, coarse[fine]))
    first, again, other = (panel.grouped("set", kind, seed, by_fine, by_coarse) for seed in (3, 3, 4))
    assert np.bincount(first.test.labels).tolist() == [3 * members] * classes
    for label in range(classes):
        (fine_of_label, counts) = np.unique(first.train.images[first.train.labels == label][:, 0, 0, 0], return_counts=True)
        assert len(fine_of_label) == members and (counts == 3).all()
        assert len(set(coarse[fine_of_label])) == (2 if kind == "pairs" else 1)
    assert np.array_equal(first.train.images, again.train.images) and np.array_equal(first.train.labels, again.train.labels)
    assert not (np.array_equal(first.train.images, other.train.images) and np.array_equal(first.train.labels, other.train.labels))


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "cifar-100-python").is_dir(), reason=f"no CIFAR-100 in {DATA}")
@pytest.mark.parametrize(("kind", "train", "test"), [("pairs", 50_000, 10_000), ("three", 7_500, 1_500)])
def test_sets_of_the_panel_hold_the_images_of_cifar100(kind, train, test):
    dataset = panel.load(f"{kind}-0", DATA)
    for split, count in ((dataset.train, train), (dataset.test, test)):
        assert split.images.shape == (count, 32, 32, 3)
        assert len(set(np.bincount(split.labels))) == 1
