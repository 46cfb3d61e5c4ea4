"""The operators and views of SimCLR's augmentation studies."""
