"""Folders and arrays of the user's own: read as they should be, each fault named in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from config import InputError
from conftest import RNG, random_split
from images import data
from images.files import read_image


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
    assert "48" in notice and "18 of 18" in notice


def spoil_truncated(folder: Path) -> str:
    victim = folder / "train" / "cat" / "2.png"
    victim.write_bytes(victim.read_bytes()[:1500])
    return "2.png"


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


@pytest.mark.parametrize(
    "spoil", [spoil_truncated, spoil_text_as_png, spoil_empty_class, spoil_one_class, spoil_test_class, spoil_no_test]
)
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


@pytest.mark.parametrize(
    "changes, word",
    [
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
        ({"train_y": np.ones(30, int), "test_y": np.ones(9, int), "classes": np.array(["a", "b", "c"])}, "one class"),
        ({"train_x": np.array([object()] * 30)}, "npz"),
        ({"train_y": np.array([2**63 - 1] * 30)}, "more classes than images"),
        ({"classes": np.array("only")}, "train_y"),
        ({"train_x": np.zeros((30, 32, 32, 0), np.uint8)}, "train_x"),
    ],
)
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


def test_a_plain_npy_is_refused_and_another_memory_order_is_not(tmp_path):
    np.save(tmp_path / "plain.npy", np.zeros(3))
    with pytest.raises(InputError, match="plain.npy"):
        data.load(f"npz:{tmp_path / 'plain.npy'}", tmp_path)
    images = RNG.integers(0, 256, (30, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "fortran.npz", **arrays(train_x=np.asfortranarray(images)))
    dataset = data.load(f"npz:{tmp_path / 'fortran.npz'}", tmp_path)
    assert np.array_equal(dataset.train.images, images)
    assert data.statistics(dataset.train.images) == data.statistics(images)


def test_sixteen_bit_grey_is_scaled(tmp_path):
    Image.fromarray(np.full((40, 40), 127 * 257, np.uint16)).save(tmp_path / "deep.png")
    image, changes = read_image(tmp_path / "deep.png", 3, 32, 32)
    assert (image == 127).all()
    assert changes == ["scaled from 16 bits to 8", "converted from I;16 to RGB", "resized from 40x40 to 32x32"]


def save_mode(path: Path, mode: str, **options: object) -> Image.Image:
    """A file with a red left half and a blue right half, in that mode; the image in RGB."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, :16, 0] = pixels[:, 16:, 2] = 255
    image = Image.fromarray(pixels)
    image.convert(mode).save(path, **options)
    return image


def test_photograph_is_turned_upright_by_its_exif_data(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the top of the scene is on the right of the stored image
    save_mode(tmp_path / "turned.png", "RGB", exif=exif)
    image, changes = read_image(tmp_path / "turned.png", 3, 32, 32)
    assert changes == ["turned upright by its EXIF data"]
    assert (image[:16] == (255, 0, 0)).all() and (image[16:] == (0, 0, 255)).all()


@pytest.mark.parametrize(
    ("name", "mode", "words"),
    [
        ("cmyk.jpg", "CMYK", ["converted from CMYK to RGB"]),
        ("palette.png", "P", ["converted from P to RGB"]),
        ("opaque.png", "RGBA", ["converted from RGBA to RGB"]),
        ("grey.png", "L", ["converted from L to RGB"]),
    ],
)
def test_other_modes(tmp_path, name, mode, words):
    expected = np.asarray(save_mode(tmp_path / name, mode).convert(mode).convert("RGB"), int)
    image, changes = read_image(tmp_path / name, 3, 32, 32)
    assert changes == words
    assert np.abs(image - expected).mean() < 6  # JPEG loses some


def test_what_is_transparent_becomes_white(tmp_path):
    picture = Image.new("RGBA", (32, 32), (0, 0, 0, 0))  # invisible black, which dropping alpha would show
    picture.paste((200, 0, 0, 255), (0, 0, 32, 16))
    for name in ("alpha.png", "palette.gif"):
        picture.save(tmp_path / name)
        pixels, changes = read_image(tmp_path / name, 3, 32, 32)
        assert (pixels[20:] == 255).all() and abs(int(pixels[5, 5, 0]) - 200) < 9 and pixels[5, 5, 1] < 9
        assert "laid on white where it is transparent" in changes


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    image, changes = read_image(tmp_path / "moving.gif", 3, 32, 32)
    assert (image == (255, 0, 0)).all() and changes[0] == "took the first frame of several"


def test_sixteen_bit_colour_is_said(tmp_path):
    import cv2

    cv2.imwrite(str(tmp_path / "deep.png"), np.full((32, 32, 3), (10 * 257, 20 * 257, 30 * 257), np.uint16))
    image, changes = read_image(tmp_path / "deep.png", 3, 32, 32)
    assert (image == (30, 20, 10)).all() and changes == ["scaled from 16 bits to 8"]


def test_extreme_sizes(tmp_path):
    for width, height in ((1, 1), (1, 5000), (5000, 1)):
        Image.new("RGB", (width, height), "lime").save(tmp_path / "extreme.png")
        image, changes = read_image(tmp_path / "extreme.png", 3, 32, 32)
        assert (image == (0, 255, 0)).all() and changes == [f"resized from {width}x{height} to 32x32"]


def test_large_photograph_is_read_as_it_would_be_in_full(tmp_path):
    """JPEG files are decoded at a fraction of their size."""
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)  # the same whichever tests ran before
    noise = Image.fromarray(noise).resize((1500, 1000), Image.Resampling.BICUBIC)
    noise.save(tmp_path / "photo.jpg", quality=95)
    noise.save(tmp_path / "photo.png")
    (small, _), (full, _) = (read_image(tmp_path / name, 3, 32, 32) for name in ("photo.jpg", "photo.png"))
    assert np.abs(small.astype(int) - full).mean() < 3


def test_floating_point_pixels_are_refused(tmp_path):
    Image.fromarray(RNG.random((32, 32), dtype=np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(InputError, match="float.tif.*floating-point"):
        read_image(tmp_path / "float.tif", 3, 32, 32)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ending", ["png", "jpg", "gif", "bmp", "tif", "webp"])
def test_damaged_files_are_read_or_refused_and_nothing_else(tmp_path, ending):
    path = tmp_path / f"damaged.{ending}"
    save_mode(path, "RGB")
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(0, min(len(data), 300), 4):
            data[place] = rng.integers(0, 256)
        path.write_bytes(data[: rng.integers(1, len(data) + 1)])
        try:
            assert read_image(path, 3, 32, 32)[0].shape == (32, 32, 3)
        except InputError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 10


@pytest.mark.parametrize("name", ["folder:photos", "folder:./photos/", "folder:new/../photos", "npz:photos.npz"])
def test_names_of_files_have_no_colon_and_are_not_empty(tmp_path, monkeypatch, name):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    assert data.file_name(name) == "photos"
    monkeypatch.chdir("photos")
    assert data.file_name("folder:.") == "photos"


def test_a_path_without_its_kind_gets_it_proposed(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "own.npz").touch()
    monkeypatch.chdir(tmp_path)
    for name, meant in (("photos", "folder:photos"), ("own.npz", "npz:own.npz"), ("cifar", "cifar10")):
        with pytest.raises(InputError, match=f"unknown data set '{name}' .did you mean {meant}"):
            data.load(name, tmp_path)


def test_an_array_without_test_images_says_so(tmp_path):
    images, labels = np.zeros((8, 32, 32, 3), np.uint8), np.arange(8) % 2
    np.savez(tmp_path / "some.npz", train_x=images, train_y=labels, test_x=images[:0], test_y=labels[:0])
    with pytest.raises(InputError, match="test_y is empty: training and test images are both required"):
        data.load(f"npz:{tmp_path / 'some.npz'}", tmp_path)
