"""What the data leave open: layers that can be retrained, and confidence far away."""
