"""Distributions over named weights, and the divergences between them and a prior.

`DISTRIBUTIONS` is read when a saved posterior is loaded.
"""

from bayesify.distributions.base import WeightDistribution
from bayesify.distributions.dense_normal import DenseNormal
from bayesify.distributions.kronecker_normal import KroneckerNormal
from bayesify.distributions.low_rank_normal import LowRankNormal
from bayesify.distributions.low_rank_particles import LowRankParticles
from bayesify.distributions.matrix_normal import MatrixNormal
from bayesify.distributions.mean_field import MeanField
from bayesify.distributions.particles import Particles
from bayesify.distributions.shared.normal import SharedNormal

DISTRIBUTIONS: dict[str, type[WeightDistribution]] = {
    "DenseNormal": DenseNormal,
    "KroneckerNormal": KroneckerNormal,
    "LowRankNormal": LowRankNormal,
    "LowRankParticles": LowRankParticles,
    "MatrixNormal": MatrixNormal,
    "MeanField": MeanField,
    "Particles": Particles,
    "SharedNormal": SharedNormal,
}
