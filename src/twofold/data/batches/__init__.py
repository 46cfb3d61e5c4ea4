"""Which examples make a step, and how they are made ready for it."""
