"""Linear algebra and closed-form Gaussian algebra on plain tensors, batched over members."""
