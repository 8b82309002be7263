"""What a forward pass reads and multiplies: which weights, in what order, by which operations."""
