"""The one loop of steps, and what keeps it going: checkpoints, resuming, micro-batches, progress and health."""
