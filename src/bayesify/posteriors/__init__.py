"""What a fit gives: posteriors over weights, kept on disk, scaled and re-estimated."""
