"""The commands that train a network, and what all commands share."""

import time

STARTED = time.perf_counter()
"""When this was first imported: before anything that takes time, which is a part of what a user waits for."""
