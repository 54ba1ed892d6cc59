"""What the fork server of processes.py imports once for all its children, who share it."""

# ruff: noqa: F401

from utils import no_garbage_collection

with no_garbage_collection():
    import matplotlib.figure
    import torchvision.datasets

    import images.own_images
    import main
    import results.report
    import training
    from transform import load_albumentations

    load_albumentations()
