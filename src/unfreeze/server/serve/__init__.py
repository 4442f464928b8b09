"""HTTP prediction API."""
