"""What every layer shares: errors, tables, recipe, run folders, progress, work. No torch."""
