"""Gaussians that many weights share: the distribution, its weights, and its bytes on disk."""
