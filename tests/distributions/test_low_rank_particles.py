import copy

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from bayesify import WeightPosterior, load, matching, save
from bayesify.core.errors import LoadError, OptionError, UnsupportedModelError
from bayesify.core.types import Named
from bayesify.distributions.low_rank_particles import LowRankParticles
from bayesify.forward import outputs as forward
from bayesify.likelihoods import Categorical
from bayesify.weights.low_rank import LowRankWeight
from bayesify.weights.named import buffers_of, weights_of
from zoo import NETS

KINDS = ["mlp", "cnn", "transformer", "tied"]


def moved(q: LowRankParticles) -> LowRankParticles:
    """The members somewhere, far from where they start."""
    with torch.no_grad():
        for each in q.parameters():
            each.copy_(0.5 * torch.randn_like(each))
    return q


def dense(q: LowRankParticles) -> list[Named]:
    """For each member its weights and buffers as plain tensors."""

    def member(m: int) -> Named:
        weights = q.weights(tree_map(lambda each: each[m], q.stacked()))
        plain = {n: e.dense() if isinstance(e, LowRankWeight) else e for n, e in weights.items()}
        return {name: each.detach() for name, each in plain.items()}

    return [member(m) for m in range(q.size(1))]


@pytest.mark.parametrize("net", KINDS)
def test_without_noise_every_member_is_the_network_to_the_bit(net):
    model, x = NETS[net].model().eval(), NETS[net].inputs(6)
    q = LowRankParticles.around(model, members=3, rank=2, buffers=list(buffers_of(model)))
    want = model(x)
    for out in forward.outputs(model, q, x, vectorize=False):
        assert torch.equal(out, want)
    for out in forward.outputs(model, q, x):
        torch.testing.assert_close(out, want)


def rms(each: Tensor) -> Tensor:
    return each.square().mean().sqrt()


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_noise_is_the_size_of_the_difference_relative_to_each_matrix(scale):
    """Up to its spread: of r m = 200 normal numbers at least, for each of 20 members; 5 %."""
    net = nn.Sequential(nn.Conv2d(3, 50, 3), nn.Flatten(), nn.Linear(50, 80))
    net[0].weight.data.mul_(7)
    q = LowRankParticles.around(net, members=20, rank=4, scale=scale, noise=0.05)
    for name in ("0.weight", "2.weight"):
        base = weights_of(net)[name]
        differences = torch.stack([each[name] - base for each in dense(q)])
        assert rms(differences) / rms(base) == pytest.approx(0.05, rel=0.05)
        assert rms(differences[0] - differences[1]) > 0.05 * rms(base)
    assert all(each.abs().max() == 0 for each in q.offsets.parameters())


def test_down_starts_uniform_and_up_at_zero():
    net = nn.Linear(400, 30)
    q = LowRankParticles.around(net, members=8, rank=3)
    down = q.down.named()["weight"].detach()
    assert down.abs().max() <= 400**-0.5
    assert down.var() == pytest.approx(1 / (3 * 400), rel=0.05)
    assert not torch.equal(down[0], down[1])
    assert q.up.named()["weight"].abs().max() == 0


def test_down_may_start_the_same_for_all_members():
    net = nn.Linear(30, 20)
    q = LowRankParticles.around(net, members=3, rank=2, noise=0.1, common_down=True)
    down, up = (each.named()["weight"].detach() for each in (q.down, q.up))
    assert torch.equal(down, down[:1].expand_as(down))
    assert not torch.equal(up[0], up[1])
    with torch.no_grad():
        q.down.named()["weight"][0].zero_()  # each has its own memory all the same
    assert q.down.named()["weight"][1].abs().min() > 0


def test_the_seed_decides_the_start():
    net = NETS["cnn"].model()
    first, again, other = (
        LowRankParticles.around(net, noise=0.1, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    for name, each in first.named_parameters():
        assert torch.equal(each, again.get_parameter(name))
    for store in ("down", "up"):
        for name, each in getattr(first, store).named().items():
            assert not torch.equal(each, getattr(other, store).named()[name])


@pytest.mark.parametrize(
    "layer", [nn.Linear(5, 3), nn.Linear(3, 5), nn.Conv2d(2, 7, 2), nn.Conv1d(4, 2, 3)]
)
def test_the_largest_rank_holds_any_difference(layer):
    layer = layer.double()
    base = weights_of(layer)["weight"]
    m, d = len(base), base[0].numel()
    q = LowRankParticles.around(layer, members=2, rank=100, scale=0.3)
    assert q.down.named()["weight"].shape == (2, min(m, d), d)
    assert q.up.named()["weight"].shape == (2, m, min(m, d))
    wanted = torch.randn(2, *base.shape).double()
    u, s, vt = torch.linalg.svd(wanted.flatten(2), full_matrices=False)
    with torch.no_grad():
        q.down.named()["weight"].copy_(vt)
        q.up.named()["weight"].copy_(u * s.unsqueeze(1) / q.scale)
    for each, difference in zip(dense(q), wanted, strict=True):
        torch.testing.assert_close(each["weight"], base + difference, rtol=1e-12, atol=1e-12)


def least_squares(q: LowRankParticles, net: nn.Module, x: Tensor, y: Tensor) -> float:
    optimiser = torch.optim.LBFGS(q.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = (forward.outputs(net, q, x) - y).square().mean()
        value.backward()
        return value

    optimiser.step(loss)
    return loss().item()


def test_a_member_of_the_largest_rank_learns_what_a_full_matrix_learns():
    x, y = torch.randn(40, 4).double(), torch.randn(40, 3).double()
    net = nn.Linear(4, 3, bias=False).double()
    want = torch.linalg.lstsq(x, y).solution
    least = (x @ want - y).square().mean().item()
    full = LowRankParticles.around(net, members=1, rank=3)
    assert least_squares(full, net, x, y) == pytest.approx(least, rel=1e-6)
    torch.testing.assert_close(dense(full)[0]["weight"], want.T, rtol=1e-3, atol=1e-3)
    narrow = LowRankParticles.around(net, members=1, rank=1)
    assert least_squares(narrow, net, x, y) > 1.05 * least


@pytest.mark.parametrize("net", KINDS)
def test_a_member_costs_two_factors_a_matrix_and_its_vectors(net):
    model = NETS[net].model()
    q = LowRankParticles.around(model, members=3, rank=2)
    numbers = 0
    for each in weights_of(model).values():
        m, d = len(each), each[0].numel()
        numbers += each.numel() if each.ndim < 2 else min(2, m, d) * (m + d)
    assert sum(each.numel() for each in q.parameters()) == 3 * numbers


def test_what_is_chosen_decides_what_differs():
    model = NETS["cnn"].model()
    everything = LowRankParticles.around(model)
    assert sorted(everything.names) == sorted(weights_of(model))
    assert list(everything.offsets.named()) == ["1.weight", "1.bias", "5.bias"]

    matrices = LowRankParticles.around(model, vectors=False)
    assert matrices.names == ["0.weight", "5.weight"]

    head = LowRankParticles.around(model, where=matching("0.*"), full=["5.weight", "5.bias"])
    assert list(head.down.named()) == ["0.weight"]
    assert {n: each.shape for n, each in head.offsets.named().items()} == {
        "5.weight": (5, 3, 16),
        "5.bias": (5, 3),
    }

    bare = LowRankParticles.around(model, where=matching("0.*"), vectors=False, full=["5.bias"])
    assert bare.perturbed == bare.names == ["0.weight", "5.bias"]

    own = LowRankParticles.around(model, where=matching("0.*"), buffers=["1.running_mean"])
    assert own.names == ["0.weight", "1.running_mean"]
    assert own.perturbed == ["0.weight"]
    assert not any("running" in name for name, _ in own.named_parameters())


def test_a_matrix_in_full_and_as_factors_is_in_full():
    model = NETS["mlp"].model()
    q = LowRankParticles.around(model, full=["4.weight"])
    assert "4.weight" not in q.down.named()
    assert q.offsets.named()["4.weight"].shape == (5, 3, 8)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"members": 0}, "members=0"),
        ({"rank": 0}, "rank=0"),
        ({"noise": -0.1}, "noise=-0.1"),
        ({"where": matching("*.bias"), "vectors": False}, "chose no weight"),
    ],
)
def test_what_cannot_be_is_named(options, word):
    with pytest.raises(OptionError, match=word):
        LowRankParticles.around(NETS["mlp"].model(), **options)


def test_a_name_that_the_network_does_not_have_is_named():
    with pytest.raises(OptionError, match=r"9\.weight"):
        LowRankParticles.around(NETS["mlp"].model(), full=["9.weight"])


def test_the_state_holds_nothing_of_the_network():
    model = nn.Sequential(nn.Linear(100, 80), nn.Linear(80, 2))
    q = moved(LowRankParticles.around(model, members=2, rank=1))
    state = q.state_dict()
    assert {name.partition(".")[0] for name in state} == {"down", "up", "offsets", "scale"}
    assert sum(each.numel() for each in state.values()) == 2 * (180 + 82 + 82) + 1
    bases = {each.data_ptr() for each in weights_of(model).values()}
    assert not bases & {each.data_ptr() for each in state.values()}


def test_a_state_alone_asks_for_its_network():
    model, x = NETS["mlp"].model(), NETS["mlp"].inputs(4)
    q = moved(LowRankParticles.around(model, members=3))
    again = LowRankParticles.from_state(q.state_dict())
    with pytest.raises(UnsupportedModelError, match=r"'0.weight' is not at hand.*attach_"):
        forward.outputs(model, again, x)
    with pytest.raises(UnsupportedModelError, match="attach_"):
        again.point()
    again.attach_(weights_of(model))
    assert torch.equal(forward.outputs(model, again, x), forward.outputs(model, q, x))


def test_members_follow_the_network_they_are_attached_to():
    q = moved(LowRankParticles.around(NETS["mlp"].model(seed=0), members=3))
    other, x = NETS["mlp"].model(seed=1), NETS["mlp"].inputs(4)
    before = dense(q)
    q.attach_(weights_of(other))
    for was, now in zip(before, dense(q), strict=True):
        for name, each in weights_of(NETS["mlp"].model(seed=0)).items():
            difference = was[name] - each
            torch.testing.assert_close(now[name], weights_of(other)[name] + difference)
    with torch.no_grad():
        other[0].weight.add_(1)  # memory is shared
    for out, member in zip(forward.outputs(other, q, x), dense(q), strict=True):
        torch.testing.assert_close(out, functional_call(other, member, (x,)))


@pytest.mark.parametrize("net", KINDS)
def test_outputs_are_those_of_the_dense_members(net):
    model, x = NETS[net].model().eval(), NETS[net].inputs(5)
    q = moved(LowRankParticles.around(model, members=3, rank=2, scale=0.5))
    for vectorize in (True, False):
        outs = forward.outputs(model, q, x, vectorize=vectorize)
        for out, member in zip(outs, dense(q), strict=True):
            want = functional_call(model, member, (x,))
            torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("net", KINDS)
def test_the_point_is_the_mean_of_the_dense_members(net):
    model = NETS[net].model()
    q = moved(LowRankParticles.around(model, members=3, scale=0.5, buffers=list(buffers_of(model))))
    members, point = dense(q), q.point()
    assert set(point) == set(q.names)
    for name in q.perturbed:
        want = torch.stack([each[name] for each in members]).mean(0)
        torch.testing.assert_close(point[name], want)
    functional_call(model, point, (NETS[net].inputs(2),))


def test_the_point_averages_statistics_and_keeps_counts():
    model = NETS["cnn"].model()
    q = LowRankParticles.around(model, members=3, buffers=list(buffers_of(model)))
    held = q.statistics.named()
    held["1.num_batches_tracked"].copy_(torch.tensor([5, 6, 7]))
    held["1.running_mean"].copy_(torch.arange(3.0)[:, None].expand(3, 4))
    assert q.point()["1.num_batches_tracked"] == 5
    assert torch.equal(q.point()["1.running_mean"], torch.ones(4))


def test_statistics_are_those_of_separate_training_passes():
    model, x = NETS["cnn"].model(), NETS["cnn"].inputs(8)
    start = buffers_of(copy.deepcopy(model))
    q = moved(LowRankParticles.around(model, members=3, buffers=list(start)))
    members = dense(q)
    forward.outputs(model.train(), q, x)
    for number, weights in enumerate(members):
        alone = NETS["cnn"].model().train()
        functional_call(alone, {n: e for n, e in weights.items() if n not in start}, (x,))
        for name, each in buffers_of(alone).items():
            torch.testing.assert_close(q.statistics.named()[name][number], each)
    for name, each in buffers_of(model).items():
        assert torch.equal(each, start[name])


@pytest.mark.parametrize("chunk", [1, 2, 9])
def test_slices_of_the_members_share_their_memory(chunk):
    model, x = NETS["cnn"].model().train(), NETS["cnn"].inputs(8)
    q = moved(LowRankParticles.around(model, members=10, buffers=list(buffers_of(model))))
    forward.outputs(model, q, x, chunk_size=chunk)
    assert q.statistics.named()["1.num_batches_tracked"].tolist() == 10 * [1]
    assert (q.statistics.named()["1.running_mean"] != 0).all()


def test_other_buffers_leave_the_members_as_they_are():
    model, x = NETS["cnn"].model().eval(), NETS["cnn"].inputs(4)
    q = moved(LowRankParticles.around(model, members=2, scale=0.5))
    means = torch.randn(2, 4)
    again = q.with_buffers({"1.running_mean": means})
    assert again.names == [*q.names, "1.running_mean"]
    for out, member, mean in zip(forward.outputs(model, again, x), dense(q), means, strict=True):
        want = functional_call(model, member | {"1.running_mean": mean}, (x,))
        torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-5)
    before = {name: each.clone() for name, each in q.state_dict().items()}
    with torch.no_grad():
        for each in again.parameters():
            each.zero_()
    assert all(torch.equal(each, before[name]) for name, each in q.state_dict().items())


def test_tied_weights_stay_tied():
    model, ids = NETS["tied"].model(), NETS["tied"].inputs(4)
    q = moved(LowRankParticles.around(model, members=2, rank=2))
    assert sorted(q.names) == ["embed.weight", "mix.bias", "mix.weight"]
    for out, member in zip(forward.outputs(model, q, ids), dense(q), strict=True):
        table = member["embed.weight"]
        hidden = table[ids].mean(1) @ member["mix.weight"].T + member["mix.bias"]
        torch.testing.assert_close(out, torch.tanh(hidden) @ table.T)


def test_products_are_as_far_apart_as_the_dense_members_and_their_factors():
    model = NETS["cnn"].model().double()
    q = moved(LowRankParticles.around(model, members=3, scale=0.5))
    members = torch.stack(
        [torch.cat([each[name].flatten() for name in q.perturbed]) for each in dense(q)]
    )
    want = torch.cdist(members, members).square()
    got = torch.stack([each.distances() for each in q.coordinates("product")]).sum(0)
    both = [each.detach().flatten(1) for each in (*q.down.parameters(), *q.up.parameters())]
    want = want + torch.cdist(torch.cat(both, 1), torch.cat(both, 1)).square()
    torch.testing.assert_close(got.detach(), want)
    held = torch.cat([each.detach().flatten(1) for each in q.parameters()], 1)
    factors = torch.stack([each.distances() for each in q.coordinates("factor")]).sum(0)
    torch.testing.assert_close(factors.detach(), torch.cdist(held, held).square())
    for space in ("product", "factor"):
        moves = [each for block in q.coordinates(space) for each in block.tensors]
        assert {id(each) for each in moves} == {id(each) for each in q.parameters()}


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.float32),
    ],
)
def test_factors_are_in_single_precision_or_better(dtype, wide):
    model, x = NETS["cnn"].model().to(dtype).eval(), NETS["cnn"].inputs(4).to(dtype)
    q = moved(LowRankParticles.around(model, members=2, noise=0.1))
    assert {each.dtype for each in q.parameters()} == {wide}
    out = forward.outputs(model, q, x)
    assert out.dtype == dtype
    out.square().sum().backward()
    assert all(each.grad.dtype == wide and each.grad.abs().sum() > 0 for each in q.parameters())
    assert {each.dtype for each in q.point().values()} == {dtype}


def test_factors_are_where_the_network_is():
    model = NETS["cnn"].model().to("meta")
    q = LowRankParticles.around(model, noise=0.1, generator=torch.Generator())
    assert {each.device.type for each in q.parameters()} == {"meta"}


def posterior(*, seed: int = 0) -> WeightPosterior:
    model = NETS["cnn"].model(seed)
    q = LowRankParticles.around(model, members=3, buffers=["1.running_mean", "1.running_var"])
    return WeightPosterior(model, moved(q), Categorical())


def test_it_is_saved_with_its_network_or_without(tmp_path):
    made, x = posterior(), NETS["cnn"].inputs(5)
    save(made, tmp_path / "whole")
    save(made, tmp_path / "members", base=False)
    again = load(tmp_path / "whole", NETS["cnn"].model(seed=5))
    assert torch.equal(again.outputs(x), made.outputs(x))
    around = load(tmp_path / "members", NETS["cnn"].model(seed=0))
    assert torch.equal(around.outputs(x), made.outputs(x))
    assert not (tmp_path / "members" / "base.safetensors").exists()
    with pytest.raises(LoadError, match="base=False"):
        load(tmp_path / "members", NETS["cnn"].model(seed=5))


def test_the_file_of_the_members_is_as_small_as_they_are(tmp_path):
    model = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 5))
    q = LowRankParticles.around(model, members=3, rank=1)
    save(WeightPosterior(model, q, Categorical()), tmp_path / "saved", base=False)
    size = (tmp_path / "saved" / "q.safetensors").stat().st_size
    numbers = 3 * (300 + 200 + 200 + 205 + 5)
    assert 4 * numbers < size < 4 * numbers + 1_000
    assert size < 4 * sum(each.numel() for each in model.parameters()) / 20


def test_the_network_is_stored_once_whatever_the_number_of_members():
    model = nn.Sequential(nn.Linear(300, 200), nn.ReLU(), nn.Linear(200, 5))
    q = LowRankParticles.around(model, members=3, rank=1)
    made = WeightPosterior(model, q, Categorical())
    assert made.trainable_parameters == 3 * (300 + 200 + 200 + 205 + 5)
    network = sum(each.numel() for each in model.parameters())
    assert made.stored_parameters == network + made.trainable_parameters + 1  # the scale


def test_a_copy_of_the_posterior_predicts_the_same_and_shares_nothing():
    made, x = posterior(), NETS["cnn"].inputs(5)
    want = made.outputs(x).detach()
    twin = copy.deepcopy(made)
    assert torch.equal(twin.outputs(x), want)
    with torch.no_grad():
        for each in (*twin.q.parameters(), *twin.model.parameters()):
            each.add_(1)
    assert torch.equal(made.outputs(x), want)
    another = copy.deepcopy(made)
    with torch.no_grad():
        for each in (*made.q.parameters(), *made.model.parameters()):
            each.add_(1)
    assert torch.equal(another.outputs(x), want)


def test_members_of_a_copy_differ_from_the_network_of_the_copy():
    made, x = posterior(), NETS["cnn"].inputs(5)
    twin = copy.deepcopy(made)
    with torch.no_grad():
        for each in (*made.model.parameters(), *twin.model.parameters()):
            each.mul_(2)
    assert torch.equal(twin.outputs(x), made.outputs(x))
