"""What the fork server of processes.py imports once for all its children, who share it."""

# ruff: noqa: E402, F401

import gc
import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # as transform.py sets it before it imports that
gc.disable()  # to look for garbage takes a tenth of the time

import albumentations
import matplotlib.figure
import torchvision.datasets

import images.own_images
import main
import results.report
import training

gc.freeze()
gc.enable()
