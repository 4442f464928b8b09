"""Networks that are trained: batches, the loop, memory, folds side by side, and what they leave behind."""
