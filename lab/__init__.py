"""The course's experiments; each file runs alone."""
