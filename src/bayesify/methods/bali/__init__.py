"""Layers as Bayesian linear regressions on pseudo-targets."""
