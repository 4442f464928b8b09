"""Building blocks shared by all layers: errors, files, cache, recipes, datasets and run folders.

No module of this package imports torch.
"""
