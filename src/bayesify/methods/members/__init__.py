"""Finite sets of networks: one, an ensemble, low-rank members, alone or under SVGD."""
