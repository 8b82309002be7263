"""What everything stands on and knows nothing of Bayes: errors, options, batches, modes, files."""
