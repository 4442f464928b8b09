"""What a browser shows: one stylesheet and the templates."""
