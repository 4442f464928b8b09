"""Self-contained HTML reports of runs, data sets, comparisons, searches and explanations."""
