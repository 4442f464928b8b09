"""Cross-validation, and the strategies that train a classifier in each fold."""
