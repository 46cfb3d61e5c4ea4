"""What a representation is worth: protocols on frozen features, and monitors of a run that is under way."""
