import copy
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, Dataset, TensorDataset

from bayesify import MAP, Bella, fit, load, matching, save
from bayesify.core.errors import DataError, OptionError, UnsupportedModelError
from bayesify.core.options import from_json, to_json
from bayesify.posteriors.weight import WeightPosterior
from bayesify.weights.low_rank import LowRankWeight
from bayesify.weights.named import buffers_of, weights_of
from zoo import NETS

SMALL = Bella(pretrain=None, members=3, rank=1, epochs=2)


def fitted(method: Bella, net: str = "cnn") -> WeightPosterior:
    return fit(NETS[net].model(), NETS[net].data(), method, batch_size=16)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"interaction": "svgd"},
        {"interaction": "svgd", "kernel": "factor"},
        {"interaction": "svgd", "kernel": "function"},
        {"batch_norm": "moving"},
        {"heads": matching("5.*")},
        {"weight_decay": 0.1, "rates": (1.0, 0.5, 0.2)},
        {"where": matching("5.*"), "cache_features": True, "batches": "same"},
    ],
)
def test_the_network_is_bitwise_what_it_was(changes):
    model = NETS["cnn"].model()
    before = copy.deepcopy(model.state_dict())
    posterior = fit(model, NETS["cnn"].data(), replace(SMALL, **changes))
    assert posterior.model is not model
    for each in (model, posterior.model):
        for name, now in each.state_dict().items():
            assert torch.equal(now, before[name]), name
    for name in posterior.q.perturbed:
        assert posterior.q._base[name].data_ptr() == weights_of(posterior.model)[name].data_ptr()


def test_members_are_around_the_pretrained_network():
    net, data = NETS["mlp"], NETS["mlp"].data()
    trained = fit(net.model(), data, MAP(epochs=3), seed=1).point()
    posterior = fit(net.model(), data, replace(SMALL, pretrain=MAP(epochs=3)), seed=1)
    for name, each in weights_of(posterior.model).items():
        torch.testing.assert_close(each, trained[name])
    phases = [entry["phase"] for entry in posterior.record.history]
    assert phases == ["MAP"] * 3 + ["Bella"] * 2


def test_without_noise_it_starts_as_the_network():
    problem = NETS["cnn"].problem()
    x = NETS["cnn"].inputs(5)
    want = problem.model.eval()(x).detach()
    for out in replace(SMALL, noise=0.0).start(problem).posterior().outputs(x):
        torch.testing.assert_close(out.detach(), want)


def test_frozen_statistics_are_those_of_the_network():
    model = NETS["cnn"].model()
    model.train()(NETS["cnn"].inputs(32))
    posterior = fit(model, NETS["cnn"].data(), SMALL)
    assert not any("running" in name for name in posterior.q.names)
    for name, each in buffers_of(model).items():
        assert torch.equal(buffers_of(posterior.model)[name], each)


def test_moving_statistics_are_each_members_own_and_are_saved(tmp_path):
    posterior = fitted(replace(SMALL, batch_norm="moving", noise=0.3))
    held = posterior.q.statistics.named()
    assert list(held) == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    for name in ("1.running_mean", "1.running_var"):
        for m in range(3):
            assert not torch.equal(held[name][m], buffers_of(posterior.model)[name])
            assert not torch.equal(held[name][m], held[name][m - 1])
    assert held["1.num_batches_tracked"].tolist() == [6, 6, 6]  # 48 examples, twice, by 16
    save(posterior, tmp_path / "saved")
    again = load(tmp_path / "saved", NETS["cnn"].model(seed=4))
    for name, each in again.q.statistics.named().items():
        assert torch.equal(each, held[name])
    x = NETS["cnn"].inputs(5)
    assert torch.equal(again.outputs(x), posterior.outputs(x))


def test_predictions_read_the_members_statistics():
    posterior, x = fitted(replace(SMALL, batch_norm="moving", noise=0.3)), NETS["cnn"].inputs(5)
    before = posterior.outputs(x).detach()
    with torch.no_grad():
        posterior.q.statistics.named()["1.running_mean"][1] += 1
    after = posterior.outputs(x).detach()
    changed = [not torch.allclose(a, b) for a, b in zip(after, before, strict=True)]
    assert changed == [False, True, False]


def test_dropout_is_off():
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.999), nn.Linear(8, 3))
    x, y = NETS["mlp"].inputs(48), torch.arange(48) % 3
    method = replace(SMALL, epochs=1, lr=1e-12, noise=0.0)
    (entry,) = fit(net, (x, y), method, batch_size=48).record.history
    want = nn.functional.cross_entropy(net.eval()(x), y).item()
    assert entry["nll"] == pytest.approx(want, rel=1e-5)


def test_recalibrated_statistics_are_those_of_torch():
    data = NETS["cnn"].data(50)
    loader = DataLoader(TensorDataset(3 * data.inputs + 1, data.target), batch_size=16)
    want = NETS["cnn"].model()
    torch.optim.swa_utils.update_bn(loader, want)
    same = replace(SMALL, batches="same")  # the loader has one order
    posterior = fit(NETS["cnn"].model(), loader, replace(same, recalibrate=True))
    for name, each in buffers_of(posterior.model).items():
        torch.testing.assert_close(each, buffers_of(want)[name])
    assert posterior.model[1].momentum == 0.1
    as_it_was = fit(NETS["cnn"].model(), loader, same)
    assert not torch.allclose(as_it_was.model[1].running_mean, want[1].running_mean, atol=0.1)


def test_there_must_be_statistics_to_recalibrate():
    with pytest.raises(UnsupportedModelError, match="no batch norm"):
        fitted(replace(SMALL, recalibrate=True), "mlp")


def heads(method: Bella) -> tuple[WeightPosterior, Tensor]:
    """The posterior before the first step, and the members' heads."""
    posterior = method.start(NETS["mlp"].problem()).posterior()
    offsets = posterior.q.offsets.named()["4.weight"]
    return posterior, (posterior.model[4].weight + offsets).detach()


def test_new_heads_are_drawn_anew_for_each_member_and_learnt_in_full():
    posterior, drawn = heads(replace(SMALL, heads=matching("4.*")))
    assert drawn.abs().max() <= 8**-0.5
    start = NETS["mlp"].model()[4].weight
    for m in range(3):
        assert not torch.equal(drawn[m], start)
        assert not torch.equal(drawn[m], drawn[m - 1])
    assert "4.weight" not in posterior.q.down.named()
    assert posterior.trainable_parameters == 3 * ((8 + 4) + 8 + (8 + 8) + 8 + (3 * 8 + 3))
    assert torch.equal(posterior.model[4].weight, start)


@pytest.mark.parametrize(
    ("changes", "starts_apart"),
    [
        ({}, True),
        ({"heads": matching("4.*")}, False),  # the heads differ
        ({"heads": matching("4.*"), "fresh_heads": False}, True),
        ({"heads": matching("4.*"), "interaction": "svgd"}, True),  # products have to differ
        ({"heads": matching("4.*"), "noise": 0.2}, True),
        ({"noise": 0.0}, False),
        ({"members": 1}, False),  # nothing to differ from
    ],
)
def test_members_start_with_noise_unless_their_heads_differ(changes, starts_apart):
    posterior = replace(SMALL, **changes).start(NETS["mlp"].problem()).posterior()
    ups = posterior.q.up.named().values()
    assert all(bool(each.any()) == starts_apart for each in ups)


def test_heads_may_start_as_the_networks():
    _, drawn = heads(replace(SMALL, heads=matching("4.*"), fresh_heads=False))
    assert torch.equal(drawn, NETS["mlp"].model()[4].weight.detach().expand(3, -1, -1))


def test_heads_are_learnt_beside_what_where_chooses():
    method = replace(SMALL, where=matching("0.weight"), heads=matching("4.*"))
    posterior, _ = heads(method)
    assert posterior.q.perturbed == ["0.weight", "4.weight", "4.bias"]
    trained = fitted(method, "mlp")
    assert (trained.q.offsets.named()["4.weight"][0] != 0).all()


class Scores(nn.Module):
    """A head without a way to be drawn anew."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


def bare() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), Scores())


def test_a_head_that_cannot_be_drawn_anew_is_named():
    with pytest.raises(UnsupportedModelError, match=r"`2` \(Scores\).*reset_parameters"):
        fit(bare(), NETS["mlp"].data(), replace(SMALL, heads=matching("2.*")))


def test_a_head_that_is_not_drawn_need_not_be_drawable():
    method = replace(SMALL, heads=matching("2.*"), fresh_heads=False)
    assert fit(bare(), NETS["mlp"].data(), method).q.offsets.named()["2.weight"].shape == (3, 3, 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"members": 0}, "members=0"),
        ({"rank": 0}, "rank=0"),
        ({"rank": 1.5}, "rank=1.5"),
        ({"interaction": "war"}, "interaction='war'.*'ensemble', 'svgd'"),
        ({"kernel": "weights"}, "kernel='weights'.*'product', 'factor', 'function'"),
        ({"temperature": -1.0}, "temperature=-1"),
        ({"epochs": 0}, "epochs=0"),
        ({"lr": 0.0}, "lr=0"),
        ({"rates": (1.0, 0.5)}, r"rates=\(1.0, 0.5\).*expected 5 numbers"),
        ({"rates": (1.0, 1.0, 1.0, 1.0, 0.0)}, "rates=.*above 0"),
        ({"clip": 0.0}, "clip=0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"prior_scale": 0.0}, "prior_scale=0"),
        ({"scale": 0.0}, "scale=0"),
        ({"noise": -1.0}, "noise=-1"),
        ({"batch_norm": "melting"}, "batch_norm='melting'.*'frozen', 'moving'"),
        ({"recalibrate": 1}, "recalibrate=1"),
    ],
)
def test_options_that_cannot_be_are_named(options, words):
    with pytest.raises(OptionError, match=words):
        Bella(**options)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"where": matching("*.bias"), "vectors": False}, "chose no weight"),
        ({"where": matching("7.*")}, r"matching\('7.\*'\) found no weight"),
        ({"heads": matching("7.*")}, r"matching\('7.\*'\) found no weight"),
    ],
)
def test_choosing_nothing_is_refused(changes, words):
    with pytest.raises(OptionError, match=words):
        fitted(replace(SMALL, **changes), "mlp")


def test_biases_can_be_left_alone():
    posterior = fitted(replace(SMALL, vectors=False), "mlp")
    assert posterior.q.perturbed == ["0.weight", "2.weight", "4.weight"]


class Block(nn.Module):
    """A block with the names of the authors' model."""

    def __init__(self) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(4, 6), nn.Linear(6, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.c_proj(torch.relu(self.c_fc(x))))


def test_the_published_settings_are_theirs_and_run():
    method = Bella.as_published(members=7)
    assert method.rates == (1.0, 0.9, 0.5, 0.25, 0.8, 1.0, 0.9)
    assert (method.rank, method.scale, method.noise, method.lr, method.epochs) == (4, 4, 0, 1e-3, 7)
    assert (method.weight_decay, method.interaction, method.pretrain) == (0.1, "ensemble", None)
    assert len(Bella.as_published().rates) == Bella.as_published().members == 3
    posterior = fit(Block(), NETS["mlp"].data(), method)
    assert posterior.q.perturbed == ["c_fc.weight", "c_proj.weight"]
    assert posterior.trainable_parameters == 7 * 2 * 4 * (4 + 6)
    assert len(posterior.record.history) == 7
    assert (posterior.q.up.named()["c_fc.weight"] != 0).all()


def test_rates_clip_and_selectors_survive_json():
    method = replace(Bella.as_published(), heads=matching("head.*"), clip=2.0)
    assert from_json(to_json(method)) == method


def products(posterior: WeightPosterior) -> Tensor:
    """(M, coordinates) of the differences to the network."""
    q = posterior.q
    up = q.up.named()
    parts = [q.scale * up[n] @ each for n, each in q.down.named().items()]
    return torch.cat([each.flatten(1) for each in (*parts, *q.offsets.parameters())], 1).detach()


@pytest.mark.parametrize("kernel", ["product", "factor"])
def test_repulsion_keeps_members_apart(kernel):
    def distance(temperature: float) -> float:
        method = replace(
            SMALL, interaction="svgd", kernel=kernel, temperature=temperature, epochs=20, noise=0.1
        )
        return torch.pdist(products(fitted(method, "mlp"))).min().item()

    assert distance(48.0) > 2 * distance(0.0)


def test_repulsion_in_function_space_keeps_outputs_apart():
    def distance(temperature: float) -> float:
        method = replace(
            SMALL,
            interaction="svgd",
            kernel="function",
            temperature=temperature,
            epochs=30,
            noise=0.1,
        )
        out = fitted(method, "mlp").outputs(NETS["mlp"].data().inputs)
        return torch.pdist(out.detach().flatten(1)).min().item()

    assert distance(48.0) > 2 * distance(0.0)


def test_independent_members_do_not_see_the_kernel():
    first, second = (
        products(fitted(replace(SMALL, kernel=kernel, temperature=temperature), "mlp"))
        for kernel, temperature in (("product", 1.0), ("factor", 100.0))
    )
    assert torch.equal(first, second)


def test_a_slow_member_stays_near_the_network():
    rates = (1.0, 1.0, 1e-4)
    moved = products(fitted(replace(SMALL, noise=0.0, rates=rates, epochs=10), "mlp"))
    sizes = moved.norm(dim=1)
    assert sizes[2] < 0.01 * sizes[:2].min()


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(
    ("net", "where", "batch_norm"),
    [("mlp", "4.*", "frozen"), ("cnn", "5.*", "frozen"), ("cnn", "5.*", "moving")],
)
def test_kept_features_change_nothing(net, where, batch_norm, vectorize):
    outs, data = [], NETS[net].data()
    for cached in (False, True):
        method = replace(
            SMALL,
            where=matching(where),
            cache_features=cached,
            batch_norm=batch_norm,
            epochs=3,
            batches="same",
        )
        posterior = fit(NETS[net].model(), data, method, vectorize=vectorize, batch_size=16)
        outs.append(posterior.outputs(NETS[net].inputs(9)).detach())
    torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-5)


def test_nothing_to_keep_is_said_before_training():
    with pytest.raises(UnsupportedModelError, match="cache_features=True"):
        fitted(replace(SMALL, cache_features=True, batches="same"), "mlp")


def test_members_that_repel_start_with_the_same_down():
    for interaction, common in (("ensemble", False), ("svgd", True)):
        posterior = replace(SMALL, interaction=interaction).start(NETS["mlp"].problem()).posterior()
        down, up = (s.named()["0.weight"] for s in (posterior.q.down, posterior.q.up))
        assert torch.equal(down[0], down[1]) == common
        assert not torch.equal(up[0], up[1])


def test_a_network_in_half_precision_is_adapted_by_factors_in_single():
    model, data = NETS["mlp"].model().bfloat16(), NETS["mlp"].data()
    method = replace(SMALL, epochs=20, lr=0.03)
    inputs = data.inputs.bfloat16()
    posterior = fit(model, (inputs, data.target), method, batch_size=16)
    assert {each.dtype for each in posterior.q.parameters()} == {torch.float32}
    assert {each.dtype for each in weights_of(posterior.model).values()} == {torch.bfloat16}
    wide = fit(model.float(), (inputs.float(), data.target), method, batch_size=16)
    losses, want = ([entry["nll"] for entry in e.record.history] for e in (posterior, wide))
    assert losses[-1] < 0.5 * losses[0]
    assert losses[-1] == pytest.approx(want[-1], abs=0.03)


def test_members_predict_as_the_dense_networks_they_stand_for():
    posterior, x = fitted(SMALL, "transformer"), NETS["transformer"].inputs(5)
    for m, out in enumerate(posterior.outputs(x)):
        one = {f: {n: e[m] for n, e in d.items()} for f, d in posterior.q.stacked().items()}
        plain = {
            n: e.dense() if isinstance(e, LowRankWeight) else e
            for n, e in posterior.q.weights(one).items()
        }
        want = functional_call(posterior.model, plain, (x,))
        torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)


def shifted(size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three classes in ten dimensions, seen through another lens than in pretraining."""
    x, y = original(size, seed)
    turn = torch.linalg.qr(torch.randn(10, 10, generator=torch.Generator().manual_seed(3)))[0]
    return 1.5 * x @ (0.5 * torch.eye(10) + 0.5 * turn) + 0.7, y


def original(size: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = 1.2 * torch.randn(3, 10, generator=torch.Generator().manual_seed(4))
    y = torch.randint(3, (size,), generator=generator)
    return centres[y] + torch.randn(size, 10, generator=generator), y


@pytest.mark.parametrize("interaction", ["ensemble", "svgd"])
def test_it_adapts_a_network_to_data_that_have_shifted(interaction):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 3))
    pretrained = fit(net, original(400, 0), MAP(epochs=20))
    net.load_state_dict(pretrained.point())
    method = Bella(pretrain=None, members=4, rank=1, epochs=20, lr=0.02, interaction=interaction)
    adapted = fit(net, shifted(120, 1), method)
    x, y = shifted(500, 2)
    before, after = (-each.predict(x).log_prob(y).mean().item() for each in (pretrained, adapted))
    known = -pretrained.predict(original(500, 2)[0]).log_prob(original(500, 2)[1]).mean().item()
    assert known < 0.3  # it was a good network
    assert after < 0.6 * before
    mean = adapted.predict(x).probs
    assert (mean.argmax(-1) == y).float().mean() > 0.85


@pytest.mark.parametrize("vectorize", [True, False])
def test_members_with_batches_of_their_own_differ_by_nothing_else(vectorize):
    """From one start, without noise, the same batches leave them equal."""
    net = NETS["mlp"]

    def spread(batches: str) -> float:
        method = replace(SMALL, noise=0.0, rank=8, batches=batches, epochs=4)
        problem = net.problem(vectorize=vectorize)
        run = method.start(problem)
        q = run.posterior().q
        with torch.no_grad():
            for each in q.down.parameters():
                each.copy_(each[:1].expand_as(each))
        for x, y in [batch for _ in range(2) for batch in problem.data.batches()]:
            run.step(x, y)
        return run.posterior().outputs(net.inputs(5)).std(0).max().item()

    assert spread("same") < 1e-6
    assert spread("own") > 1e-4


def test_every_member_sees_every_example_once_in_an_epoch():
    seen: list[list[float]] = [[], [], []]
    x = torch.arange(20.0).unsqueeze(1)

    class Spy(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if torch.is_grad_enabled():
                calls.append(x[:, 0].tolist())
            return super().forward(x)

    calls: list[list[float]] = []
    method = Bella(pretrain=None, members=3, rank=1, epochs=1)
    fit(Spy(1, 2), (x, (x[:, 0] > 9).long()), method, batch_size=8, vectorize=False)
    for i, call in enumerate(calls[3:]):  # the first three are the rehearsal's step
        seen[i % 3] += call
    assert [sorted(each) for each in seen] == [x[:, 0].tolist()] * 3
    assert seen[0] != seen[1]


@pytest.mark.parametrize(("net", "where"), [("mlp", "4.*"), ("cnn", "5.*"), ("mapping", "head.*")])
def test_kept_features_change_nothing_where_members_see_batches_of_their_own(net, where):
    outs = []
    for cached in (False, True):
        method = replace(SMALL, where=matching(where), cache_features=cached, epochs=3)
        posterior = fit(NETS[net].model(), NETS[net].data(), method, batch_size=16)
        outs.append(posterior.outputs(NETS[net].inputs(9)).detach())
    torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(outs[0][0], outs[0][1])


class Jittered(Dataset):
    """Another image each time, as under random augmentation."""

    def __len__(self):
        return 32

    def __getitem__(self, i):
        return torch.full((1, 4, 4), float(i)) + torch.rand(()), i % 3


def test_features_of_augmented_data_are_refused_before_the_pretraining():
    method = replace(
        SMALL, pretrain=MAP(epochs=1), where=matching("5.*"), cache_features=True, batches="same"
    )
    spy = Mock()
    with pytest.raises(DataError, match=r"cache_features=True.*augmentation"):
        fit(NETS["cnn"].model(), Jittered(), method, callbacks=[spy])
    spy.on_phase_start.assert_not_called()


def test_the_memory_of_kept_features_is_bounded_by_an_option():
    method = replace(SMALL, where=matching("5.*"), cache_features=True, cache_limit=100)
    with pytest.raises(OptionError, match=r"cache_limit=100: expected room for"):
        fitted(method)
