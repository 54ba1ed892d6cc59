"""What is made of a trained network and of the record of its training."""
