"""The convolution by hand, and what it costs."""
