"""One file a protocol of evaluation."""
