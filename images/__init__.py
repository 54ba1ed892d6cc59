"""Data sets: where images come from, and the batches made of them."""
