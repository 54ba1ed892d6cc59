"""What the numbers of the README come from: each script runs alone and writes its record."""
