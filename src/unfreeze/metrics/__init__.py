"""Scores, confidence intervals, calibration, label issues and dataset shift on NumPy arrays, without torch."""
