"""Strategies 'partial', 'full' and 'scratch': training of a network in each fold."""
