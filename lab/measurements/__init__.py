"""Measurements of the network: its layers, its gradients, its runtimes."""
