"""The commands that train a network."""
