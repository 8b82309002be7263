"""What predictions give away about the training data."""
