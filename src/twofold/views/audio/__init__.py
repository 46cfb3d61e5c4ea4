"""Views of waveforms and masks on their spectrograms."""
