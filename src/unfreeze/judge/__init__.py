"""Arrays in, tables out: pure functions, no torch, no files."""
