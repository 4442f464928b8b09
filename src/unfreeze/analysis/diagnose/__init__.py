"""Causes of a gap between the test score and the cross-validated score, one module per cause."""
