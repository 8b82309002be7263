"""Gaussians from the curvature of the loss at a trained network."""
