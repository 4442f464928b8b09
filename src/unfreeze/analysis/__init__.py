"""Analyses that require several fits: comparison, recommendation, hyperparameter search and diagnosis."""
