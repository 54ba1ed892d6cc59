"""The other side of an assignment."""
