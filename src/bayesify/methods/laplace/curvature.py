"""The curvature of a trained network and the evidence of its prior, from laplace-torch.

Source: the library laplace-torch (Daxberger et al. 2021, arXiv 2106.14806), an optional extra. It
is asked for the generalised Gauss-Newton matrix G in three structures, and for the approximation
of the log evidence, which is climbed in the prior precision:

    ln p(D) ~ sum_n ln p(y_n | x_n, w*) - 1/2 [ w*^T T w* + ln|G + T| - ln|T| ],    T = diag(tau)

What comes back is one of our own distributions, so that predictions, files and attacks know nothing
of that library. Sums over batches are kept in double precision, and scaled to all N examples.
It is given the network behind a module that applies our readout and takes any inputs, and that puts
the positions of an output (B, C, ...) under one another as rows of C classes.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bayesify.core.batches import batch_size, rows
from bayesify.core.errors import DivergenceError, OptionError, UnsupportedModelError
from bayesify.core.modes import attention_for_vmap, evaluating, seeded
from bayesify.core.types import Inputs, Named, Readout
from bayesify.distributions.dense_normal import DenseNormal
from bayesify.distributions.kronecker_normal import KroneckerNormal
from bayesify.distributions.mean_field import MeanField
from bayesify.forward.checkpointing import no_checkpointing
from bayesify.likelihoods import Likelihood
from bayesify.methods.laplace.limits import KINDS, check_layers, check_likelihood
from bayesify.numerics.linalg import cholesky
from bayesify.numerics.noise import single_or_better
from bayesify.tracing.trace import call
from bayesify.training.problem import Problem
from bayesify.weights.named import count, weights_of

DENSE = 2**13
"""Weights, at most, that one matrix is made over: half a GiB, and factorised 100 times."""

JACOBIAN = 2**25
"""Numbers that the Jacobians of the examples taken at once may hold."""

AT_ONCE = 8
"""Examples, at most, whose Jacobians are taken at once: the work is the square of it."""


def library() -> Any:
    """The module `laplace`.

    Raises:
        OptionError: it is not installed, or does not import.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what it imports
            import laplace
            import laplace.curvature
    except (ImportError, RuntimeError) as error:
        raise OptionError(
            f"Laplace asks laplace-torch for the curvature, which cannot be imported ({error}); "
            f"`pip install bayesify[laplace]`, or take bayesify.DiagonalLaplace, which needs no "
            f"other library."
        ) from error
    return laplace


class Rows(nn.Module):
    """The network as laplace-torch calls it: inputs under a key, outputs (rows, classes)."""

    def __init__(self, model: nn.Module, readout: Readout) -> None:
        super().__init__()
        self.model, self.readout = model, readout

    def forward(self, batch: dict[str, Any]) -> Tensor:
        """Rows are the examples, or their positions."""
        output = self.readout(call(self.model, batch["inputs"]))
        if output.ndim > 2:
            return output.movedim(1, -1).flatten(0, -2)
        return output if output.ndim == 2 else output[:, None]


class Curvature:
    """Adds up the curvature of batches; gives the Gaussian of which it is the precision.

    Args:
        problem: With the trained network, which is put in eval mode and stays as it is.
        names: Weights that are random.
        structure: "full", "kron" or "diag".
        prior_precision: tau, until `tune_` is called.

    Raises:
        UnsupportedModelError: no form for the likelihood, or too many weights for a full matrix.
        UnsupportedLayerError: a layer whose curvature has no Kronecker factors.
    """

    def __init__(
        self, problem: Problem, names: list[str], structure: str, prior_precision: float
    ) -> None:
        check_likelihood(problem.likelihood)
        self.problem, self.structure = problem, structure
        self.loc: Named = {n: each for n, each in weights_of(problem.model).items() if n in names}
        if structure == "full" and count(self.loc) > DENSE:
            raise UnsupportedModelError(
                f"Laplace(structure='full') needs a matrix over all random weights, "
                f"{8 * count(self.loc) ** 2 / 2**30:.0f} GiB for these {count(self.loc)} (at most "
                f"{DENSE} are taken); choose structure='kron', or fewer weights by `where`."
            )
        if structure == "kron":
            check_layers(problem, list(self.loc))
        rows_of = Rows(problem.model, problem.readout).eval()
        self.wrapped = library()
        with self._alone():
            self.la = self.wrapped.Laplace(
                rows_of,
                KINDS[type(problem.likelihood)],
                subset_of_weights="all",  # of those that want a gradient
                hessian_structure=structure,
                sigma_noise=_noise(problem.likelihood, next(iter(self.loc.values()))),
                prior_precision=prior_precision,
                dict_key_x="rows",
                backend=None if structure == "kron" else self.wrapped.curvature.GGNInterface,
            )
            _ = self.la.backend  # it notes now which weights want a gradient
            self.la.mean = nn.utils.parameters_to_vector(self.la.params).detach().double()
        self.seen, self.loss = 0, torch.zeros((), dtype=torch.float64)
        self.sums = self._empty()

    def add_(self, inputs: Inputs, target: Tensor) -> None:
        """Add the curvature of a batch, and its loss.

        Raises:
            DivergenceError: a number of it is not finite.
            UnsupportedModelError: the curvature of the model cannot be computed.
        """
        with self._alone(), seeded(0, "trace", self.problem.model), attention_for_vmap():
            try:
                parts = [self._batch(*part) for part in self._parts(inputs, target)]
            except (RuntimeError, KeyError, IndexError) as error:
                raise UnsupportedModelError(
                    f"laplace-torch cannot compute the {self.structure!r} curvature of "
                    f"{type(self.problem.model).__name__} ({_reason(error)}); let only the last "
                    f"layer be random (where=bayesify.last_layer), or take structure='diag'."
                ) from error
        for loss, found in parts:
            if not bool(torch.isfinite(loss)) or not all(
                bool(each.isfinite().all()) for each in _tensors(found)
            ):
                raise DivergenceError(
                    "the loss of the trained network or its curvature is not finite; look for "
                    "extreme values in the data and in its weights."
                )
            self.loss = self.loss + loss.double().cpu()
            self.sums = self.sums + found
        self.seen += batch_size(inputs)

    def tune_(self, prior_structure: str) -> None:
        """Climb the evidence in the prior precision: one number, or one for each tensor."""
        self._give_()
        with warnings.catch_warnings(), seeded(0, "trace", self.problem.model), torch.enable_grad():
            warnings.simplefilter("ignore")  # of predictions, which are not its business here
            self.la.optimize_prior_precision(method="marglik", prior_structure=prior_structure)

    def log_evidence(self) -> float:
        """Laplace's approximation of ln p(D), nats."""
        self._give_()
        with torch.no_grad():
            return self.la.log_marginal_likelihood().item()

    def distribution(self) -> DenseNormal | KroneckerNormal | MeanField:
        """The Gaussian around the trained weights; what is not learnt here wants no gradient."""
        self._give_()
        with torch.no_grad():
            precision = self.la.posterior_precision
            if self.structure == "kron":
                q = self._kronecker(precision)
            elif self.structure == "full":
                q = DenseNormal(self.loc, cholesky(precision, name="precision of the weights"))
            else:
                pieces = precision.rsqrt().split([each.numel() for each in self.loc.values()])
                q = MeanField(
                    self.loc,
                    {
                        name: each.view(mean.shape).to(mean.dtype)
                        for (name, mean), each in zip(self.loc.items(), pieces, strict=True)
                    },
                )
        q.loc.requires_grad_(False)
        return q

    def _kronecker(self, precision: Any) -> KroneckerNormal:
        sides: list[Named] = [{}, {}, {}, {}]
        for name, vectors, values in zip(
            self.loc, precision.eigenvectors, precision.eigenvalues, strict=True
        ):
            wide = single_or_better(self.loc[name].dtype)
            for side, (basis, spectrum) in enumerate(zip(vectors, values, strict=True)):
                sides[2 * side][name] = basis.to(wide)
                sides[2 * side + 1][name] = spectrum.to(wide)
        deltas = precision.deltas.expand(len(self.loc))
        prior = {name: each.to(sides[0][name]) for name, each in zip(self.loc, deltas, strict=True)}
        left, left_values, right, right_values = sides
        return KroneckerNormal(self.loc, left, left_values, right, right_values, prior)

    def _empty(self) -> Any:
        """No curvature: a sum to begin with."""
        size, like = count(self.loc), next(iter(self.loc.values()))
        if self.structure == "kron":
            kron = self.wrapped.utils.Kron
            return kron.init_from_model(self.loc.values(), like.device, torch.float64)
        shape = (size, size) if self.structure == "full" else (size,)
        return torch.zeros(shape, dtype=torch.float64, device=like.device)

    def _parts(self, inputs: Inputs, target: Tensor) -> Iterator[tuple[Inputs, Tensor]]:
        """A batch as far as its Jacobians fit; Kronecker factors need none."""
        size = batch_size(inputs)
        step = size
        if self.structure != "kron":
            numbers = count(self.loc) * self._outputs(rows(inputs, slice(1))).numel()
            step = max(1, min(AT_ONCE, JACOBIAN // numbers))
        for start in range(0, size, step):
            part = slice(start, start + step)
            yield rows(inputs, part), target[part]

    def _batch(self, inputs: Inputs, target: Tensor) -> tuple[Tensor, Any]:
        """Loss and curvature, summed over examples; of the right factors of a "kron" the means."""
        size = batch_size(inputs)
        batch = {"inputs": inputs, "rows": torch.empty(size)}
        outputs = self._outputs(inputs)
        if self.la.likelihood == "regression":
            target = target.reshape(outputs.shape).to(outputs)
        else:
            target = target.flatten()
        positions = len(outputs) // size
        self.la.n_outputs = outputs.shape[-1]
        found = getattr(self.la.backend, self.structure)(batch, target, N=positions)
        return found[0].detach(), found[1]  # N = positions: right factors times B, the batch

    def _outputs(self, inputs: Inputs) -> Tensor:
        with torch.no_grad():
            return self.la.model({"inputs": inputs})

    def _give_(self) -> None:
        """Hand the sums, scaled to all N examples, to laplace-torch."""
        share = self.problem.data.num_data / max(1, self.seen)
        self.la.n_data = self.problem.data.num_data
        self.la.loss = share * self.loss.to(self.la.mean.device)
        if self.structure != "kron":
            self.la.H = share * self.sums
            return
        factors = [
            [share * left, *(right / max(1, self.seen) for right in rest)]
            for left, *rest in self.sums.kfacs
        ]
        self.la.H_facs = self.wrapped.utils.Kron(factors)
        self.la.H = self.la.H_facs.decompose()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The random weights want a gradient inside, no others; outside none do."""
        places = dict(self.problem.model.named_parameters())
        with evaluating(self.problem.model), no_checkpointing(), torch.enable_grad():
            try:
                for name, each in places.items():
                    each.requires_grad_(name in self.loc)
                yield
            finally:
                for each in places.values():
                    each.requires_grad_(False)
                    each.grad = None


def _noise(likelihood: Likelihood, like: Tensor) -> float:
    """Standard deviation of the targets' noise; 1 where there is none."""
    precision = likelihood.output_precision(like.new_zeros(1, 1, 1))
    return 1.0 if precision is None else precision.double().rsqrt().item()


def _tensors(curvature: Any) -> list[Tensor]:
    if isinstance(curvature, Tensor):
        return [curvature]
    return [each for factors in curvature.kfacs for each in factors]


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
