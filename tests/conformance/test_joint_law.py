"""Noise in training has the law of weight samples: jointly, over all that one example gives.

Means and covariances over every output position of an example, by the noise that `noise_scopes`
allows and by weight samples, must agree within the error of the draws. A new kind of use joins by
an entry in `USES`, a new distribution with a local law of its own by one in `LAWS`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from bayesify.core.modes import attention_for_vmap
from bayesify.core.types import Named
from bayesify.distributions.base import WeightDistribution
from bayesify.distributions.matrix_normal import MatrixNormal
from bayesify.distributions.mean_field import MeanField
from bayesify.distributions.shared.coded import CodedTensor
from bayesify.distributions.shared.normal import SharedNormal
from bayesify.forward import outputs as forward
from bayesify.tracing.linear_maps import roles
from bayesify.weights.named import weights_of
from bayesify.weights.noise_scope import NoiseScope, Scopes, noise_scopes
from bayesify.weights.regression import RegressionWeight

DRAWS = 4000
ERRORS = 4
"""How many standard errors a moment may be off."""

ROW, EXAMPLE, BATCH = NoiseScope.ROW, NoiseScope.EXAMPLE, NoiseScope.BATCH


class Calling(nn.Module):
    """A network of given parts, whose forward pass is a function of them and the input."""

    def __init__(self, call: Callable[..., Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.call = call
        for name, each in parts.items():
            setattr(self, name, each)

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, x)


def pooled(layer: nn.Module) -> nn.Module:
    """Means over all positions, before and after a ReLU, and two positions themselves."""

    def call(self: nn.Module, x: Tensor) -> Tensor:
        z = self.layer(x).flatten(2)
        return torch.cat([z.mean(2), z.relu().mean(2), z[..., 0], z[..., -1]], 1)

    return Calling(call, layer=layer)


def tied() -> nn.Module:
    def call(self: nn.Module, ids: Tensor) -> Tensor:
        return F.linear(self.table(ids).mean(1), self.table.weight)

    return Calling(call, table=nn.Embedding(5, 3))


def attention() -> nn.Module:
    def call(self: nn.Module, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(torch.softmax(q @ k.mT, -1) @ v).mean(1)

    return Calling(call, qkv=nn.Linear(3, 9), out=nn.Linear(3, 2))


def tokens(batch: int = 3) -> Tensor:
    return torch.randn(batch, 4, 3) + 1


@dataclass(frozen=True)
class Use:
    """A network, its inputs, and the scopes of its weights in order of their names."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Tensor]
    scopes: list[NoiseScope]


USES = {
    "linear": Use(lambda: nn.Linear(4, 3), lambda: torch.randn(3, 4), [ROW, ROW]),
    "two layers": Use(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
        lambda: torch.randn(3, 3),
        [ROW] * 4,
    ),
    "linear over tokens": Use(
        lambda: Calling(lambda m, x: m.layer(x).mean(1), layer=nn.Linear(3, 2)),
        tokens,
        [EXAMPLE] * 2,
    ),
    "conv1d": Use(
        lambda: pooled(nn.Conv1d(2, 2, 3, padding=1)),
        lambda: torch.randn(3, 2, 5),
        [EXAMPLE] * 2,
    ),
    "conv2d": Use(
        lambda: pooled(nn.Conv2d(2, 2, 3, stride=2, padding=1)),
        lambda: torch.randn(3, 2, 4, 4),
        [EXAMPLE] * 2,
    ),
    "grouped conv2d": Use(
        lambda: pooled(nn.Conv2d(4, 2, 2, groups=2)),
        lambda: torch.randn(3, 4, 3, 3),
        [EXAMPLE] * 2,
    ),
    "transposed conv2d": Use(
        lambda: pooled(nn.ConvTranspose2d(2, 2, 2, stride=2)),
        lambda: torch.randn(3, 2, 2, 2),
        [EXAMPLE] * 2,
    ),
    "attention": Use(attention, tokens, [EXAMPLE] * 4),
    "transformer": Use(
        lambda: Calling(
            lambda m, x: m.layer(x).mean(1), layer=nn.TransformerEncoderLayer(3, 1, 4, 0.0)
        ),
        tokens,
        # attention's own weights, then the two linear layers on (B, T, d), then the norms
        [BATCH] * 4 + [EXAMPLE] * 4 + [BATCH] * 4,
    ),
    "embedding": Use(
        lambda: Calling(lambda m, ids: m.table(ids).mean(1), table=nn.Embedding(5, 3)),
        lambda: torch.tensor([[0, 3, 3], [1, 2, 0], [4, 4, 4]]),
        [EXAMPLE],
    ),
    "table tied with the head": Use(
        tied, lambda: torch.tensor([[0, 3, 3], [1, 2, 0], [4, 4, 4]]), [EXAMPLE]
    ),
    "one layer used twice": Use(
        lambda: Calling(lambda m, x: m.layer(m.layer(x).relu()), layer=nn.Linear(3, 3)),
        lambda: torch.randn(3, 3),
        [EXAMPLE] * 2,
    ),
    "a bias of two layers": Use(
        lambda: Calling(
            lambda m, x: F.linear(F.linear(x, m.one, m.bias).tanh(), m.two, m.bias),
            one=nn.Parameter(torch.randn(3, 3)),
            two=nn.Parameter(torch.randn(3, 3)),
            bias=nn.Parameter(torch.randn(3)),
        ),
        lambda: torch.randn(3, 3),
        [ROW, ROW, BATCH],
    ),
    "a batch along the second axis": Use(
        lambda: Calling(lambda m, x: m.layer(x.transpose(0, 1)).mean(0), layer=nn.Linear(3, 2)),
        tokens,
        [BATCH] * 2,
    ),
    "tokens as rows": Use(
        lambda: Calling(
            lambda m, x: m.layer(x.flatten(0, 1)).view(len(x), -1, 2).mean(1), layer=nn.Linear(3, 2)
        ),
        tokens,
        [BATCH] * 2,
    ),
    "a weight computed of others": Use(
        lambda: Calling(
            lambda m, x: F.linear(x, m.weight / m.weight.norm()),
            weight=nn.Parameter(torch.randn(2, 3)),
        ),
        lambda: torch.randn(3, 3),
        [BATCH],
    ),
}

Local = Callable[[Scopes], Named]
"""Gives weights whose noise is local, for scopes."""


def mean_field(model: nn.Module, x: Tensor) -> tuple[WeightDistribution, Local]:
    loc = weights_of(model)
    q = MeanField(loc, {name: 0.1 + 0.4 * torch.rand_like(each) for name, each in loc.items()})
    return q, lambda scopes: q.local_weights(scopes=scopes)


def shared(model: nn.Module, x: Tensor) -> tuple[WeightDistribution, Local]:
    coded = {
        name: CodedTensor(torch.randint(3, each.shape)) for name, each in weights_of(model).items()
    }
    q = SharedNormal(
        coded,
        torch.ones(len(coded)),
        torch.tensor([-0.8, 0.1, 0.9]),
        torch.tensor([0.1, 0.3, 0.5]).log(),
    )
    return q, lambda scopes: q.local_weights(scopes=scopes)


def regression(model: nn.Module, x: Tensor) -> tuple[WeightDistribution, Local]:
    maps, loc = roles(model, x).maps, weights_of(model)
    if {n for e in maps for n in (e.weight, e.bias) if n} != {*loc}:
        pytest.skip("not all weights are linear maps")
    sizes = {e.weight: (loc[e.weight][0].numel() + (e.bias is not None), len(loc[e.weight]))
             for e in maps}  # fmt: skip
    row = {name: 4 * factor(a) for name, (a, _) in sizes.items()}
    column = {name: factor(b) for name, (_, b) in sizes.items()}
    q = MatrixNormal(
        {name: each[None] for name, each in loc.items()},
        row={name: each[None] for name, each in row.items()},
        column={name: each[None] for name, each in column.items()},
    )

    def local(scopes: Scopes) -> Named:
        return loc | {
            e.weight: RegressionWeight(
                loc[e.weight],
                row[e.weight],
                column[e.weight],
                e,
                constant=e.bias is not None,
                scope=scopes.get(e.weight, BATCH),
            )
            for e in maps
        }

    return q, local


def factor(size: int) -> Tensor:
    root = torch.randn(size, size)
    return torch.linalg.cholesky(root @ root.T / size + torch.eye(size)) / 2


LAWS = {"mean field": mean_field, "shared": shared, "regression": regression}


def draws(one: Callable[[], Tensor]) -> Tensor:
    """(DRAWS, B, outputs)."""
    with torch.no_grad(), attention_for_vmap():
        chunks = torch.vmap(lambda _: one(), randomness="different")
        return chunks(torch.arange(DRAWS)).flatten(2)


def assert_same_moments(got: Tensor, want: Tensor) -> None:
    """Of two sets of draws (n, d), independent of each other."""
    spread = ((got.var(0) + want.var(0)) / DRAWS).sqrt()
    off = (got.mean(0) - want.mean(0)).abs() / spread
    assert off.max() <= ERRORS, f"mean off by {off.max():.1f} standard errors"
    products = []
    for each in (got, want):
        around = each - each.mean(0)
        products.append(around.unsqueeze(2) * around.unsqueeze(1))
    spread = (sum(each.var(0) for each in products) / DRAWS).sqrt()
    off = (products[0].mean(0) - products[1].mean(0)).abs() / spread
    assert off.max() <= ERRORS, f"covariance off by {off.max():.1f} standard errors"


@pytest.mark.parametrize("use", USES)
def test_scopes_are_what_the_forward_pass_allows(use):
    torch.manual_seed(0)
    model = USES[use].build().eval()
    found = noise_scopes(model, USES[use].inputs())
    assert [found.get(name, BATCH) for name in weights_of(model)] == USES[use].scopes


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("law", LAWS)
def test_each_example_has_the_joint_law_of_weight_samples(law, use):
    torch.manual_seed(0)
    model, x = USES[use].build().eval(), USES[use].inputs()
    q, local = LAWS[law](model, x)
    scopes = noise_scopes(model, x, q.names)
    got = draws(lambda: functional_call(model, local(scopes), (x,)))
    want = torch.cat(
        [
            forward.outputs(model, q, x, DRAWS // 4, generator=torch.Generator().manual_seed(seed))
            for seed in range(4)
        ]
    ).flatten(2)
    for example in range(len(x)):
        assert_same_moments(got[:, example], want[:, example].detach())


def test_independent_noise_at_each_position_is_found_out():
    """The check itself: the right variance at each token, but not of their mean."""
    torch.manual_seed(0)
    x, scale = tokens(1), 0.3
    wrong = draws(lambda: (F.linear(x**2, torch.full((2, 3), scale**2)).sqrt()
                           * torch.randn(1, 4, 2)).mean(1))  # fmt: skip
    right = draws(lambda: F.linear(x, scale * torch.randn(2, 3)).mean(1))
    assert_same_moments(right[:2000, 0], right[2000:, 0])
    with pytest.raises(AssertionError, match="covariance off"):
        assert_same_moments(wrong[:, 0], right[:, 0])


def test_examples_see_draws_of_their_own():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten(), nn.Linear(9, 2))
    q = MeanField.around(model, scale=0.3)
    x = torch.randn(1, 2, 4).expand(3, 2, 4)
    scopes = noise_scopes(model, x)
    out = draws(lambda: functional_call(model, q.local_weights(scopes=scopes), (x,)))
    between = out[..., 0].T.corrcoef() - torch.eye(3)
    assert between.abs().max() < 5 / DRAWS**0.5


def test_a_pass_unlike_the_example_is_made_with_one_draw(generator):
    """The second branch uses the first layer twice: its scope there would be wrong."""

    def call(self: nn.Module, x: Tensor) -> Tensor:
        once = self.layer(x)
        return self.layer(once) if len(x) > 3 else once

    model = Calling(call, layer=nn.Linear(2, 2))
    q = MeanField.around(model, scale=0.3)
    x = torch.randn(1, 2).expand(4, 2)
    scopes = noise_scopes(model, x)
    assert set(scopes.values()) == {ROW}
    out = forward.local_outputs(model, q, x, 1, generator=generator, scopes=scopes)[0]
    torch.testing.assert_close(out, out[:1].expand_as(out))  # the same draw for all
    few = forward.local_outputs(model, q, x[:3], 1, generator=generator, scopes=scopes)[0]
    assert (few[0] - few[1]).abs().max() > 1e-3
