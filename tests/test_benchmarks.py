"""The references are what they claim; the record, its table and its plot say what the runs said."""
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torchinfo import summary

import data
from benchmarks import references, sprint
from benchmarks.references import REFERENCES, TARGET, run
from config import InputError
from conftest import ROOT, assert_refused, random_split
from constraints import check
from sources import ImageDataset


@pytest.fixture(scope="module")
def noise():
    return ImageDataset("noise", random_split(2000), random_split(100), tuple("abcdefghij"))


@pytest.mark.parametrize(("name", "parameters", "mult_adds"), [
    ("dense", 246_314, 12.7e6),
    ("airbench", 1_972_792, 118.2e6),  # airbench94: 1.97 million
    ("undownsampled", 198_757, 198e6),
])
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
    return {"seed": 0, "seconds": seconds, "reached": reached, "parameters": 1234, "test_accuracy": 0.56, "test_passes": 1,
            "images_seen": 5, "process_seconds": seconds + 2, "curve": [(seconds / 2, 0.4), (seconds, 0.57)], **more}


@pytest.fixture
def record():
    harness = made_up(4.0, accuracies=[0.5, 0.6], epoch_seconds=[2.0, 4.0])
    for name in ("curve", "test_accuracy"):
        del harness[name]
    step = {"seed": 0, "parameters": 5, "step_seconds": 4.0, "seconds": 3125.0, "process_seconds": 12.0}
    return sprint.make_record({"sprint": [made_up(s) for s in (1.0, 0.8, 1.2)], "harness": [harness], "ours": [made_up(1.1)],
                               "dense": [made_up(10.0), made_up(14.0, False)], "airbench": [made_up(70.0, False, curve=[])],
                               "undownsampled": [step]}, threads=2, quick=False)


def test_summaries_count_every_run():
    assert sprint.summarise([made_up(s) for s in (3.0, 1.0, 2.0)]) == {
        "runs": 3, "median_seconds": 2.0, "min_seconds": 1.0, "max_seconds": 3.0, "misses": 0, "median_is_a_bound": False}


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
    sprint.write_readme(path, r"new \1")
    sprint.write_readme(path, r"new \1")
    assert path.read_text() == "before <!-- sprint-table -->\nnew \\1\n<!-- /sprint-table --> after"
    path.write_text("none")
    with pytest.raises(InputError, match="sprint-table"):
        sprint.write_readme(path, "new")


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


def test_scripts_refuse_bad_input_in_one_line(tmp_path, monkeypatch, capsys):
    script = [sys.executable, ROOT / "benchmarks" / "sprint.py"]
    assert_refused(subprocess.run([*script, "--data-dir", tmp_path], text=True, capture_output=True, cwd=tmp_path),
                   "no CIFAR-10", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["references.py", "nothing", "--json", "x"])
    assert references.main() == 2
    assert "unknown reference 'nothing'" in capsys.readouterr().err


def test_every_reference_ends_at_the_target_of_the_sprint():
    assert all(reference.is_one_step or reference.train.early_exit_accuracy == TARGET for reference in REFERENCES.values())
