"""Demo dataset: synthetic portraits in the layout of the face-mask competition."""
