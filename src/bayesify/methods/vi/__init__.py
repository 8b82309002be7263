"""Variational inference with independent Gaussians, over all weights or some."""
