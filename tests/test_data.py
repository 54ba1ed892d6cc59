"""Data sets by name, their faults in one line, the statistics, the split, and the two ways to make batches."""
from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import data
import sources
from config import InputError
from conftest import DATA, ROOT, needs_cifar10
from data import AugmentedBatches, Split, VectorisedBatches, stratified_split

CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
RNG = np.random.default_rng(0)


def random_split(count: int, classes: int = 10, height: int = 32, width: int = 32, channels: int = 3) -> Split:
    return Split(RNG.integers(0, 256, (count, height, width, channels), dtype=np.uint8), np.arange(count) % classes)


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


# --- public sets -------------------------------------------------------------------------------------------------------------


class Python2Pickler(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings: the published files are such pickles, which readers take as text or bytes."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, string: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(string)) + string)
        self.memoize(string)

    dispatch[bytes] = save_string


def write_pickle(path: Path, content: object) -> None:
    with open(path, "wb") as file:
        Python2Pickler(file, protocol=2).dump(content)


def write_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[np.ndarray, np.ndarray]:
    """A made-up CIFAR-10 of 6 x 20 images in `root`, its MD5s registered; returns images (N, H, W, C) and labels."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images, labels = random_split(120)
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        part = slice(20 * i, 20 * i + 20)
        planes = images[part].transpose(0, 3, 1, 2).reshape(20, 3072)
        write_pickle(folder / name, {b"data": planes, b"labels": labels[part].tolist()})
    write_pickle(folder / "batches.meta", {b"label_names": [f"class {i}".encode() for i in range(10)]})
    for name in list(sources.CIFAR10_FILES):
        monkeypatch.setitem(sources.CIFAR10_FILES, name, md5(folder / name))
    return images, labels


def test_cifar10_files_are_read_as_they_are(tmp_path, monkeypatch):
    images, labels = write_cifar10(tmp_path, monkeypatch)
    dataset = data.load("cifar10", tmp_path)
    assert np.array_equal(np.concatenate([dataset.train.images, dataset.test.images]), images)
    assert np.array_equal(np.concatenate([dataset.train.labels, dataset.test.labels]), labels)
    assert len(dataset.test.labels) == 20
    assert dataset.train.images.dtype == np.uint8 and dataset.train.labels.dtype == np.int64
    assert dataset.classes == tuple(f"class {i}" for i in range(10))
    assert (dataset.num_channels, dataset.num_classes, tuple(dataset.image_size)) == (3, 10, (32, 32))


def test_cifar10_file_with_a_wrong_md5_is_named_and_not_unpickled(tmp_path, monkeypatch):
    write_cifar10(tmp_path, monkeypatch)
    canary = tmp_path / "executed"

    class Payload:
        def __reduce__(self):
            return Path.touch, (canary,)

    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(InputError, match="data_batch_3.*MD5"):
        data.load("cifar10", tmp_path)
    assert not canary.exists()


@needs_cifar10
def test_real_cifar10():
    """In a process of its own: the numbers everybody knows, no slow import, less than 2 GB."""
    script = ("import json, resource, sys, pathlib, data; d = data.load('cifar10', pathlib.Path(sys.argv[1])); "
              "print(json.dumps([data.statistics(d.train.images), d.train.images.shape, d.test.images.shape, d.classes, "
              "sorted({'torchvision', 'sklearn', 'albumentations', 'cv2', 'matplotlib'} & set(sys.modules)), "
              "resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]))")
    output = subprocess.run([sys.executable, "-c", script, DATA], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    (mean, std), train_shape, test_shape, classes, slow_imports, peak_kb = json.loads(output)
    assert [round(value, 4) for value in mean] == [0.4914, 0.4822, 0.4465]
    assert [round(value, 4) for value in std] == [0.2470, 0.2435, 0.2616]
    assert (train_shape, test_shape) == ([50_000, 32, 32, 3], [10_000, 32, 32, 3])
    assert classes[0] == "airplane" and classes[9] == "truck"
    assert slow_imports == []
    assert peak_kb < 2_000_000


@pytest.fixture
def archive_server(tmp_path, monkeypatch):
    """A made-up cifar-10-python.tar.gz on a local server that torchvision takes for the public one; yields (images, requests)."""
    import torchvision

    images, _ = write_cifar10(tmp_path / "made", monkeypatch)
    served = tmp_path / "served"
    served.mkdir()
    archive = served / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    requests: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            requests.append(str(arguments[1]))

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(served)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    public, files = torchvision.datasets.CIFAR10, sources.CIFAR10_FILES
    monkeypatch.setattr(public, "url", f"http://127.0.0.1:{server.server_port}/{archive.name}")
    monkeypatch.setattr(public, "tgz_md5", md5(archive))
    monkeypatch.setattr(public, "train_list", [[f"data_batch_{i}", files[f"data_batch_{i}"]] for i in range(1, 6)])
    monkeypatch.setattr(public, "test_list", [["test_batch", files["test_batch"]]])
    monkeypatch.setattr(public, "meta", {"filename": "batches.meta", "key": "label_names", "md5": files["batches.meta"]})
    for variable in ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    yield images, requests
    server.shutdown()
    server.server_close()


def test_cifar10_is_downloaded_once(tmp_path, archive_server):
    images, requests = archive_server
    for _ in range(2):
        dataset = data.load("cifar10", tmp_path / "data")
    assert np.array_equal(dataset.train.images, images[:100])
    requested = len(requests)
    data.load("cifar10", tmp_path / "data")
    assert requested and len(requests) == requested


def test_failed_download_is_one_line(tmp_path, archive_server, monkeypatch):
    import torchvision

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    with pytest.raises(InputError, match="CIFAR10.*cannot be downloaded") as error:
        data.load("cifar10", tmp_path / "data")
    assert "\n" not in str(error.value)


def test_auto(tmp_path, archive_server, monkeypatch, capsys):
    import torchvision

    assert data.resolve_auto(tmp_path / "made") == "cifar10", "it is there"
    assert data.resolve_auto(tmp_path / "data") == "cifar10", "it can be downloaded"
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    assert data.resolve_auto(tmp_path / "data") == "shapes"
    notice = capsys.readouterr().err
    assert notice.count("\n") == 1 and notice.startswith("note:") and "shapes" in notice


@pytest.mark.parametrize("name, torchvision_name, table, ending", [
    ("mnist", "MNIST", sources.MNIST_FILES, ""), ("fashion_mnist", "FashionMNIST", sources.FASHION_MNIST_FILES, ".gz")])
def test_idx_files(tmp_path, monkeypatch, name, torchvision_name, table, ending):
    folder = tmp_path / torchvision_name / "raw"
    folder.mkdir(parents=True)
    train, test = random_split(30, 10, 28, 28, 1), random_split(10, 10, 28, 28, 1)
    for part, split in (("train", train), ("t10k", test)):
        for kind, content in (("images-idx3", bytes(16) + split.images.tobytes()),
                              ("labels-idx1", bytes(8) + split.labels.astype(np.uint8).tobytes())):
            path = folder / f"{part}-{kind}-ubyte{ending}"
            path.write_bytes(gzip.compress(content) if ending else content)
            monkeypatch.setitem(table, path.name, md5(path))
    dataset = data.load(name, tmp_path)
    for found, expected in ((dataset.train, train), (dataset.test, test)):
        assert np.array_equal(found.images, expected.images) and np.array_equal(found.labels, expected.labels)
        assert found.labels.dtype == np.int64
    assert dataset.num_channels == 1 and dataset.num_classes == 10


def test_digits(tmp_path):
    dataset, again = data.load("digits", tmp_path), data.load("digits", tmp_path)
    assert len(dataset.train.labels) + len(dataset.test.labels) == 1797
    assert dataset.train.images.shape[1:] == dataset.test.images.shape[1:] == (32, 32, 1)
    assert dataset.train.images.dtype == np.uint8 and dataset.train.images.max() > 240
    assert np.bincount(dataset.test.labels).min() >= 34
    assert np.array_equal(dataset.test.images, again.test.images)


def test_shapes_are_rendered_once_and_again_when_the_cache_is_damaged(tmp_path, monkeypatch):
    import shapes

    rendered, render = [], shapes.render
    monkeypatch.setattr(shapes, "render", lambda seed, count: rendered.append(count) or render(seed, count // 200))
    first, second = data.load("shapes", tmp_path), data.load("shapes", tmp_path)
    assert rendered == [20_000, 4_000]
    assert np.array_equal(first.train.images, second.train.images) and np.array_equal(first.test.labels, second.test.labels)
    assert not {image.tobytes() for image in first.train.images} & {image.tobytes() for image in first.test.images}
    cache, = (tmp_path / "shapes").iterdir()
    cache.write_bytes(cache.read_bytes()[:5000])
    assert np.array_equal(data.load("shapes", tmp_path).train.images, first.train.images)
    monkeypatch.setattr(shapes, "VERSION", shapes.VERSION + 1)
    data.load("shapes", tmp_path)
    assert len(rendered) == 6, "another version of the renderer does not read this one's cache"


@pytest.mark.parametrize("name, words", [
    ("cifar", "cifar10"), ("shape", "did you mean shapes"), ("zzz", "cifar10, cifar100, mnist, fashion_mnist, digits, shapes"),
    ("fodler:/tmp", "folder:PATH"), ("folder:/nowhere/at/all", "/nowhere/at/all"), ("npz:/nowhere.npz", "/nowhere.npz")])
def test_unknown_names_and_places(tmp_path, name, words):
    with pytest.raises(InputError, match=words) as error:
        data.load(name, tmp_path)
    assert "\n" not in str(error.value)


# --- one's own images --------------------------------------------------------------------------------------------------------


def write_images(folder: Path, count: int, size: tuple[int, int] = (32, 32), mode: str = "RGB") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode).save(folder / f"{i}.png")


@pytest.fixture
def folder(tmp_path) -> Path:
    for part, count in (("train", 6), ("test", 3)):
        for name in ("cat", "dog"):
            write_images(tmp_path / "images" / part / name, count)
    return tmp_path / "images"


def test_folder_with_splits(folder, capsys):
    dataset = data.load(f"folder:{folder}", folder)
    assert dataset.classes == ("cat", "dog")
    assert dataset.train.images.shape == (12, 32, 32, 3) and dataset.test.images.shape == (6, 32, 32, 3)
    assert dataset.train.labels.tolist() == [0] * 6 + [1] * 6 and dataset.test.labels.tolist() == [0] * 3 + [1] * 3
    assert np.array_equal(dataset.train.images[6], np.asarray(Image.open(folder / "train/dog/0.png")))
    assert capsys.readouterr().err == ""


def test_single_folder_is_split_alike_each_time(tmp_path):
    for name in ("a", "b", "c"):
        write_images(tmp_path / name, 20)
    dataset, again = (data.load(f"folder:{tmp_path}", tmp_path) for _ in range(2))
    assert np.bincount(dataset.train.labels).tolist() == [16] * 3 and np.bincount(dataset.test.labels).tolist() == [4] * 3
    assert np.array_equal(dataset.test.images, again.test.images)
    assert not {image.tobytes() for image in dataset.train.images} & {image.tobytes() for image in dataset.test.images}


def test_other_sizes_and_grey_are_brought_to_rgb_of_one_size_and_it_is_said(folder, capsys):
    write_images(folder / "train" / "cat", 1, (100, 50), "L")
    dataset = data.load(f"folder:{folder}", folder, image_size=48)
    assert dataset.train.images.shape == (12, 48, 48, 3)
    assert len(set(dataset.train.images[0, 10, 10])) == 1, "grey stays grey"
    notice = capsys.readouterr().err
    assert all(line.startswith("note:") for line in notice.splitlines())
    assert "48" in notice and "12 of 12" in notice


def spoil_truncated(folder: Path) -> str:
    victim = folder / "train" / "cat" / "2.png"
    victim.write_bytes(victim.read_bytes()[:1500])
    return "2.png"


def spoil_text(folder: Path) -> str:
    (folder / "train" / "dog" / "notes.txt").write_text("hello")
    return "notes.txt"


def spoil_text_as_png(folder: Path) -> str:
    (folder / "test" / "dog" / "fake.png").write_text("hello")
    return "fake.png"


def spoil_empty_class(folder: Path) -> str:
    (folder / "train" / "eel").mkdir()
    write_images(folder / "test" / "eel", 1)
    return "eel"


def spoil_one_class(folder: Path) -> str:
    for part in ("train", "test"):
        (folder / part / "dog").rename(folder / f"{part} dog")
    return "cat"


def spoil_test_class(folder: Path) -> str:
    write_images(folder / "test" / "fox", 1)
    return "fox"


def spoil_no_test(folder: Path) -> str:
    (folder / "test").rename(folder.parent / "gone")
    return "test"


@pytest.mark.parametrize("spoil", [spoil_truncated, spoil_text, spoil_text_as_png, spoil_empty_class, spoil_one_class,
                                   spoil_test_class, spoil_no_test])
def test_faults_of_a_folder_are_named(folder, spoil):
    word = spoil(folder)
    with pytest.raises(InputError, match=word) as error:
        data.load(f"folder:{folder}", folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def arrays(**changes: object) -> dict[str, np.ndarray]:
    train, test = random_split(30, 3), random_split(9, 3)
    whole = {"train_x": train.images, "train_y": train.labels, "test_x": test.images, "test_y": test.labels, **changes}
    return {name: array for name, array in whole.items() if array is not None}


def test_npz(tmp_path):
    whole = arrays(classes=np.array(["x", "y", "z"]))
    np.savez(tmp_path / "own.npz", **whole)
    dataset = data.load(f"npz:{tmp_path / 'own.npz'}", tmp_path)
    assert np.array_equal(dataset.train.images, whole["train_x"]) and np.array_equal(dataset.test.labels, whole["test_y"])
    assert dataset.classes == ("x", "y", "z")
    grey = arrays(train_x=whole["train_x"][..., 0], test_x=whole["test_x"][..., 0], train_y=whole["train_y"].astype(np.uint8))
    np.savez(tmp_path / "grey.npz", **grey)
    dataset = data.load(f"npz:{tmp_path / 'grey.npz'}", tmp_path)
    assert dataset.train.images.shape == (30, 32, 32, 1) and dataset.train.labels.dtype == np.int64
    assert dataset.classes == ("0", "1", "2")


@pytest.mark.parametrize("changes, word", [
    ({"train_y": None}, "train_y"),
    ({"test_x": None}, "test_x"),
    ({"train_x": np.zeros((30, 32, 32, 3), np.float32)}, "train_x.*float32"),
    ({"train_y": np.zeros(30, np.float64)}, "train_y.*float64"),
    ({"train_x": np.zeros((30, 3072), np.uint8)}, "train_x"),
    ({"train_y": np.full(30, -1)}, "train_y.*-1"),
    ({"test_y": np.full(9, 3)}, "test_y.*3"),
    ({"train_y": np.full(30, 5), "classes": np.array(["x", "y", "z"])}, "train_y.*5"),
    ({"train_y": np.arange(29) % 3}, "30 images.*29"),
    ({"train_x": np.zeros((30, 20, 20, 3), np.uint8), "test_x": np.zeros((9, 20, 20, 3), np.uint8)}, "20x20"),
    ({"test_x": np.zeros((9, 40, 40, 3), np.uint8)}, "train_x and test_x"),
    ({"train_y": np.zeros(30, int), "test_y": np.zeros(9, int)}, "one class"),
    ({"train_x": np.array([object()] * 30)}, "npz"),
])
def test_faults_of_an_npz_are_named(tmp_path, changes, word):
    path = tmp_path / "own.npz"
    np.savez(path, **arrays(**changes))
    with pytest.raises(InputError, match=word) as error:
        data.load(f"npz:{path}", tmp_path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"hello", "truncated"])
def test_not_an_npz(tmp_path, content):
    path = tmp_path / "own.npz"
    np.savez(path, **arrays())
    path.write_bytes(path.read_bytes()[:20_000] if content == "truncated" else content)
    with pytest.raises(InputError, match="own.npz"):
        data.load(f"npz:{path}", tmp_path)


# --- statistics, split -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count, channels", [(1, 3), (700, 3), (257, 1)])
def test_statistics_are_exact(count, channels):
    images = random_split(count, channels=channels).images
    mean, std = data.statistics(images)
    scaled = images.astype(np.float64) / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, scaled.std((0, 1, 2)), rtol=1e-9)


def test_statistics_of_white_images_can_be_divided_by():
    """All sums are at their largest here: 256 images of 255 are what float32 just holds."""
    mean, std = data.statistics(np.full((1000, 28, 28, 1), 255, np.uint8))
    assert mean == (1.0,) and 0 < std[0]


def test_stratified_split():
    labels = np.repeat([0, 1, 2], [500, 300, 200])
    images = np.arange(1000, dtype=np.uint16).view(np.uint8).reshape(1000, 1, 2, 1)  # each names itself
    rest, held = stratified_split(Split(images, labels), 100, seed=0)
    assert np.bincount(held.labels).tolist() == [50, 30, 20] and np.bincount(rest.labels).tolist() == [450, 270, 180]
    numbers = np.concatenate([rest.images, held.images]).reshape(1000, 2).view(np.uint16).ravel()
    assert sorted(numbers) == list(range(1000))
    assert np.array_equal(labels[numbers], np.concatenate([rest.labels, held.labels])), "each image keeps its label"
    assert np.array_equal(stratified_split(Split(images, labels), 100, seed=0)[1].images, held.images)
    assert not np.array_equal(np.sort(stratified_split(Split(images, labels), 100, seed=1)[1].images, axis=0),
                              np.sort(held.images, axis=0))
    assert len(stratified_split(Split(images, labels), 7, seed=0)[1].labels) == 7


@pytest.mark.parametrize("held_out", [0, 9, 100, 1000])
def test_impossible_split(held_out):
    with pytest.raises(InputError, match=str(held_out)):
        stratified_split(random_split(100), held_out, seed=0)


# --- batches -----------------------------------------------------------------------------------------------------------------


def vectorised(split: Split, batch_size: int = 16, seed: int = 0) -> VectorisedBatches:
    return VectorisedBatches(split, batch_size, MEAN, STD, seed, CPU)


def augmented(split: Split, workers: int, seed: int = 0) -> AugmentedBatches:
    return AugmentedBatches(split, 16, MEAN, STD, 1.0, seed, workers, CPU)


def assert_same(batches, others) -> None:
    for (inputs, targets), (other_inputs, other_targets) in zip(batches, others, strict=True):
        assert torch.equal(inputs, other_inputs) and torch.equal(targets, other_targets)


def test_vectorised_batches_are_normalised_images_with_their_labels():
    split = random_split(50, classes=50)  # the label names the image
    batches = vectorised(split)
    assert batches.steps_per_epoch == 3
    seen = []
    for inputs, targets in batches.steps(0, 3):
        assert inputs.shape == (16, 3, 32, 32) and inputs.dtype == torch.float32 and targets.dtype == torch.int64
        assert inputs.is_contiguous(memory_format=torch.channels_last)
        pixels = torch.from_numpy(split.images[targets.numpy()]).permute(0, 3, 1, 2) / 255
        expected = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        torch.testing.assert_close(inputs, expected, rtol=1e-5, atol=1e-5)
        seen += targets.tolist()
    assert len(set(seen)) == 48, "no image twice in an epoch"


@pytest.mark.parametrize("make", [vectorised, functools.partial(augmented, workers=0)])
def test_batches_depend_on_seed_and_step_alone(make):
    split = random_split(50)
    whole = list(make(split).steps(0, 8))
    assert len(whole) == 8
    assert_same(make(split).steps(5, 8), whole[5:])
    batches = make(split)
    list(batches.steps(0, 2))
    assert_same(batches.steps(2, 8), whole[2:])
    assert not torch.equal(whole[0][0], whole[3][0]), "two epochs differ"
    assert not torch.equal(whole[0][0], next(make(split, seed=1).steps(0, 1))[0])


def test_number_of_workers_changes_nothing():
    split = random_split(50)
    whole = list(augmented(split, workers=0).steps(0, 7))
    inputs, targets = whole[0]
    assert inputs.shape == (16, 3, 32, 32) and inputs.dtype == torch.float32 and targets.dtype == torch.int64
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    for workers in (1, 2):
        assert_same(augmented(split, workers).steps(0, 7), whole)


def test_same_image_is_augmented_otherwise_in_another_epoch():
    split = random_split(16, classes=16)
    (first, labels), (second, other_labels) = augmented(split, 0).steps(0, 2)
    pairs = [(first[i], second[(other_labels == label).nonzero().item()]) for i, label in enumerate(labels)]
    assert not any(torch.equal(a, b) for a, b in pairs)


def test_a_batch_larger_than_the_data():
    for make in (vectorised, functools.partial(augmented, workers=0)):
        with pytest.raises(InputError, match="16.*10"):
            make(random_split(10))


BATCHES_SCRIPT = f"""
import multiprocessing, sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np, torch
from data import AugmentedBatches, Split

def batches(workers):
    images = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    return AugmentedBatches(Split(images, np.arange(64)), 16, (.5, .4, .3), (.25, .2, .3), 1.0, 0, workers, torch.device("cpu"))
"""


def run_script(path: Path, body: str) -> subprocess.CompletedProcess:
    path.write_text(BATCHES_SCRIPT + body)
    return subprocess.run([sys.executable, path], capture_output=True, text=True)


def test_spawned_workers(tmp_path):
    """As on systems without fork; quiet, and with the same batches."""
    result = run_script(tmp_path / "spawned.py", """
if __name__ == "__main__":
    multiprocessing.set_start_method("spawn")
    for (a, i), (b, j) in zip(batches(0).steps(0, 5), batches(2).steps(0, 5), strict=True):
        assert torch.equal(a, b) and torch.equal(i, j)
    print("same")
""")
    assert (result.returncode, result.stdout, result.stderr) == (0, "same\n", "")


def test_closing_the_batches_ends_the_workers(tmp_path):
    result = run_script(tmp_path / "closed.py", """
if __name__ == "__main__":
    steps = batches(2).steps(0, 100)
    next(steps)
    assert len(multiprocessing.active_children()) == 2
    steps.close()
    print(len(multiprocessing.active_children()))
""")
    assert (result.returncode, result.stdout, result.stderr) == (0, "0\n", "")


def test_workers_end_with_a_killed_parent(tmp_path):
    (tmp_path / "killed.py").write_text(BATCHES_SCRIPT + """
if __name__ == "__main__":
    steps = batches(2).steps(0, 10**9)
    next(steps)
    print(*(child.pid for child in multiprocessing.active_children()), flush=True)
    for _ in steps:
        pass
""")
    process = subprocess.Popen([sys.executable, tmp_path / "killed.py"], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in process.stdout.readline().split()]
    assert len(workers) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()

    def is_running(pid: int) -> bool:
        try:
            os.kill(pid, 0)
            status = Path(f"/proc/{pid}/status")
            return not status.exists() or "State:\tZ" not in status.read_text()
        except OSError:
            return False

    deadline = time.monotonic() + 60
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.1)
    survivors = [pid for pid in workers if is_running(pid)]
    for pid in survivors:
        os.kill(pid, signal.SIGKILL)
    assert not survivors
