"""The lab of the course: the convolution by hand, measurements of the network, experiments."""
