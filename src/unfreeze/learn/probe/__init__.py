"""Frozen features, computed once and kept, and the linear heads on them."""
