"""Names, errors, options, batches, modes and files: what everything stands on, and knows nothing of Bayes."""
