"""Scores of predictions against the truth, as plain functions of tensors."""
