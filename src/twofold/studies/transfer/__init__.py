"""SimCLR's transfer study: 12 data sets, linear and fine-tuned."""
