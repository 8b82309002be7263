"""Bounds on the risk of a posterior that hold with high probability."""
