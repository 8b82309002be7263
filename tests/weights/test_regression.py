"""The truth is the joint Gaussian of all outputs under weight sampling, by dense algebra:

z = J vec(W~) with cov vec(W~) = V kron P^-1 has covariance J (V kron P^-1) J'.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev
from torch.nn import functional as F

from bayesify.core.types import Draw, Named
from bayesify.forward import outputs as forward
from bayesify.tracing.linear_maps import LinearMap
from bayesify.weights import regression
from bayesify.weights.noise_scope import NoiseScope
from bayesify.weights.regression import RegressionWeight

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
OUT = 3

ONE, TWO = (1, 1), (2, 2)
OPERATIONS: dict[str, tuple[Callable[..., Tensor], LinearMap, tuple[int, ...], tuple[int, ...]]] = {
    "linear": (F.linear, LinearMap("w"), (4,), (2, 4)),
    "linear of sequences": (F.linear, LinearMap("w"), (4,), (2, 3, 4)),
    "conv1d": (
        lambda x, w, b=None: F.conv1d(x, w, b, 2, 1),
        LinearMap("w", None, (3,), (2,), ((1, 1),), (1,)),
        (2, 3),
        (2, 2, 5),
    ),
    "conv2d": (
        lambda x, w, b=None: F.conv2d(x, w, b, 2, 1),
        LinearMap("w", None, TWO, TWO, (ONE, ONE), ONE),
        (1, 2, 2),
        (2, 1, 3, 4),
    ),
}


class Law:
    """A matrix-normal weight for one of the operations, with its bias inside or beside it."""

    def __init__(
        self, name: str, *, constant: bool, scope: NoiseScope = NoiseScope.EXAMPLE
    ) -> None:
        self.scope = scope
        self.op, self.map, fan_in, self.input_shape = OPERATIONS[name]
        self.constant, self.shape = constant, (OUT, *fan_in)
        a = torch.Size(fan_in).numel() + constant
        self.loc, self.bias = torch.randn(self.shape).double(), torch.randn(OUT).double()
        self.row, self.column = factor(a), factor(OUT)
        self.x = torch.randn(self.input_shape).double()

    @property
    def covariance(self) -> Tensor:
        """Of W~, (a, b, a, b)."""
        rows, columns = torch.cholesky_inverse(self.row), self.column @ self.column.T
        return torch.einsum("ik,jl->ijkl", rows, columns)

    def weight(self, generator: torch.Generator | None = None) -> RegressionWeight:
        return RegressionWeight(
            self.loc,
            self.row,
            self.column,
            self.map,
            constant=self.constant,
            generator=generator,
            scope=self.scope,
        )

    def act(self, generator: torch.Generator | None = None, x: Tensor | None = None) -> Tensor:
        return self.op(self.x if x is None else x, self.weight(generator), self.bias)

    def sampled(self, around: Tensor) -> Tensor:
        """The output when the weights are their means plus `around` (a, b)."""
        weight, bias = self.map.weights(
            around[None], torch.Size(self.shape), constant=self.constant
        )
        return self.op(
            self.x, self.loc + weight[0], self.bias if bias is None else self.bias + bias[0]
        )


def factor(n: int) -> Tensor:
    root = torch.randn(n, n).double()
    return torch.linalg.cholesky(root @ root.T / n + 0.3 * torch.eye(n))


def slope_in_the_noise(monkeypatch, function: Callable[[], Tensor]) -> Tensor:
    """How the result depends on the noise, which is linear: d result / d noise, (*result, n)."""
    shapes = []

    def record(like: Tensor, generator: object) -> Tensor:
        shapes.append(like.shape)
        return torch.zeros_like(like)

    monkeypatch.setattr(regression, "standard_normal", record)
    function()
    (shape,) = shapes  # drawn once

    def of_noise(noise: Tensor) -> Tensor:
        monkeypatch.setattr(regression, "standard_normal", lambda like, generator: noise)
        return function()

    slope = jacrev(of_noise)(torch.zeros(shape).double())
    return slope.flatten(-len(shape))


@pytest.mark.parametrize("scope", NoiseScope)
@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_example_has_the_joint_law_of_weight_sampling_exactly(
    name, constant, scope, monkeypatch
):
    if scope is NoiseScope.ROW and name != "linear":
        pytest.skip("more than one row an example")
    law = Law(name, constant=constant, scope=scope)
    center = torch.zeros(len(law.row), OUT).double()
    jacobian = jacrev(law.sampled)(center).flatten(0, -3)  # (z, a, b)
    want = torch.einsum("zij,ijkl,ykl->zy", jacobian, law.covariance, jacobian)

    slope = slope_in_the_noise(monkeypatch, law.act).flatten(0, -2)  # (z, noise)
    got = slope @ slope.T  # for the signs that were drawn: whatever they are
    examples = len(law.x)
    each = len(got) // examples
    for i in range(examples):
        own = slice(i * each, (i + 1) * each)
        torch.testing.assert_close(got[own, own], want[own, own], **TIGHT)
    if scope is NoiseScope.BATCH:
        torch.testing.assert_close(got, want, **TIGHT)  # examples share the draw
    if scope is NoiseScope.ROW:
        assert got[:each, each:].abs().max() == 0

    monkeypatch.setattr(
        regression, "standard_normal", lambda like, generator: torch.zeros_like(like)
    )
    torch.testing.assert_close(law.act(), law.sampled(center), **TIGHT)


@pytest.mark.parametrize("constant", [True, False])
def test_the_spread_is_the_leverage_times_the_noise_covariance(constant, monkeypatch):
    law = Law("linear", constant=constant, scope=NoiseScope.ROW)
    h = torch.cat([law.x, torch.ones(2, 1).double()], 1) if constant else law.x
    leverage = torch.einsum("na,ab,nb->n", h, torch.cholesky_inverse(law.row), h)
    noise = torch.randn(2, OUT).double()
    monkeypatch.setattr(regression, "standard_normal", lambda like, generator: noise)
    want = law.x @ law.loc.T + law.bias + leverage.sqrt()[:, None] * noise @ law.column.T
    torch.testing.assert_close(law.act(), want, **TIGHT)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("name", OPERATIONS)
def test_gradients_pass_through_mean_and_scale(name, constant):
    law = Law(name, constant=constant)

    def output(x: Tensor, loc: Tensor, bias: Tensor, row: Tensor, column: Tensor) -> Tensor:
        seeded = torch.Generator().manual_seed(3)
        weight = RegressionWeight(loc, row, column, law.map, constant=constant, generator=seeded)
        return law.op(x, weight, bias)

    given = [each.requires_grad_() for each in (law.x, law.loc, law.bias, law.row, law.column)]
    assert torch.autograd.gradcheck(output, given)


def test_the_gradient_in_the_input_is_that_of_the_formula(monkeypatch):
    law, noise = (
        Law("linear", constant=True, scope=NoiseScope.ROW),
        torch.randn(2, OUT).double(),
    )
    monkeypatch.setattr(regression, "standard_normal", lambda like, generator: noise)
    x, weights = law.x.requires_grad_(), torch.randn(2, OUT).double()
    (got,) = torch.autograd.grad((law.act() * weights).sum(), x)
    h = torch.cat([law.x.detach(), torch.ones(2, 1).double()], 1)
    solved = h @ torch.cholesky_inverse(law.row)
    scale = (solved * h).sum(1, keepdim=True).sqrt()
    # d |L^-1 h| / dh = P^-1 h / |L^-1 h|
    along = ((noise @ law.column.T) * weights).sum(1, keepdim=True)
    want = weights @ law.loc + along * (solved / scale)[:, :-1]
    torch.testing.assert_close(got, want, **TIGHT)


def test_features_of_zero_have_finite_gradients():
    law = Law("linear", constant=False)
    x = torch.zeros(2, 4).double().requires_grad_()
    out = law.act(torch.Generator().manual_seed(0), x)
    torch.testing.assert_close(out, law.bias.expand(2, OUT), rtol=0, atol=1e-6)
    assert torch.isfinite(torch.autograd.grad(out.sum(), x)[0]).all()


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_dense_weight_has_the_weights_own_moments(name, constant, monkeypatch):
    law = Law(name, constant=constant)
    slope = slope_in_the_noise(monkeypatch, lambda: law.weight().dense()).flatten(0, -2)
    fan_in = law.loc[0].numel()
    part = law.covariance[:fan_in, :, :fan_in]  # the bias is left out
    want = part.transpose(0, 1).transpose(2, 3).reshape(law.loc.numel(), -1)  # as (out, *fan-in)
    torch.testing.assert_close(slope @ slope.T, want, **TIGHT)
    monkeypatch.setattr(
        regression, "standard_normal", lambda like, generator: torch.zeros_like(like)
    )
    torch.testing.assert_close(law.weight().dense(), law.loc, **TIGHT)


def test_what_does_not_multiply_sees_one_weight_for_all_examples(generator):
    law = Law("linear", constant=True)
    out = torch.ones(5, 4).double() @ law.weight(generator).T
    torch.testing.assert_close(out, out[:1].expand(5, OUT))
    assert (out[0] - law.loc.sum(1)).abs().min() > 1e-3


def test_a_seed_decides_the_noise_and_the_global_generator_rests():
    law = Law("linear", constant=True)
    before = torch.get_rng_state()
    first, again, other = (law.act(torch.Generator().manual_seed(seed)) for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_factors_may_be_more_precise_than_the_network(generator):
    law = Law("linear", constant=True)
    law.loc, law.bias = law.loc.bfloat16(), law.bias.bfloat16()
    law.row, law.column = law.row.float(), law.column.float()
    out = law.act(generator, law.x.bfloat16())
    assert out.dtype == law.weight(generator).dense().dtype == torch.bfloat16
    assert torch.isfinite(out).all()


# --- members with laws of their own


class Members:
    """A linear layer for `forward.tape`, with K laws."""

    def __init__(self, k: int) -> None:
        laws = [Law("linear", constant=True, scope=NoiseScope.ROW) for _ in range(k)]
        self.laws, self.model = laws, nn.Linear(4, OUT).double()
        self.draw: Draw = {
            name: torch.stack([getattr(law, name) for law in laws])
            for name in ("loc", "bias", "row", "column")
        }

    def run(self, x: Tensor, generator: torch.Generator, *, vectorize: bool) -> Tensor:
        def weights(one: Named) -> Named:
            weight = RegressionWeight(
                one["loc"],
                one["row"],
                one["column"],
                self.laws[0].map,
                constant=True,
                generator=generator,
                scope=NoiseScope.ROW,
            )
            return {"weight": weight, "bias": one["bias"]}

        out, self.tape = forward.tape(
            self.model, self.draw, weights, x, layers=["weight"], vectorize=vectorize
        )
        return out


def test_members_at_once_are_each_alone_under_the_same_noise(monkeypatch, generator):
    members, x, noise = Members(3), torch.randn(5, 4).double(), torch.randn(5, OUT).double()
    monkeypatch.setattr(regression, "standard_normal", lambda like, generator: noise)
    want = torch.stack([law.act(None, x) for law in members.laws])
    for vectorize in (True, False):
        out = members.run(x, generator, vectorize=vectorize)
        torch.testing.assert_close(out.detach(), want, **TIGHT)
        torch.autograd.grad(out.square().sum(), [members.tape.anchor])
        torch.testing.assert_close(members.tape.gradients("weight")[0], 2 * want, **TIGHT)
        assert members.tape.is_output("weight")


@pytest.mark.parametrize("vectorize", [True, False])
def test_members_see_noise_of_their_own_laws(vectorize, generator):
    members, n, x = Members(3), 20_000, torch.randn(4).double()
    out = members.run(x.expand(n, 4), generator, vectorize=vectorize).detach()
    h = torch.cat([x, torch.ones(1).double()])
    for law, draws in zip(members.laws, out, strict=True):
        mean = law.loc @ x + law.bias
        want = (h @ torch.cholesky_inverse(law.row) @ h) * law.column @ law.column.T
        variance = want.diagonal()
        assert ((draws.mean(0) - mean).abs() <= 5 * (variance / n).sqrt()).all()
        error = ((variance[:, None] * variance + want.square()) / n).sqrt()
        assert ((draws.T.cov() - want).abs() <= 5 * error).all()
    whitened = torch.stack(
        [
            torch.linalg.solve_triangular(law.column, (each - each.mean(0)).T, upper=False)[0]
            for law, each in zip(members.laws, out, strict=True)
        ]
    )
    between = whitened.corrcoef() - torch.eye(3)
    assert between.abs().max() < 5 / n**0.5  # not the same noise for all members
