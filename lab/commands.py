"""Run an experiment or a measurement: `./run.sh lab NAME --help` lists its options."""

from __future__ import annotations

from lab.convolution.cost import ByHand
from lab.experiments.activations import Activations
from lab.experiments.cifar_ladder import CifarLadder
from lab.experiments.digits.digits_conv import DigitsConv
from lab.experiments.digits.digits_fc import DigitsFC
from lab.experiments.more_data import MoreData
from lab.experiments.transfer.transfer import Transfer
from lab.measurements.gradients_page import Gradients
from lab.measurements.layers import Layers
from lab.measurements.runtimes_page import Runtimes

# Their files import torch in the functions that compute with it: no --help waits for it.
MEASUREMENTS = {"conv2d": ByHand, "runtimes": Runtimes, "layers": Layers, "gradients": Gradients}
EXPERIMENTS = {command.NAME: command for command in (DigitsFC, DigitsConv, Activations, MoreData, CifarLadder, Transfer)}
COMMANDS = {**MEASUREMENTS, **EXPERIMENTS}
