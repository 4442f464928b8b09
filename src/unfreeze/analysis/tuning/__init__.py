"""Hyperparameter search with nested evaluation."""
