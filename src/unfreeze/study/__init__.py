"""Questions that take several fits to answer; each gives one table and one sentence."""
