"""Turn any PyTorch network into a Bayesian one, at a cost people will pay, and prove it."""
