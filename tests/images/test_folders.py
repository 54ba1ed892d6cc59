"""Folders as people have them: names of splits, litter, unreadable files, copies, deep images, classes in natural order."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from config import InputError
from conftest import RNG
from images import data
from images.files import decode, walk_images
from images.own_images import choose_side, find_splits, load_folder
from images.sources import Split, stratified_split
from results.predictions import find_images


def write_images(folder: Path, count: int, size: tuple[int, int] = (32, 32), ending: str = "png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(folder / f"{i}.{ending}")


def write_splits(root: Path, *splits: str, count: int = 2) -> Path:
    for split in splits:
        for name in ("cat", "dog"):
            write_images(root / split / name, count)
    return root


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("train", "test"), {"train": "train", "test": "test"}),
        (("Training", "TESTING"), {"train": "Training", "test": "TESTING"}),
        (("train", "test", "valid"), {"train": "train", "test": "test", "val": "valid"}),
        (("TRAIN", "Validation", "test"), {"train": "TRAIN", "test": "test", "val": "Validation"}),
        (("train", "val"), {"train": "train", "test": "val"}),
    ],
)
def test_names_of_splits(tmp_path, folders, expected, capsys):
    found = find_splits(write_splits(tmp_path, *folders))
    assert {part: folder.name for part, folder in found.items()} == expected
    said = capsys.readouterr().err
    assert ("val is the test split" in said) == ("test" not in map(str.lower, folders) and "val" in folders)


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (("train",), ["no test folder", "add one"]),
        (("test", "val"), ["no train folder", "rename", "test, val"]),
        (("train", "training", "test"), ["train and training both name the training split"]),
        (("seg_train", "seg_test"), ["seg_test, seg_train all have the folders cat, dog", "rename them to train and test"]),
    ],
)
def test_splits_that_are_missing_name_what_was_found(tmp_path, folders, words):
    with pytest.raises(InputError) as error:
        load_folder(write_splits(tmp_path, *folders))
    for word in [*words, str(tmp_path)]:
        assert word in str(error.value)


def test_loose_images_in_a_split(tmp_path, capsys):
    write_splits(tmp_path, "train", "val")
    write_images(tmp_path / "test", 3)
    with pytest.raises(InputError, match="the images in .*test lie in no class folders: sort them"):
        load_folder(tmp_path)
    (tmp_path / "test").rename(tmp_path / "train" / "cat" / "more")
    write_images(tmp_path / "train", 2)
    assert len(load_folder(tmp_path).train.labels) == 7
    assert "2 images in" in capsys.readouterr().err


def test_other_folders_beside_splits_are_left_out_and_said(tmp_path, capsys):
    write_splits(tmp_path, "train", "test")
    write_images(tmp_path / "unsorted", 3)
    (tmp_path / "docs").mkdir()
    assert load_folder(tmp_path).classes == ("cat", "dog")
    assert "unsorted left out: neither train, val nor test" in capsys.readouterr().err


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "test", "train"):
        write_images(tmp_path / name, 5)
    dataset = load_folder(tmp_path)
    assert dataset.classes == ("bus", "test", "train")
    assert np.bincount(dataset.test.labels).tolist() == [1, 1, 1]


def test_validation_folder_is_the_validation_split(tmp_path):
    write_splits(tmp_path, "train", "test", count=3)
    write_splits(tmp_path, "val", count=1)
    dataset = load_folder(tmp_path)
    assert len(dataset.val.labels) == 2
    assert np.array_equal(dataset.val.images[1], np.asarray(Image.open(tmp_path / "val" / "dog" / "0.png")))


def test_classes_in_natural_order_and_in_that_of_an_old_checkpoint(tmp_path):
    names = ["10", "2", "1", "b10", "B9"]
    for name in names:
        write_images(tmp_path / name, 2)
    dataset = load_folder(tmp_path)
    assert dataset.classes == ("1", "2", "10", "B9", "b10")
    old = load_folder(tmp_path, class_order=sorted(names))
    assert old.classes == ("1", "10", "2", "B9", "b10")
    assert {im.tobytes() for im in old.train.images[old.train.labels == 1]} == {
        im.tobytes() for im in dataset.train.images[dataset.train.labels == 2]
    }
    assert load_folder(tmp_path, class_order=["1", "2"]).classes == dataset.classes  # of another set of classes


def test_litter_is_left_out_with_one_counted_note_by_all_commands(tmp_path, capsys):
    folder = tmp_path / "photos"
    write_splits(folder, "train", "test")
    places = (
        "train/cat/Thumbs.db",
        "train/dog/desktop.ini",
        "test/dog/notes.txt",
        "train/.DS_Store",
        "train/cat/._0.png",
        "read.me",
    )
    for place in places:
        (folder / place).write_bytes(b"litter")
    write_images(folder / "train" / "__MACOSX" / "cat", 2)
    write_images(folder / "__MACOSX" / "cat", 2)
    dataset = load_folder(folder)
    assert dataset.classes == ("cat", "dog") and len(dataset.train.labels) == 4
    notes = [line for line in capsys.readouterr().err.splitlines() if "left out" in line]
    assert len(notes) == 1 and notes[0].startswith("note: 8 files and folders in")
    find_images([folder])
    assert "note: 8 files and folders in" in capsys.readouterr().err


def test_endings_and_folders_in_class_folders(tmp_path):
    write_images(tmp_path / "cat", 2)
    for ending in ("jfif", "jpe"):
        write_images(tmp_path / "dog" / "deep" / ending, 1, ending="jpg")
        (tmp_path / "dog" / "deep" / ending / "0.jpg").rename(tmp_path / "dog" / "deep" / ending / f"0.{ending.upper()}")
    assert len(walk_images(tmp_path / "dog")[0]) == 2
    dataset = load_folder(tmp_path)
    assert len(dataset.train.labels) + len(dataset.test.labels) == 4


def test_all_unreadable_files_are_named_ten_and_a_count(tmp_path, capsys):
    write_images(tmp_path / "cat", 20)
    write_images(tmp_path / "dog", 5)
    for i in range(12):
        (tmp_path / "cat" / f"{i}.png").write_bytes(b"damaged")
    with pytest.raises(InputError) as error:
        load_folder(tmp_path)
    text = str(error.value)
    assert "12 of 25 files" in text and text.count(".png") == 10 and "and 2 more" in text and "--skip-unreadable" in text
    dataset = load_folder(tmp_path, skip_unreadable=True)
    assert len(dataset.train.labels) + len(dataset.test.labels) == 13
    assert "12 of 25 files" in capsys.readouterr().err


def test_copies_between_training_and_test_are_counted(tmp_path, capsys):
    write_splits(tmp_path, "train", "test", "val", count=3)
    (tmp_path / "test" / "cat" / "0.png").write_bytes((tmp_path / "train" / "cat" / "1.png").read_bytes())
    data.load(f"folder:{tmp_path}", tmp_path)
    said = capsys.readouterr().err
    assert "1 of the 6 test images are exact copies of training images" in said and "validation images are" not in said


def test_only_single_characters_are_not_mirrored(tmp_path, capsys):
    for name in ("A", "B"):
        write_images(tmp_path / name, 2)
    assert not load_folder(tmp_path).flips
    assert "--flip" in capsys.readouterr().err
    (tmp_path / "B").rename(tmp_path / "Bee")
    assert load_folder(tmp_path).flips


@pytest.mark.parametrize(
    ("sizes", "side"), [([(20, 20)], 32), ([(40, 90)], 32), ([(50, 48)], 48), ([(640, 480), (64, 70), (30, 30)], 64)]
)
def test_size_is_chosen_from_the_images(tmp_path, sizes, side):
    for i, size in enumerate(sizes):
        for name in ("a1", "b1"):
            write_images(tmp_path / name / str(i), 1, size)
    assert choose_side([walk_images(tmp_path / name)[0] for name in ("a1", "b1")]) == side
    if len(sizes) > 1:
        assert load_folder(tmp_path).image_size == (side, side)


# --- values ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "dtype", "ending", "expected", "bits"),
    [
        (4095, np.uint16, "png", 255, 12),  # 12 bits of a camera in a file of 16
        (2048, np.uint16, "tif", 127, 12),
        (200, np.uint16, "png", 200, 8),
        (65535, np.uint16, "png", 255, 16),
        (2**20 - 1, np.int32, "tif", 255, 20),
        (3000, np.int32, "tif", 186, 12),
    ],
)
def test_deep_grey_images_are_scaled_from_the_bits_they_use(tmp_path, value, dtype, ending, expected, bits):
    pixels = np.full((32, 32), value, dtype)
    pixels[0] = 0
    Image.fromarray(pixels).save(tmp_path / f"deep.{ending}")
    image, changes, used = decode(tmp_path / f"deep.{ending}", 1, 32, 32)
    assert image[5, 5, 0] == expected and image[0, 0, 0] == 0 and used == bits
    assert (f"scaled from {bits} bits to 8" in changes) == (bits > 8)


def test_deep_colour_of_12_bits_is_not_black_and_is_turned(tmp_path):
    pixels = np.zeros((40, 32, 3), np.uint16)
    pixels[:20] = 4095, 2048, 0  # blue, green, red for OpenCV
    cv2.imwrite(str(tmp_path / "deep.png"), pixels)
    image, changes, _ = decode(tmp_path / "deep.png", 3, 40, 32)
    assert image[0, 0].tolist() == [0, 127, 255] and changes == ["scaled from 12 bits to 8"]


def test_a_dark_image_is_scaled_like_the_others_of_its_folder(tmp_path):
    for name, value in (("bright", 60000), ("dark", 3000)):
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.fromarray(np.full((32, 32), value + i, np.uint16)).save(tmp_path / name / f"{i}.png")
    dataset = load_folder(tmp_path)
    assert dataset.train.images[dataset.train.labels == 1].max() == 3000 * 255 // 65535


def test_negative_pixels_are_refused(tmp_path):
    Image.fromarray(np.full((32, 32), -1000, np.int32)).save(tmp_path / "ct.tif")
    with pytest.raises(InputError, match="ct.tif.*from -1000 to -1000.*8 bits"):
        decode(tmp_path / "ct.tif", 1, 32, 32)


# --- the split ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [[10, 1, 1], [2, 2, 2], [40, 2, 1, 7], [3, 3]])
def test_no_class_loses_its_last_training_image(counts):
    labels = np.repeat(np.arange(len(counts)), counts)
    split = Split(np.zeros((len(labels), 1, 1, 1), np.uint8), labels)
    for count in range(max(1, sum(c > 1 for c in counts)), len(labels) - len(counts) + 1):
        rest, taken = stratified_split(split, count, seed=1)
        assert len(taken.labels) == count
        assert np.bincount(rest.labels, minlength=len(counts)).min() >= 1


def test_two_images_a_class_are_a_data_set_and_one_is_none(tmp_path):
    for name in ("cat", "dog", "eel"):
        write_images(tmp_path / name, 2)
    dataset = load_folder(tmp_path)
    assert sorted(dataset.train.labels) == sorted(dataset.test.labels) == [0, 1, 2]
    for name in ("cat", "dog", "eel"):
        (tmp_path / name / "0.png").unlink()
    with pytest.raises(InputError, match="3 are available"):
        load_folder(tmp_path)


@pytest.mark.parametrize("names", [("train", "test"), ("Train",), ("training", "val", "test1"), ("my_train", "test-images")])
def test_images_in_splits_without_classes_are_no_classes(tmp_path, names):
    for name in names:
        write_images(tmp_path / name, 3)
    with pytest.raises(InputError, match=f"{sorted(names, key=str.casefold)[-1]} lie in no class folders: sort them into .*/CLASS"):
        load_folder(tmp_path)
    write_images(tmp_path / "plane", 3)
    assert len(load_folder(tmp_path).classes) == len(names) + 1  # a class may be called train


def test_floats_and_broken_files_are_named_with_their_reasons(tmp_path, capsys):
    for name in ("ant", "bee"):
        write_images(tmp_path / name, 2)
        for i in range(2):
            Image.fromarray(np.full((32, 32), 0.5, np.float32)).save(tmp_path / name / f"deep{i}.tif")
    (tmp_path / "bee" / "bad.png").write_bytes(b"none")
    words = r"ant/deep0.tif, ant/deep1.tif, bee/deep0.tif, bee/deep1.tif \(its pixels are floating-point .*: save it with 8 bits"
    with pytest.raises(
        InputError, match=rf"5 of 9 files .*: {words}.* bee/bad.png \(cannot identify image file\); repair, convert"
    ) as e:
        load_folder(tmp_path)
    assert "\n" not in str(e.value) and str(e.value).count(str(tmp_path)) == 1
    load_folder(tmp_path, skip_unreadable=True)
    assert "floating-point" in capsys.readouterr().err
