"""Checkpoints of other implementations in, and ours out in their layouts."""
