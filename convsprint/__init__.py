"""ConvSprint in Python: load trained weights, predict, train on arrays or folders.

    import convsprint

    network = convsprint.load("weights/accurate.safetensors")
    network.predict(["cat.jpg", "dog.jpg"])

The project's own modules (config, model, utils, ...) stay out of `sys.path` and have other names in `sys.modules`: modules of the
same names beside a script are the script's own.
"""

from convsprint import project  # noqa: F401, I001 (it comes first: by it the next ones find the project)
from convsprint.network import InputError, Network, load
from convsprint.fitting import fit

__all__ = ["InputError", "Network", "fit", "load"]
