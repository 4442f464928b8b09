"""The studio: a local web application for runs, data sets and jobs."""
