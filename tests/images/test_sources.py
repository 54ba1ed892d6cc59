"""Public, drawn and shipped data sets by name: read as published, downloaded once, their faults in one line."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import json
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest

from config import InputError
from conftest import DATA, ROOT, needs_cifar10, random_split
from images import data, sources


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


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


@pytest.mark.slow
@needs_cifar10
def test_real_cifar10():
    """In a process of its own: the numbers everybody knows, no slow import, less than 2 GB."""
    script = (
        "import json, sys, pathlib; from images import data; d = data.load('cifar10', pathlib.Path(sys.argv[1])); "
        "print(json.dumps([data.statistics(d.train.images), d.train.images.shape, d.test.images.shape, d.classes, "
        "sorted({'torchvision', 'sklearn', 'albumentations', 'cv2', 'matplotlib'} & set(sys.modules)), "
        "int(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])]))"  # ru_maxrss has the parent's peak too
    )
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

    assert data.resolve_auto("auto", tmp_path / "made") == "cifar10", "it is there"
    assert data.resolve_auto("auto", tmp_path / "data") == "cifar10", "it can be downloaded"
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")
    assert data.resolve_auto("auto", tmp_path / "data") == "shapes"
    notice = capsys.readouterr().err
    assert notice.count("\n") == 1 and notice.startswith("note:") and "shapes" in notice


@pytest.mark.parametrize(
    "name, torchvision_name, table, ending",
    [("mnist", "MNIST", sources.MNIST_FILES, ""), ("fashion_mnist", "FashionMNIST", sources.FASHION_MNIST_FILES, ".gz")],
)
def test_idx_files(tmp_path, monkeypatch, name, torchvision_name, table, ending):
    folder = tmp_path / torchvision_name / "raw"
    folder.mkdir(parents=True)
    train, test = random_split(30, 10, 28, 28, 1), random_split(10, 10, 28, 28, 1)
    for part, split in (("train", train), ("t10k", test)):
        for kind, content in (
            ("images-idx3", bytes(16) + split.images.tobytes()),
            ("labels-idx1", bytes(8) + split.labels.astype(np.uint8).tobytes()),
        ):
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
    from images import shapes

    rendered, render = [], shapes.render
    monkeypatch.setattr(shapes, "render", lambda seed, count: rendered.append(count) or render(seed, count // 200))
    first, second = data.load("shapes", tmp_path), data.load("shapes", tmp_path)
    assert rendered == [20_000, 4_000]
    assert np.array_equal(first.train.images, second.train.images) and np.array_equal(first.test.labels, second.test.labels)
    assert not {image.tobytes() for image in first.train.images} & {image.tobytes() for image in first.test.images}
    (cache,) = (tmp_path / "shapes").iterdir()
    cache.write_bytes(cache.read_bytes()[:5000])
    assert np.array_equal(data.load("shapes", tmp_path).train.images, first.train.images)
    monkeypatch.setattr(shapes, "VERSION", shapes.VERSION + 1)
    data.load("shapes", tmp_path)
    assert len(rendered) == 6, "another version of the renderer does not read this one's cache"


@pytest.mark.parametrize(
    "name, words",
    [
        ("cifar", "cifar10"),
        ("shape", "did you mean shapes"),
        ("zzz", "cifar10, cifar100, mnist, fashion_mnist, digits, shapes"),
        ("fodler:/tmp", "folder:PATH"),
        ("folder:/nowhere/at/all", "/nowhere/at/all"),
        ("npz:/nowhere.npz", "/nowhere.npz"),
    ],
)
def test_unknown_names_and_places(tmp_path, name, words):
    with pytest.raises(InputError, match=words) as error:
        data.load(name, tmp_path)
    assert "\n" not in str(error.value)


def test_every_help_text_that_lists_the_data_sets_lists_them_all():
    paths = (path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] not in (".venv", "tests"))
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    listed = [names for text in texts.values() for names in re.findall(r"\w+(?:, \w+){3,}", text)]
    found = [names for names in listed if len({*names.split(", ")} & {*sources.PUBLIC}) > len(sources.PUBLIC) / 2]
    assert len(found) >= 3
    assert [names for names in found if ", ".join(sources.PUBLIC) not in names] == []
