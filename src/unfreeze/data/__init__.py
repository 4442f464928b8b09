"""Reading, decoding, checking and splitting images. No torch."""
