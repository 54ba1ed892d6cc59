"""The experiments, each of which ends in one page to hand in."""
