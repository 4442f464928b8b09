"""People start here: the command line."""
