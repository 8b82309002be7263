"""One file for each format or set of data that is known by name."""
