"""How many samples run at once: the budgets, what counts against them, and that posteriors obey."""

import pytest
import torch
from torch import Tensor, nn

from bayesify import WeightPosterior, last_layer, matching
from bayesify.distributions.low_rank_particles import LowRankParticles
from bayesify.distributions.mean_field import MeanField
from bayesify.forward import chunking
from bayesify.forward.chunking import Footprint, default_chunk_size
from bayesify.likelihoods import Categorical

CPU = torch.device("cpu")
X = torch.zeros(16, 4)


def chunk(footprint: Footprint, samples: int, device: torch.device = CPU) -> int:
    return default_chunk_size(footprint, X, device, samples)


def test_the_rule_fills_the_budget_or_loops():
    budget, least = chunking.CPU_BUDGET, chunking.WORTHWHILE
    assert chunk(Footprint(budget // 16 // 10), 100) == 10
    assert chunk(Footprint(budget // 16 // least), 100) == least
    assert chunk(Footprint(budget // 16 // 2), 100) == 1
    assert chunk(Footprint(10 * budget), 100) == 1
    assert chunk(Footprint(0), 1001) == 1001
    assert chunk(Footprint(budget), 100, torch.device("cuda")) > 1


@pytest.mark.parametrize(
    ("samples", "at_once"), [(5, 5), (10, 10), (14, 14), (16, 8), (32, 11), (200, 10), (3, 3)]
)
def test_chunks_are_of_even_size(samples, at_once):
    assert chunk(Footprint(chunking.CPU_BUDGET // 16 // 10), samples) == at_once


def test_many_weights_in_common_widen_the_budget():
    of_one = chunking.CPU_BUDGET // 16  # the whole budget with this batch
    assert chunk(Footprint(of_one, common=0), 96) == 1
    common = int(8 * chunking.CPU_BUDGET / chunking.OF_COMMON)
    assert chunk(Footprint(of_one, common), 96) == 8
    assert chunk(Footprint(of_one, common, own=chunking.CPU_BUDGET), 96) == 4
    assert chunk(Footprint(of_one, common, own=2 * chunking.CPU_BUDGET), 96) == 1
    assert chunk(Footprint(of_one // 8, common=1), 96) == 8  # and never narrow it


def test_activations_before_the_random_weights_do_not_count():
    net = nn.Sequential(nn.Linear(4, 100), nn.Linear(100, 3))
    x = torch.randn(7, 4)
    last = 4 * (300 + 3)
    assert Footprint.of(net, MeanField.around(net), x) == Footprint(100 * 4, 0, 4 * 500 + last)
    found = Footprint.of(net, MeanField.around(net, where=last_layer), x)
    assert found == Footprint(3 * 4, 0, last)


def test_what_samples_have_in_common_is_what_comes_after_and_is_not_replaced():
    net = nn.Sequential(nn.Linear(4, 100), nn.Linear(100, 3))
    x = torch.randn(7, 4)
    last = 4 * (300 + 3)  # bytes of the last layer
    first = MeanField.around(net, where=matching("0.*"))
    assert Footprint.of(net, first, x).common == last
    members = LowRankParticles.around(net, members=5, rank=1)
    found = Footprint.of(net, members, x)
    assert found.common == 4 * (400 + 100) + last  # the base is read once
    assert found.own == 4 * ((4 + 100) + 100 + (100 + 3) + 3)  # of one member
    assert Footprint.of(net, MeanField.around(net, where=matching("1.weight")), x).common == 4 * 3


def watched(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The chunk sizes that a posterior passes on, which then gives no real outputs."""
    seen = []

    def outputs(*args: object, chunk_size: int, **how: object) -> torch.Tensor:
        seen.append(chunk_size)
        return torch.zeros(1, 1)

    monkeypatch.setattr("bayesify.posteriors.weight.outputs", outputs)
    return seen


def test_a_posterior_runs_as_many_at_once_as_the_rule_says(monkeypatch: pytest.MonkeyPatch):
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), torch.randn(5, 4)
    posterior = WeightPosterior(model, MeanField.around(model), Categorical())
    seen = watched(monkeypatch)
    posterior.outputs(x)
    posterior.outputs(x, chunk_size=3)
    assert seen == [32, 3]  # next to no memory: all at once


def test_low_rank_members_around_a_wide_network_run_at_once_at_a_small_batch(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(chunking, "CPU_BUDGET", 1)
    net = nn.Sequential(nn.Linear(4, 256), nn.ReLU(), nn.Linear(256, 256), nn.Linear(256, 3))
    seen = watched(monkeypatch)
    low_rank = LowRankParticles.around(net, members=5, rank=1)
    for q in (low_rank, MeanField.around(net)):
        WeightPosterior(net, q, Categorical()).outputs(torch.randn(2, 4))
    assert seen[0] >= chunking.WORTHWHILE
    assert seen[1] == 1


def test_a_table_of_which_rows_are_read_is_not_read_again():
    net = nn.Sequential(nn.Embedding(1000, 8), nn.Linear(8, 3))
    members = LowRankParticles.around(net, members=5, rank=1)
    found = Footprint.of(net, members, torch.randint(1000, (4, 2)))
    assert found.common == 4 * (24 + 3)


class Pool(nn.Module):
    """Attention over (B, T, D), written as CLIP's published code writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.of = nn.MultiheadAttention(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        return nn.functional.multi_head_attention_forward(
            **{"query": x, "key": x, "value": x, "embed_dim_to_check": 8, "num_heads": 2},
            **{"in_proj_weight": self.of.in_proj_weight, "in_proj_bias": self.of.in_proj_bias},
            **{"bias_k": None, "bias_v": None, "add_zero_attn": False, "dropout_p": 0.0},
            out_proj_weight=self.of.out_proj.weight,
            out_proj_bias=self.of.out_proj.bias,
            training=False,
        )[0].transpose(0, 1)


class Attention(nn.Module):
    """Over (B, T, D), by torch's function for it."""

    def __init__(self, *, by_name: bool = False) -> None:
        super().__init__()
        self.map, self.by_name = nn.Linear(8, 8), by_name

    def forward(self, x: Tensor) -> Tensor:
        q = self.map(x).unflatten(-1, (2, 4)).transpose(1, 2)
        if self.by_name:
            return nn.functional.scaled_dot_product_attention(value=q, key=q, query=q)
        return nn.functional.scaled_dot_product_attention(q, q, q)


@pytest.mark.parametrize(
    ("net", "count"),
    [
        (nn.MultiheadAttention(8, 2, batch_first=True), 3),
        (Attention(), 1),
        (Attention(by_name=True), 1),
        (Pool(), 1),
    ],
)
def test_the_scores_of_attention_are_activations(net, count):
    x = (torch.randn(3, 50, 8),) * count
    found = Footprint.of(net, MeanField.around(net), x)
    assert found.activation == 4 * 2 * 50 * 50  # heads, queries, keys


def test_looking_at_the_footprint_draws_nothing_from_the_global_generator():
    net, x = nn.Linear(4, 3), torch.randn(7, 4)
    before = torch.get_rng_state()
    Footprint.of(net, MeanField.around(net), x)
    assert torch.equal(torch.get_rng_state(), before)
