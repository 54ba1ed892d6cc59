"""Digits from 16 images a class: a fully connected network, and one with a convolution."""
