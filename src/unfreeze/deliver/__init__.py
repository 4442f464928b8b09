"""Results leave: the report and the submission."""
