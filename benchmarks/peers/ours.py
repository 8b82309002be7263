"""bayesify's own methods, through its one door; options at their defaults but for the budget.

The rate of the grid is that of the trained network; a method that goes on from there keeps its own
default rate. Rows whose number is fitted to the validation part are named so in the roster.
"""

import torchvision_operators  # noqa: F401  for laplace-torch, which `Laplace` asks
from job import Job, Predict
from plain_torch import DROPOUT, MEMBERS

import bayesify
from bayesify.posteriors.base import Posterior
from bayesify.training.method import Method


def map_(job: Job) -> Predict:
    """Maximum a posteriori."""
    return _predict(job, _fit(job, _map(job)))


def map_scaled(job: Job) -> Predict:
    """The same, and one temperature fitted to the validation part."""
    held_out = job.held_out_x, job.held_out_y
    return _predict(job, bayesify.temperature_scaled(_fit(job, _map(job)), held_out))


def ensemble(job: Job) -> Predict:
    """Members that train at once."""
    return _predict(
        job, _fit(job, bayesify.Ensemble(members=MEMBERS, epochs=job.epochs, lr=job.lr))
    )


def mean_field(job: Job) -> Predict:
    """Two thirds of the budget train the network, one third the Gaussians around it."""
    own = job.epochs // 3
    return _predict(
        job, _fit(job, bayesify.MeanFieldVI(pretrain=_map(job, job.epochs - own), epochs=own))
    )


def mean_field_wide(job: Job) -> Predict:
    """The same with more noise from the start and less of a prior, chosen on validation parts."""
    own = job.epochs // 3
    method = bayesify.MeanFieldVI(
        pretrain=_map(job, job.epochs - own),
        epochs=own,
        lr=job.lr,
        initial_scale=0.5,
        prior_scale=1.0,
        temperature=0.01,
    )
    return _predict(job, _fit(job, method))


def stf(job: Job) -> Predict:
    """The same over the first layer alone."""
    own = job.epochs // 3
    return _predict(job, _fit(job, bayesify.STF(pretrain=_map(job, job.epochs - own), epochs=own)))


def dropout(job: Job) -> Predict:
    """One mask for all examples of a batch and each of the samples."""
    method = bayesify.MCDropout(pretrain=_map(job))
    return _predict(job, _fit(job, method, dropout=DROPOUT))


def swag(job: Job) -> Predict:
    """Half of the budget trains the network, a sixth is burnt in, a third is collected."""
    method = bayesify.SWAG(
        pretrain=_map(job, job.epochs // 2), burn_in=job.epochs // 6, epochs=job.epochs // 3
    )
    return _predict(job, _fit(job, method))


def diagonal_laplace(job: Job) -> Predict:
    """The size of the noise is chosen on the validation part."""
    return _predict(job, _fit(job, bayesify.DiagonalLaplace(pretrain=_map(job))))


def laplace(job: Job) -> Predict:
    """The defaults of `bayesify.Laplace`."""
    return _predict(job, _fit(job, bayesify.Laplace(pretrain=_map(job))))


def laplace_all(job: Job) -> Predict:
    """All layers, Kronecker-factored, linearised."""
    return _predict(
        job, _fit(job, bayesify.Laplace(pretrain=_map(job), where=bayesify.all_weights))
    )


def last_layer_vi(job: Job) -> Predict:
    """The defaults of `bayesify.LastLayerVI`."""
    own = job.epochs // 3
    return _predict(
        job, _fit(job, bayesify.LastLayerVI(pretrain=_map(job, job.epochs - own), epochs=own))
    )


def _map(job: Job, epochs: int | None = None) -> bayesify.MAP:
    return bayesify.MAP(epochs=epochs or job.epochs, lr=job.lr)


def _fit(job: Job, method: Method, *, dropout: float = 0.0) -> Posterior:
    return bayesify.fit(
        job.net(dropout=dropout),
        (job.x, job.y),
        method,
        validation=(job.held_out_x, job.held_out_y),
        seed=job.seed,
        batch_size=job.batch_size,
    )


def _predict(job: Job, posterior: Posterior) -> Predict:
    return lambda x: posterior.predict(x, num_samples=job.num_samples).probs  # type: ignore[union-attr]
