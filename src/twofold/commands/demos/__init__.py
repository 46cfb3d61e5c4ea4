"""The demos: real data, minutes, an answer."""
