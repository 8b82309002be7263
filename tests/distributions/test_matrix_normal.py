import pytest
import torch
from torch import Tensor, nn

from bayesify.core.errors import ShapeError
from bayesify.core.types import Named
from bayesify.distributions import matrix_normal
from bayesify.distributions.matrix_normal import Layer, MatrixNormal
from bayesify.forward import outputs as forward

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
SHAPES = {"0.weight": (3, 2), "0.bias": (3,), "1.weight": (2, 3, 2, 2)}
FEATURES, OUTPUTS = {"0.weight": 3, "1.weight": 12}, {"0.weight": 3, "1.weight": 2}
NORM = {"2.weight": (4,), "2.bias": (1,)}


def factors(k: int, n: int, dtype: torch.dtype = torch.float64) -> Tensor:
    below = torch.randn(k, n, n, dtype=dtype).tril(-1) / n**0.5
    return below + torch.diag_embed(torch.rand(k, n, dtype=dtype) + 0.5)


def build(k: int, dtype: torch.dtype = torch.float64) -> MatrixNormal:
    """A fully connected layer with its bias, a convolution without, a norm, and two buffers."""
    wide = torch.promote_types(dtype, torch.float32)
    return MatrixNormal(
        {name: torch.randn(k, *shape, dtype=dtype) for name, shape in SHAPES.items()},
        row={name: factors(k, a, wide) for name, a in FEATURES.items()},
        column={name: factors(k, b, wide) for name, b in OUTPUTS.items()},
        points={name: torch.randn(k, *shape, dtype=dtype) for name, shape in NORM.items()},
        buffers={"2.mean": torch.randn(k, 4, dtype=dtype), "2.count": torch.arange(k) + 5},
        prior_precision={name: torch.rand(k) for name in FEATURES},
    )


def flat(named: Named) -> Tensor:
    """(n, numbers of the layers' weights)."""
    return torch.cat([named[name].flatten(1) for name in SHAPES], 1)


def dense_covariance(q: MatrixNormal, member: int) -> Tensor:
    """By definition E[(W - M)_ij (W - M)_kl] = (P^-1)_ik V_jl, and layers independent."""
    blocks = []
    for layer in q.layers:
        row, column = (each.named()[layer.weight][member] for each in (q.row, q.column))
        a, b = len(row), len(column)
        rows, columns = torch.linalg.inv(row @ row.T), column @ column.T
        joint = torch.einsum("ik,jl->jilk", rows, columns).reshape(a * b, a * b)
        places = torch.arange(a * b).view(b, a)
        if layer.bias is not None:  # all weights first, then all biases
            joint = joint[order := torch.cat([places[:, :-1].flatten(), places[:, -1]])][:, order]
        blocks.append(joint)
    return torch.block_diag(*blocks).detach()


def unit_noise(n: int, size: int, like: Tensor, generator: object) -> Tensor:
    """Every member sees each unit vector once."""
    return torch.eye(size).to(like).repeat_interleave(n // size, 0)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@pytest.mark.parametrize("k", [1, 3])
def test_each_member_has_its_mean_and_covariance_exactly(k, monkeypatch):
    """Samples are linear in the noise, so its unit vectors give the whole map."""
    q, size = build(k), 3 * 3 + 12 * 2
    monkeypatch.setattr(
        matrix_normal,
        "standard_normal_rows",
        lambda n, size, like, _: torch.zeros(n, size).to(like),
    )
    means = flat(q.sample(k))
    torch.testing.assert_close(means, flat(q.loc.named()), **TIGHT)
    monkeypatch.setattr(matrix_normal, "standard_normal_rows", unit_noise)
    samples = flat(q.sample(k * size)).detach()
    for member in range(k):
        root = samples[member::k] - means[member].detach()
        torch.testing.assert_close(root.T @ root, dense_covariance(q, member), **TIGHT)


def test_samples_have_the_members_means_and_covariances(generator):
    q, n = build(3), 20_000
    samples = flat(q.sample(3 * n, generator=generator)).detach()
    for member in range(3):
        mine, want = samples[member::3], dense_covariance(q, member)
        variance = want.diag()
        moved = mine - flat(q.loc.named())[member].detach()
        assert (moved.mean(0).abs() <= 5 * (variance / n).sqrt()).all()
        error = ((variance[:, None] * variance + want.square()) / n).sqrt()
        assert ((moved.T @ moved / n - want).abs() <= 5.5 * error).all()  # 1089 of them


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5, 100])
@pytest.mark.parametrize("k", [1, 3])
def test_chunks_that_do_not_divide_the_members_are_the_samples(k, chunk):
    q = build(k)
    whole = q.sample(11, generator=seeded())
    pieces = list(q.draws(11, chunk, generator=seeded()))
    assert [len(each["0.bias"]) for each in pieces][:-1] == [min(chunk, 11)] * (len(pieces) - 1)
    for name, each in whole.items():
        assert torch.equal(torch.cat([piece[name] for piece in pieces]), each)


@pytest.mark.parametrize("chunk", [1, 2, 4, 100])
def test_sample_i_is_of_member_i_mod_k(chunk):
    """Means a thousand standard deviations apart tell whose sample it is."""
    q = build(3)
    with torch.no_grad():
        for each in q.loc.parameters():
            each.copy_(1e6 * torch.arange(3.0).view(3, *[1] * (each.ndim - 1)).expand_as(each))
    samples = torch.cat([flat(each) for each in q.draws(10, chunk, generator=seeded())])
    assert torch.equal((samples / 1e6).round()[:, 0], torch.arange(10).double() % 3)
    assert torch.equal((samples / 1e6).round(), (samples / 1e6).round()[:, :1].expand(10, 33))


@pytest.mark.parametrize("chunk", [1, 2, 100])
@pytest.mark.parametrize("k", [1, 3])
def test_points_and_buffers_are_those_of_the_samples_member(k, chunk):
    q = build(k)
    kept = q.points.named() | q.statistics.named()
    pieces = list(q.draws(7, chunk))
    for name, each in kept.items():
        got = torch.cat([piece[name] for piece in pieces])
        assert torch.equal(got, each[torch.arange(7) % k])


def test_names_are_layers_then_points_then_buffers():
    q = build(3)
    assert q.names == [*SHAPES, "2.weight", "2.bias", "2.mean", "2.count"]
    assert list(q.sample(2)) == q.names
    assert set(q.point()) == set(q.names)
    assert q.layers == [Layer("0.weight", "0.bias"), Layer("1.weight", None)]
    assert [each.names for each in q.layers] == [["0.weight", "0.bias"], ["1.weight"]]
    assert (q.members, q.size(5)) == (3, 5)


def test_the_point_is_the_mean_of_the_members():
    q = build(3)
    point = q.point()
    held = q.loc.named() | q.points.named() | q.statistics.named()
    for name in q.names:
        want = held[name][0] if name == "2.count" else held[name].mean(0)
        torch.testing.assert_close(point[name], want.detach())
    assert point["2.count"].dtype == torch.int64
    assert not any(each.requires_grad for each in point.values())


def test_buffers_and_prior_precisions_are_kept_and_not_learnt():
    q = build(2)
    learnt = {name.split(".")[0] for name, _ in q.named_parameters()}
    assert learnt == {"loc", "row", "column", "points"}
    assert {name.split(".")[0] for name, _ in q.named_buffers()} == {
        "statistics",
        "prior_precision",
    }


@pytest.mark.parametrize("k", [1, 3])
def test_the_state_comes_back_with_points_buffers_and_prior(k):
    q = build(k)
    again = MatrixNormal.from_state(q.state_dict())
    assert (again.names, again.layers, again.members) == (q.names, q.layers, k)
    assert list(again.state_dict()) == list(q.state_dict())
    for name, each in q.state_dict().items():
        assert torch.equal(again.state_dict()[name], each)
    first, second = (each.sample(4, generator=seeded()) for each in (q, again))
    assert all(torch.equal(first[name], second[name]) for name in q.names)


def test_building_copies():
    loc, row, column = torch.zeros(1, 2, 3), torch.eye(3)[None], torch.eye(2)[None]
    q = MatrixNormal({"w": loc}, row={"w": row}, column={"w": column})
    for each in (loc, row, column):
        each.fill_(5.0)
    assert q.loc.named()["w"].abs().sum() == 0
    assert torch.equal(q.row.named()["w"][0], torch.eye(3))
    assert torch.equal(q.column.named()["w"][0], torch.eye(2))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_samples_have_the_networks_type_whatever_the_factors_have(dtype):
    q = build(3, dtype)
    samples = q.sample(5, generator=seeded())
    for name in (*SHAPES, *NORM, "2.mean"):
        assert samples[name].dtype == q.point()[name].dtype == dtype
        assert torch.isfinite(samples[name]).all()
    if dtype == torch.bfloat16:  # the factors are wider, and so is what is computed of them
        assert q.row.named()["0.weight"].dtype == torch.float32
        spread = flat(samples)[0] - flat(q.loc.named())[0]
        assert spread.abs().max() > 0.1


def test_gradients_reach_the_members_that_were_sampled():
    q = build(3)
    flat(q.sample(2, generator=seeded())).square().sum().backward()
    for name, each in q.named_parameters():
        if not name.startswith("points"):
            assert (each.grad[:2].flatten(1).abs().sum(1) > 0).all()
            assert each.grad[2].abs().sum() == 0
    upper = q.row.named()["1.weight"].grad.triu(1)
    assert upper.abs().sum() == 0


def test_a_network_sees_its_layers_vary_and_its_norm_stay():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).eval()
    q = MatrixNormal(
        {n: torch.randn(2, *e.shape) for n, e in model.named_parameters() if n[0] != "1"},
        row={"0.weight": factors(2, 3).float(), "2.weight": factors(2, 4).float()},
        column={"0.weight": factors(2, 3).float(), "2.weight": factors(2, 1).float()},
        points={"1.weight": torch.randn(2, 3), "1.bias": torch.randn(2, 3)},
        buffers={n: torch.stack([e, e + 1]) for n, e in model.named_buffers()},
    )
    x = torch.randn(5, 2)
    how = [{}, {"vectorize": False}, {"chunk_size": 3}]
    out, *others = (forward.outputs(model, q, x, 8, generator=seeded(), **each) for each in how)
    assert out.shape == (8, 5, 1)
    assert len(out.unique(dim=0)) == 8
    for other in others:
        torch.testing.assert_close(out, other, rtol=1e-4, atol=1e-5)


# --- what does not belong together


def refused(match: str, **changes: Named) -> None:
    given: dict[str, Named] = {
        "loc": {"w": torch.zeros(2, 3, 4), "b": torch.zeros(2, 3)},
        "row": {"w": torch.eye(5).expand(2, 5, 5)},
        "column": {"w": torch.eye(3).expand(2, 3, 3)},
    }
    MatrixNormal(**given)
    with pytest.raises(ShapeError, match=match):
        MatrixNormal(**given | changes)


def test_factors_must_be_of_the_same_weights():
    refused(
        r"factors for the same weights, got \['w'\] and \['v'\]", column={"v": torch.eye(3)[None]}
    )


def test_factors_must_be_of_weights_in_loc():
    loc = {"v": torch.zeros(2, 3, 4), "b": torch.zeros(2, 3)}
    refused(r"expected the weights \['w'\] in loc, .* got \['v', 'b'\]", loc=loc)


@pytest.mark.parametrize("a", [1, 3, 6])
def test_a_row_factor_must_fit_the_fan_in(a):
    message = rf"'w' \(2, 3, 4\): expected a row factor of 4 \(or 5 .* got {a} and 3"
    refused(message, row={"w": torch.eye(a).expand(2, a, a)})


def test_a_column_factor_must_fit_the_outputs():
    refused(r"a column factor of 3, got 5 and 2", column={"w": torch.eye(2).expand(2, 2, 2)})


def test_the_bias_must_stand_behind_its_weight():
    message = r"'w' \(2, 3, 4\): expected its bias \(2, 3\) behind it, .*; got None"
    refused(message, loc={"w": torch.zeros(2, 3, 4)})
    message = r"expected its bias \(2, 3\) behind it, .*; got 'c' \(2, 7\)"
    refused(message, loc={"w": torch.zeros(2, 3, 4), "c": torch.zeros(2, 7)})


def test_what_has_no_factor_is_a_point():
    row = {"w": torch.eye(4).expand(2, 4, 4)}
    refused(r"\['b'\] in loc belong to no layer; give other weights as points", row=row)


def test_there_must_be_a_layer():
    refused("at least one weight with a row and a column factor", loc={}, row={}, column={})


def test_factors_must_be_square_and_of_all_members():
    message = r"row factor of 'w': expected the shape \(2, 5, 5\), got \(1, 5, 5\)"
    refused(message, row={"w": torch.eye(5)[None]})
    message = r"column factor of 'w': expected the shape \(2, 3, 3\), got \(2, 1, 3\)"
    refused(message, column={"w": torch.ones(2, 1, 3)})


@pytest.mark.parametrize("kind", ["points", "buffers", "prior_precision"])
def test_everything_else_must_have_all_members(kind):
    message = r"'c': expected 2 members in front, as of the first weight, got \(3,\)"
    refused(message, **{kind: {"c": torch.zeros(3)}})


def test_factors_are_kept_in_the_order_of_files():
    """Or what is saved and loaded may predict otherwise in the last bit, by the machine."""
    loc = {"weight": torch.zeros(1, 2, 3), "bias": torch.zeros(1, 2)}
    in_columns = [torch.randn(1, n, n).mT.contiguous().mT for n in (4, 2)]
    assert not any(each.is_contiguous() for each in in_columns)
    row, column = ({"weight": each} for each in in_columns)
    q = MatrixNormal(loc, row, column)
    for store, each in ((q.row, in_columns[0]), (q.column, in_columns[1])):
        assert store.named()["weight"].is_contiguous()
        assert torch.equal(store.named()["weight"], each)
