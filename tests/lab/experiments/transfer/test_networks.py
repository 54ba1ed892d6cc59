"""The networks of transfer: frozen features stay frozen."""

import pytest
import torch
from made_up_images import noise

from config import TrainConfig
from lab.common.trainings import take_images
from lab.experiments.transfer import networks
from model import Net
from training import Trainer


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_features_stay_as_they_are(frozen):
    images = take_images(noise(), (), 20, 0)
    config = TrainConfig(steps=5, batch_size=20, whiten_images=20, precision="fp32")
    torch.manual_seed(0)
    features, width = networks.net_features(Net(1, 5))
    model = networks.Transferred(features, width, 2, frozen)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Trainer(model, images.dataset, config, val_split=images.val).fit()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"head.weight", "head.bias"} <= changed
    assert "features.0.0.weight" not in changed  # the whitened stem is part of what was learned
    assert any(name.startswith("features") for name in changed) == (not frozen)
