"""What every `WeightDistribution` must do. A new one joins by an entry in `CASES`."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_leaves, tree_map

from bayesify.core.types import Draw, Named
from bayesify.distributions import DISTRIBUTIONS, WeightDistribution
from bayesify.distributions.dense_normal import DenseNormal
from bayesify.distributions.kl import CLOSED_FORMS, kl_divergence
from bayesify.distributions.kronecker_normal import KroneckerNormal
from bayesify.distributions.low_rank_normal import LowRankNormal
from bayesify.distributions.low_rank_particles import LowRankParticles
from bayesify.distributions.matrix_normal import MatrixNormal
from bayesify.distributions.mean_field import MeanField
from bayesify.distributions.particles import Particles
from bayesify.distributions.priors import NormalPrior
from bayesify.distributions.shared.coded import CodedTensor
from bayesify.distributions.shared.normal import SharedNormal
from bayesify.forward import outputs as forward
from bayesify.weights.named import buffers_of, copied, weights_of
from bayesify.weights.structured import StructuredWeight
from zoo import NETS, TiedNet

NAMES = list(DISTRIBUTIONS)


def mean_field(model: nn.Module) -> MeanField:
    loc = weights_of(model)
    return MeanField(loc, {name: 0.2 + torch.rand_like(each) for name, each in loc.items()})


def mean_field_moments(q: MeanField) -> tuple[Tensor, Tensor]:
    return flat(q.loc.named()), flat(q.scale).square().diag()


def mean_field_log_density(q: MeanField, weights: Named) -> Tensor:
    normal = torch.distributions.Normal
    loc, scale = q.loc.named(), q.scale
    terms = [normal(loc[n], scale[n]).log_prob(each).flatten(1) for n, each in weights.items()]
    return torch.cat(terms, 1).sum(1)


def dense_normal(model: nn.Module) -> DenseNormal:
    loc = weights_of(model)
    size = flat(loc).numel()
    return DenseNormal(loc, torch.eye(size) + 0.3 * torch.randn(size, size).tril() / size**0.5)


def dense_normal_moments(q: DenseNormal) -> tuple[Tensor, Tensor]:
    return flat(q.loc.named()), torch.linalg.inv(q.factor @ q.factor.T)


def normal_log_density(moments: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Tensor]:
    def log_density(q: WeightDistribution, weights: Named) -> Tensor:
        law = torch.distributions.MultivariateNormal(*moments(q))
        return law.log_prob(torch.cat([each.flatten(1) for each in weights.values()], 1))

    return log_density


def kronecker_normal(model: nn.Module) -> KroneckerNormal:
    """Two factors for tensors of two axes or more, one for the others."""
    loc = weights_of(model)
    wide = torch.promote_types(next(iter(loc.values())).dtype, torch.float32)
    sides: list[Named] = [{}, {}, {}, {}]
    for name, each in loc.items():
        shape = (len(each), each[0].numel()) if each.ndim > 1 else (each.numel(),)
        for side, size in enumerate(shape):
            sides[2 * side][name] = torch.linalg.qr(torch.randn(size, size).to(wide))[0]
            sides[2 * side + 1][name] = 2 * torch.rand(size).to(wide)
    return KroneckerNormal(loc, *sides, {name: 1 + torch.rand(()).to(wide) for name in loc})


def kronecker_normal_moments(q: KroneckerNormal) -> tuple[Tensor, Tensor]:
    """From the Kronecker product itself."""
    blocks = []
    for name, tau in q.prior.named().items():
        vectors, values = q.left.named()[name], q.left_values.named()[name]
        curvature = vectors @ values.diag() @ vectors.T
        if name in q.right.named():
            vectors, values = q.right.named()[name], q.right_values.named()[name]
            curvature = torch.kron(curvature, vectors @ values.diag() @ vectors.T)
        blocks.append(torch.linalg.inv(curvature + tau * torch.eye(len(curvature)).to(tau)))
    return flat(q.loc.named()), torch.block_diag(*blocks)


def matrix_normal(model: nn.Module) -> MatrixNormal:
    """Tensors of two axes or more are layers, with the bias beside them; other weights points."""
    weights = {name: each.unsqueeze(0) for name, each in weights_of(model).items()}
    wide = torch.promote_types(next(iter(weights.values())).dtype, torch.float32)

    def factor(n: int, scale: float) -> Tensor:
        return scale * (torch.eye(n) + 0.3 * torch.randn(n, n).tril() / n**0.5)[None].to(wide)

    loc: Named = {}
    row: Named = {}
    column: Named = {}
    for name, each in weights.items():
        if each.ndim > 2:
            bias = name.removesuffix("weight") + "bias"
            loc |= {n: weights[n] for n in (name, bias) if n in weights}
            row[name] = factor(each[0, 0].numel() + (bias in weights), 2.0)
            column[name] = factor(each.shape[1], 0.5)
    points = {name: each for name, each in weights.items() if name not in loc}
    buffers = {name: each.unsqueeze(0) for name, each in buffers_of(model).items()}
    return MatrixNormal(loc, row, column, points=points, buffers=buffers)


def matrix_normal_layers(q: MatrixNormal) -> Iterator[tuple[list[str], Tensor]]:
    """For each layer its names, and the covariance V kron P^-1 of vec(W~)."""
    for layer in q.layers:
        row, column = (each.named()[layer.weight][0] for each in (q.row, q.column))
        rows = torch.linalg.inv(row @ row.T).contiguous()
        yield layer.names, torch.kron(column @ column.T, rows)


def as_vec(layer: list[str], weights: Named) -> Tensor:
    """(n, numbers) of vec(W~): for each output its weights, and its bias behind them."""
    parts = [weights[name].flatten(2) if i == 0 else weights[name] for i, name in enumerate(layer)]
    return torch.cat([each.view(*each.shape[:2], -1) for each in parts], 2).flatten(1)


def matrix_normal_moments(q: MatrixNormal) -> tuple[Tensor, Tensor]:
    held = q.loc.named() | q.points.named()
    mean = flat({name: each[0] for name, each in held.items()})
    covariance = torch.zeros(len(mean), len(mean)).to(mean)
    numbers = torch.arange(len(mean)).split([each.numel() for each in held.values()])
    places = {
        name: where.view(each.shape)
        for (name, each), where in zip(held.items(), numbers, strict=True)
    }
    for layer, joint in matrix_normal_layers(q):
        where = as_vec(layer, places)[0]
        covariance[where[:, None], where] = joint
    return mean, covariance


def matrix_normal_log_density(q: MatrixNormal, weights: Named) -> Tensor:
    terms = [
        torch.distributions.MultivariateNormal(as_vec(layer, q.loc.named())[0], joint).log_prob(
            as_vec(layer, weights)
        )
        for layer, joint in matrix_normal_layers(q)
    ]
    return torch.stack(terms).sum(0)


def particles(model: nn.Module) -> Particles:
    members = [copy.deepcopy(model) for _ in range(3)]
    with torch.no_grad():
        for member in members:
            for each in member.parameters():
                each.copy_(torch.randn_like(each))
    return Particles.of_models(members)


def particle_moments(q: Particles) -> tuple[Tensor, Tensor]:
    members = torch.cat([each.flatten(1) for each in q.members.named().values()], 1)  # (M, P)
    return members.mean(0), members.T.cov(correction=0)


def low_rank_normal(model: nn.Module) -> LowRankNormal:
    loc = weights_of(model)
    diagonal = {name: 0.2 + torch.rand_like(each) for name, each in loc.items()}
    deviations = {n: torch.randn(3, *each.shape).to(each) for n, each in loc.items()}
    return LowRankNormal(loc, diagonal, deviations)


def low_rank_normal_moments(q: LowRankNormal) -> tuple[Tensor, Tensor]:
    held = q.deviations.named().values()
    deviations = torch.cat([each.flatten(1) for each in held], 1)  # (K, P)
    low_rank = deviations.T @ deviations / (len(deviations) - 1)
    return flat(q.loc.named()), (flat(q.diagonal.named()).square().diag() + low_rank) / 2


def low_rank_particles(model: nn.Module) -> LowRankParticles:
    q = LowRankParticles.around(
        model, members=3, rank=2, scale=0.5, buffers=list(buffers_of(model))
    )
    with torch.no_grad():
        for each in q.parameters():
            each.copy_(torch.randn_like(each))
    return q


def low_rank_moments(q: LowRankParticles) -> tuple[Tensor, Tensor]:
    all_members = drawn(q, 1)
    members = torch.cat([all_members[name].flatten(1) for name in q.perturbed], 1)  # (M, P)
    return members.mean(0), members.T.cov(correction=0)


def shared_normal(model: nn.Module) -> SharedNormal:
    """Two codes for all weights; in a tensor of two axes or more an outlier and a blend, too."""
    weights = weights_of(model)
    coded, outliers = {}, 0
    for name, each in weights.items():
        place = torch.tensor([0] if each.ndim > 1 else [], dtype=torch.long)
        codes = torch.arange(each.numel()).view(each.shape) % 2
        coded[name] = CodedTensor(
            codes, place, place + 3, place, torch.full_like(place, 100).byte()
        )
        outliers += len(place)
    like = next(iter(weights.values())).detach()
    numbers = (torch.randn(size).to(like) for size in (2, 2, outliers, outliers))
    return SharedNormal(coded, 0.2 + torch.rand(len(coded)).to(like), *numbers)


def shared_normal_moments(q: SharedNormal) -> tuple[Tensor, Tensor]:
    """From the definition, entry by entry."""
    mean, scale = [], []
    book = torch.stack([q.loc, q.log_scale.exp()]).detach()  # (2, K)
    own = iter(torch.stack([q.own_loc, q.own_log_scale.exp()], 1).detach())
    for unit, tensor in zip(q.unit, q.tensors().values(), strict=True):
        entries = [book[:, code] for code in tensor.codes.flatten().tolist()]
        for place in tensor.blends.tolist():  # 100 of 255 parts of code 1, the rest of code 0
            share = 100 / 255
            assert (entries[place] == book[:, 1]).all()
            mixed = torch.stack([share * book[:, 1], (1 - share) * book[:, 0]])
            entries[place] = torch.stack([mixed[:, 0].sum(), mixed[:, 1].norm()])
        for place in tensor.outliers.tolist():
            entries[place] = next(own)
        mean += [unit * each[0] for each in entries]
        scale += [unit * each[1] for each in entries]
    return torch.stack(mean), torch.stack(scale).square().diag()


def shared_normal_log_density(q: SharedNormal, weights: Named) -> Tensor:
    mean, covariance = shared_normal_moments(q)
    law = torch.distributions.Normal(mean, covariance.diag().sqrt())
    return law.log_prob(torch.cat([each.flatten(1) for each in weights.values()], 1)).sum(1)


@dataclass(frozen=True)
class Case:
    """How to build a distribution around a model; its exact moments; its log density, if it has.

    Moments are those of the weights (not the buffers), in the order of the distribution's `names`.
    """

    build: Callable[[nn.Module], WeightDistribution]
    dense_moments: Callable[..., tuple[Tensor, Tensor]]
    log_density: Callable[..., Tensor] | None = None


CASES = {
    "DenseNormal": Case(
        dense_normal, dense_normal_moments, normal_log_density(dense_normal_moments)
    ),
    "KroneckerNormal": Case(
        kronecker_normal, kronecker_normal_moments, normal_log_density(kronecker_normal_moments)
    ),
    "LowRankNormal": Case(low_rank_normal, low_rank_normal_moments),
    "LowRankParticles": Case(low_rank_particles, low_rank_moments),
    "MatrixNormal": Case(matrix_normal, matrix_normal_moments, matrix_normal_log_density),
    "MeanField": Case(mean_field, mean_field_moments, mean_field_log_density),
    "Particles": Case(particles, particle_moments),
    "SharedNormal": Case(shared_normal, shared_normal_moments, shared_normal_log_density),
}


def flat(named: Named) -> Tensor:
    return torch.cat([each.flatten() for each in named.values()])


def drawn(q: WeightDistribution, n: int, seed: int = 0) -> Named:
    """Weights of n samples, name -> (n, *shape)."""

    def plain(draw_one: Draw) -> Named:
        return dense(q.weights(draw_one))

    return torch.vmap(plain)(q.sample(n, generator=torch.Generator().manual_seed(seed)))


def dense(weights: Named) -> Named:
    """Structured weights as the plain tensors that they stand for."""
    return {n: e.dense() if isinstance(e, StructuredWeight) else e for n, e in weights.items()}


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


def test_every_distribution_has_a_case():
    assert set(CASES) == set(DISTRIBUTIONS)
    assert all(DISTRIBUTIONS[name].__name__ == name for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_samples_have_the_exact_mean_and_covariance(name):
    q = CASES[name].build(nn.Linear(3, 2).double())
    mean, covariance = (each.detach() for each in CASES[name].dense_moments(q))
    samples = torch.cat([each.flatten(1) for each in drawn(q, 20_000).values()], 1).detach()
    variance = covariance.diag()
    error = (variance[:, None] * variance + covariance.square()).sqrt()  # of one sample's product
    tolerance = 5 / 20_000**0.5 if q.size(20_000) == 20_000 else 1e-12
    assert ((samples.mean(0) - mean).abs() <= tolerance * variance.sqrt() + 1e-12).all()
    assert ((samples.T.cov(correction=0) - covariance).abs() <= tolerance * error + 1e-12).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_point_is_the_mean_under_the_models_names(name):
    model = NETS["cnn"].model()
    q = CASES[name].build(model)
    point = q.point()
    weights = flat({n: point[n] for n in q.names if n in weights_of(model)})
    torch.testing.assert_close(weights, CASES[name].dense_moments(q)[0].detach())
    held = weights_of(model) | buffers_of(model)
    assert {n: each.shape for n, each in point.items()} == {n: held[n].shape for n in q.names}
    assert not any(each.requires_grad for each in point.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_what_the_model_is_called_with(name):
    model, x = nn.Linear(3, 2), torch.randn(5, 3)
    q = CASES[name].build(model)
    draw_one = tree_map(lambda each: each[1], q.sample(3, generator=seeded()))
    weights = q.weights(draw_one)
    got = functional_call(model, weights, (x,))
    torch.testing.assert_close(got, x @ weights["weight"].T + weights["bias"])
    assert not torch.allclose(got, model(x), atol=0.01)


@pytest.mark.parametrize("name", NAMES)
def test_building_leaves_the_model_as_it_is_and_shares_no_memory(name):
    model = NETS["cnn"].model()
    before = copy.deepcopy(model.state_dict())
    q = CASES[name].build(model)
    with torch.no_grad():
        for each in (*q.parameters(), *q.buffers()):
            each.add_(1)
    assert all(torch.equal(each, before[n]) for n, each in model.state_dict().items())


@pytest.mark.parametrize("net", ["mlp", "cnn", "transformer", "tied"])
@pytest.mark.parametrize("name", NAMES)
def test_all_at_once_is_one_after_the_other_and_in_chunks(name, net):
    model, x = NETS[net].model().eval(), NETS[net].inputs(4)
    q = CASES[name].build(model)
    at_once, loop, chunks = (
        forward.outputs(model, q, x, 11, generator=seeded(), **how)
        for how in ({}, {"vectorize": False}, {"chunk_size": 2})
    )
    assert at_once.shape == (q.size(11), 4, 3)
    torch.testing.assert_close(at_once, loop, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(at_once, chunks, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_the_first_samples_of_more_are_those_of_fewer(name):
    q = CASES[name].build(nn.Linear(3, 2))
    more, fewer = (tree_leaves(q.sample(n, generator=seeded())) for n in (9, 4))
    for long, short in zip(more, fewer, strict=True):
        assert torch.equal(long[: len(short)], short)


@pytest.mark.parametrize("chunk", [1, 2, 100])
@pytest.mark.parametrize("name", NAMES)
def test_draws_in_chunks_are_the_samples(name, chunk):
    q = CASES[name].build(nn.Linear(3, 2))
    whole = tree_leaves(q.sample(7, generator=seeded()))
    pieces = [tree_leaves(each) for each in q.draws(7, chunk, generator=seeded())]
    assert all(len(piece[0]) <= chunk for piece in pieces)
    for number, each in enumerate(whole):
        assert torch.equal(torch.cat([piece[number] for piece in pieces]), each)


@pytest.mark.parametrize("name", NAMES)
def test_seeds_decide_the_samples_and_the_global_generator_rests(name):
    q = CASES[name].build(nn.Linear(3, 2))
    before = torch.get_rng_state()
    first, again, other = drawn(q, 4, 0), drawn(q, 4, 0), drawn(q, 4, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(flat(first), flat(again))
    if q.size(4) == 4:
        assert not torch.equal(flat(first), flat(other))


@pytest.mark.parametrize("name", NAMES)
def test_samples_differ_from_each_other(name):
    samples = drawn(CASES[name].build(nn.Linear(3, 2)), 3)
    for each in samples.values():
        assert not torch.equal(each[0], each[1])


@pytest.mark.parametrize("how", [{}, {"vectorize": False}, {"chunk_size": 2}])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name, how):
    model, x = NETS["mlp"].model(), NETS["mlp"].inputs(16)
    q = CASES[name].build(model)
    forward.outputs(model, q, x, 5, generator=seeded(), **how).square().sum().backward()
    for parameter, each in q.named_parameters():
        assert each.grad is not None, parameter
        assert each.grad.abs().sum() > 0, parameter
    assert all(each.grad is None for each in model.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_the_state_comes_back_to_the_bit(name):
    q = CASES[name].build(NETS["cnn"].model())
    again = type(q).from_state(copied(q.state_dict()))
    assert list(again.state_dict()) == list(q.state_dict())
    assert all(torch.equal(e, again.state_dict()[n]) for n, e in q.state_dict().items())
    assert again.names == q.names
    samples, copies = (tree_leaves(each.sample(3, generator=seeded())) for each in (q, again))
    assert all(torch.equal(a, b) for a, b in zip(samples, copies, strict=True))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", NAMES)
def test_dtype_and_names_are_the_models(name, dtype):
    model = NETS["mlp"].model().to(dtype)
    q = CASES[name].build(model)
    assert sorted(q.names) == sorted(weights_of(model))
    for key, each in drawn(q, 2).items():
        assert each.dtype == dtype
        assert each.shape[1:] == weights_of(model)[key].shape
    out = forward.outputs(model, q, NETS["mlp"].inputs(3).to(dtype), 2)
    assert out.dtype == dtype


@pytest.mark.parametrize("name", NAMES)
def test_a_tied_weight_is_one_weight(name):
    model, ids = TiedNet().eval(), NETS["tied"].inputs(4)
    q = CASES[name].build(model)
    assert "embed.weight" in q.names
    assert "score.weight" not in q.names
    weights = q.weights(tree_map(lambda each: each[0], q.sample(1, generator=seeded())))
    table = weights["embed.weight"]
    hidden = table[ids].mean(1) @ weights["mix.weight"].T + weights["mix.bias"]
    got = forward.outputs(model, q, ids, 1, generator=seeded(), vectorize=False)[0]
    torch.testing.assert_close(got, torch.tanh(hidden) @ table.T)


@pytest.mark.parametrize("pair", CLOSED_FORMS, ids=lambda pair: pair[0].__name__)
def test_the_divergence_is_its_monte_carlo_estimate(pair):
    case = CASES[pair[0].__name__]
    model = nn.Linear(3, 2).double()
    q = case.build(model)
    prior = NormalPrior({"weight": 0.7, "bias": 2.0}, loc={"weight": torch.randn(2, 3).double()})
    with torch.no_grad():
        samples = drawn(q, 50_000)
        log_prior = torch.vmap(prior.log_prob)(samples)
        terms = case.log_density(q, samples) - log_prior
        error = terms.std() / len(terms) ** 0.5
        assert (kl_divergence(q, prior) - terms.mean()).abs() < 5 * error
        assert error < 0.02 * terms.mean()


@pytest.mark.parametrize("pair", CLOSED_FORMS, ids=lambda pair: pair[0].__name__)
def test_the_divergence_reaches_every_parameter(pair):
    q = CASES[pair[0].__name__].build(nn.Linear(3, 2))
    kl_divergence(q, NormalPrior(0.3)).backward()
    assert all(each.grad.abs().sum() > 0 for each in q.parameters())
