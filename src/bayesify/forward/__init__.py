"""The caller of the model: with other weights, for many samples or members at once."""
