"""Adversarial inputs, and how a posterior stands up to them."""
