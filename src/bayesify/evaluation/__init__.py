"""Collect predictions once, measure many things: metrics, calibration, out-of-distribution scores.

Import from the files: `from bayesify.evaluation.evaluate import evaluate`.
"""
