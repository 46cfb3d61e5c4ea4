"""Encoders of utterances: waveforms in, vectors out."""
