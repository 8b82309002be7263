from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from bayesify.numerics import linear_regression as regression
from bayesify.numerics.layer_regression import LayerRegression
from bayesify.numerics.linear_regression import NaturalParameters

K, N, A, B = 2, 8, 6, 3
TAU, DAMPING, FAR = 0.7, 0.1, 1e6
TIGHT = {"rtol": 1e-9, "atol": 1e-9}
HOW = {"rate": 0.1, "weight": 5.0, "cap": FAR, "refresh": True}
NAMES = [each.name for each in fields(LayerRegression)]


def identity(n: int) -> Tensor:
    return torch.eye(n).double()


def gram(h: Tensor) -> Tensor:
    return h.mT @ h


def started(k: int = K, *, covariance: float = 0.5) -> LayerRegression:
    h = torch.randn(k, 40, A).double()
    return LayerRegression.start(
        torch.randn(k, A, B).double(), gram(h), prior_precision=TAU, covariance=covariance
    )


def learnt(k: int = K) -> LayerRegression:
    """One with a noise covariance that is no multiple of the identity."""
    layer, sound = started(k).with_fisher(torch.randn(k, 20, B).double(), rate=0.5, damping=DAMPING)
    assert sound.all()
    return layer


def batch(k: int = K, n: int = N) -> tuple[Tensor, Tensor]:
    return torch.randn(k, n, A).double(), torch.randn(k, n, B).double()


def natural(layer: LayerRegression) -> NaturalParameters:
    """What the data have contributed, if the layer is the posterior of it."""
    shift = layer.precision @ layer.mean
    start = regression.prior(layer.prior_mean, layer.prior_precision)
    return NaturalParameters(layer.precision - start.precision, shift - start.shift)


# --- where it starts


def test_the_start_is_a_posterior_around_the_given_weights():
    h, mean = torch.randn(K, 40, A).double(), torch.randn(K, A, B).double()
    layer = LayerRegression.start(mean, gram(h), prior_precision=TAU, covariance=0.5)
    torch.testing.assert_close(layer.precision, gram(h) + TAU * identity(A), **TIGHT)
    torch.testing.assert_close(layer.row @ layer.row.mT, layer.precision, **TIGHT)
    torch.testing.assert_close(layer.covariance, 0.5 * identity(B).expand(K, B, B), **TIGHT)
    torch.testing.assert_close(layer.column @ layer.column.mT, layer.covariance, **TIGHT)
    torch.testing.assert_close(layer.fisher @ layer.covariance, identity(B).expand(K, B, B))
    assert torch.equal(layer.mean, mean)
    assert torch.equal(layer.prior_mean, torch.zeros_like(mean))
    assert layer.prior_precision.tolist() == [TAU] * K
    # It is what regression finds when the targets are what the weights give, and the rest the
    # prior asks for: P M = H'T + tau M0.
    targets = h @ mean + TAU * torch.linalg.pinv(h.mT) @ mean
    got, lower = regression.posterior(
        regression.add(regression.prior(layer.prior_mean, TAU), regression.data_terms(h, targets))
    )
    torch.testing.assert_close(got, mean, **TIGHT)
    torch.testing.assert_close(lower, layer.row, **TIGHT)


def test_everything_is_double_whatever_comes_in():
    mean, h = torch.randn(K, A, B), torch.randn(K, 40, A)
    layer = LayerRegression.start(mean, gram(h), prior_precision=TAU, covariance=0.5)
    layer, _ = layer.with_fisher(torch.randn(K, N, B), rate=0.5, damping=DAMPING)
    layer, _ = layer.updated(h, torch.randn(K, 40, B), **HOW)
    layer = layer.with_evidence(rate=0.5).with_covariance(2.0)
    assert {getattr(layer, name).dtype for name in NAMES} == {torch.float64}


def test_a_posteriors_factors_give_back_the_layer():
    layer, _ = learnt().updated(*batch(), **HOW)
    again = LayerRegression.of_factors(
        layer.mean,
        layer.row,
        layer.column,
        prior_precision=layer.prior_precision,
        damping=DAMPING,
    )
    for name in NAMES:
        torch.testing.assert_close(getattr(again, name), getattr(layer, name), **TIGHT)


# --- the noise covariance


def test_the_noise_covariance_is_the_inverse_of_the_damped_average_of_gradients():
    layer, gradients = started(), torch.randn(3, K, 20, B).double()
    fisher = layer.fisher
    for each in gradients:
        layer, sound = layer.with_fisher(each, rate=0.3, damping=DAMPING)
        outer = torch.einsum("kni,knj->kij", each, each) / 20
        fisher = 0.7 * fisher + 0.3 * outer
        want = torch.linalg.inv(fisher + DAMPING * identity(B))
        assert sound.tolist() == [True] * K
        torch.testing.assert_close(layer.fisher, fisher, **TIGHT)
        torch.testing.assert_close(layer.covariance, want, **TIGHT)
        torch.testing.assert_close(layer.column @ layer.column.mT, want, **TIGHT)
        assert layer.column.triu(1).abs().max() == 0


def test_a_rate_of_one_forgets_the_first_noise_covariance():
    gradients = torch.randn(K, 20, B).double()
    layers = [started(covariance=each) for each in (0.1, 10.0)]
    first, second = (each.with_fisher(gradients, rate=1.0, damping=DAMPING)[0] for each in layers)
    torch.testing.assert_close(first.covariance, second.covariance, **TIGHT)


def test_fewer_gradients_than_outputs_are_enough_with_damping():
    layer, sound = started().with_fisher(torch.randn(K, 1, B).double(), rate=1.0, damping=DAMPING)
    assert sound.all()
    assert torch.linalg.eigvalsh(layer.covariance).max() == pytest.approx(1 / DAMPING)


def test_a_known_noise_covariance_is_set_for_all_members():
    for value in (2.0, torch.tensor(2.0)):
        layer = learnt().with_covariance(value)
        assert torch.equal(layer.covariance, 2 * identity(B).expand(K, B, B))
        torch.testing.assert_close(layer.column @ layer.column.mT, layer.covariance, **TIGHT)


# --- an update of P and M


@pytest.mark.parametrize("shared", [True, False], ids=["shared features", "own features"])
def test_updates_are_regressions_on_moving_pseudo_targets(shared):
    """50 random steps; forget + posterior with T = H M - G V (`numerics/linear_regression.py`)."""
    layer, rate, weight = replace(learnt(), prior_mean=torch.randn(K, A, B).double()), 0.1, 5.0
    start, held = regression.prior(layer.prior_mean, layer.prior_precision), natural(layer)
    for _ in range(50):
        h, g = batch()
        h = h[:1] if shared else h
        new = regression.data_terms(
            h.expand(K, N, A), h @ layer.mean - g @ layer.covariance, weight=weight
        )
        held = regression.forget(held, new, rate)
        mean, lower = regression.posterior(regression.add(start, held))
        moved = (mean - layer.mean).abs().max()
        layer, sound = layer.updated(h, g, rate=rate, weight=weight, cap=FAR, refresh=True)
        assert sound.tolist() == [True] * K
        torch.testing.assert_close(layer.mean, mean, **TIGHT)
        torch.testing.assert_close(layer.row, lower, **TIGHT)
        torch.testing.assert_close(layer.row @ layer.row.mT, layer.precision, **TIGHT)
        assert moved > 1e-3  # something happened


def test_one_full_step_on_gaussian_targets_is_the_exact_regression():
    """With g = (z - y) / s^2 and V = s^2 I the pseudo-targets are y itself."""
    h, y, noise = torch.randn(K, 40, A).double(), torch.randn(K, 40, B).double(), 0.3
    layer = started().with_covariance(noise)
    gradient = (h @ layer.mean - y) / noise
    layer, _ = layer.updated(h, gradient, rate=1.0, weight=1.0, cap=FAR, refresh=True)
    mean, lower = regression.posterior(
        regression.add(regression.prior(layer.prior_mean, TAU), regression.data_terms(h, y))
    )
    torch.testing.assert_close(layer.mean, mean, **TIGHT)
    torch.testing.assert_close(layer.row, lower, **TIGHT)


@pytest.mark.parametrize("every", [1, 7], ids=["fresh", "stale"])
def test_stale_factors_have_the_same_fixed_point(every):
    """The gradient there: w H'(H M - Y) + tau (M - M0) = 0, which does not know P."""
    h, y, weight = torch.randn(K, 40, A).double(), torch.randn(K, 40, B).double(), 2.0
    layer = learnt()
    precision = torch.linalg.inv(layer.covariance)
    for step in range(400):
        gradient = (h @ layer.mean - y) @ precision
        refresh = step % every == every - 1
        layer, _ = layer.updated(h, gradient, rate=0.2, weight=weight, cap=FAR, refresh=refresh)
    want = torch.linalg.solve(weight * gram(h) + TAU * identity(A), weight * h.mT @ y)
    torch.testing.assert_close(layer.mean, want, **TIGHT)


def test_without_a_refresh_the_old_factor_serves_and_the_precision_moves():
    layer, (h, g) = learnt(), batch()
    after, sound = layer.updated(h, g, **HOW | {"refresh": False})
    fresh, _ = layer.updated(h, g, **HOW)
    assert sound.tolist() == [True] * K
    assert torch.equal(after.row, layer.row)
    assert torch.equal(after.precision, fresh.precision)
    slope = 5.0 * h.mT @ g @ layer.covariance + TAU * layer.mean
    want = layer.mean - 0.1 * torch.linalg.solve(layer.precision, slope)
    torch.testing.assert_close(after.mean, want, **TIGHT)
    assert not torch.allclose(after.mean, fresh.mean)


def test_the_cap_bounds_how_far_a_pseudo_target_moves():
    layer, (h, g), cap = learnt(), batch(), 0.5
    step = (g @ layer.covariance).clamp(-cap, cap)
    assert 0.2 < (step.abs() == cap).double().mean() < 0.8  # some are cut, and some are not
    got, _ = layer.updated(h, g, **HOW | {"cap": cap})
    want, _ = layer.updated(h, step @ torch.linalg.inv(layer.covariance), **HOW)
    torch.testing.assert_close(got.mean, want.mean, **TIGHT)
    torch.testing.assert_close(got.precision, want.precision, **TIGHT)
    free, _ = layer.updated(h, g, **HOW)
    assert not torch.allclose(got.mean, free.mean)


def test_the_precision_stays_symmetric_and_above_the_priors():
    layer, smallest = learnt(), []
    for step in range(300):
        h, g = batch(n=1 + step % 3)  # fewer rows than features: each batch alone is singular
        layer, sound = layer.updated(h, g, rate=0.9, weight=50.0, cap=1.0, refresh=True)
        assert sound.all()
        torch.testing.assert_close(layer.precision, layer.precision.mT, rtol=1e-14, atol=1e-14)
        smallest.append(torch.linalg.eigvalsh(layer.precision)[:, 0].min().item())
    assert min(smallest) >= TAU - 1e-10
    assert min(smallest) < 1.05 * TAU  # the bound is nearly met, so it was tried


def test_parts_of_a_batch_add_up_to_the_whole():
    """At rate 1 the data's terms are the batch's, so those of equal parts are averaged."""
    layer, (h, g) = learnt(), batch(n=12)
    how = {"rate": 1.0, "cap": FAR, "refresh": True}
    whole, _ = layer.updated(h, g, weight=1.0, **how)
    parts = [
        natural(layer.updated(each, slope, weight=3.0, **how)[0])
        for each, slope in zip(h.split(4, 1), g.split(4, 1), strict=True)
    ]
    for number, want in enumerate(natural(whole)):
        mean = torch.stack([each[number] for each in parts]).mean(0)
        torch.testing.assert_close(mean, want, **TIGHT)


def test_members_are_updated_as_if_alone():
    layer, (h, g) = learnt(), batch()
    together, _ = layer.updated(h, g, **HOW)
    together = together.with_evidence(rate=0.5)
    for member in range(K):
        mine = slice(member, member + 1)
        alone = LayerRegression(**{name: getattr(layer, name)[mine] for name in NAMES})
        alone = alone.updated(h[mine], g[mine], **HOW)[0].with_evidence(rate=0.5)
        for name in NAMES:
            torch.testing.assert_close(getattr(alone, name), getattr(together, name)[mine], **TIGHT)


def test_updates_change_no_argument():
    layer, (h, g) = learnt(), batch()
    before = {name: getattr(layer, name).clone() for name in NAMES}
    copies = h.clone(), g.clone()
    layer.updated(h, g, **HOW)
    layer.with_fisher(g, rate=0.5, damping=DAMPING)
    layer.with_evidence(rate=0.5)
    layer.with_covariance(3.0)
    assert all(torch.equal(getattr(layer, name), before[name]) for name in NAMES)
    assert torch.equal(h, copies[0])
    assert torch.equal(g, copies[1])


# --- the prior's precision


def test_the_evidence_moves_the_priors_precision_and_nothing_of_the_data():
    layer = learnt()
    wanted = regression.update_prior_precision(layer.mean, layer.row, layer.column)
    assert (wanted.log() - layer.prior_precision.log()).abs().min() > 0.1
    for rate in (0.0, 0.3, 1.0):
        after = layer.with_evidence(rate=rate)
        tau = layer.prior_precision ** (1 - rate) * wanted**rate  # a mean of logarithms
        torch.testing.assert_close(after.prior_precision, tau, **TIGHT)
        torch.testing.assert_close(natural(after).precision, natural(layer).precision, **TIGHT)
        assert torch.equal(after.mean, layer.mean)
        assert torch.equal(after.row, layer.row)  # until the next refresh


def test_the_evidence_measures_from_the_priors_mean():
    layer = replace(learnt(), prior_mean=torch.randn(K, A, B).double())
    want = regression.update_prior_precision(
        layer.mean, layer.row, layer.column, prior_mean=layer.prior_mean
    )
    torch.testing.assert_close(layer.with_evidence(rate=1.0).prior_precision, want, **TIGHT)


# --- members that fail


def spoilt(values: Tensor) -> Tensor:
    values = values.clone()
    values[1, 0, 0] = float("nan")
    return values


@pytest.mark.parametrize("which", ["features", "gradient"])
def test_a_member_that_fails_is_found_and_can_be_left_as_it_was(which):
    layer, (h, g) = learnt(3), batch(3)
    bad = (spoilt(h), g) if which == "features" else (h, spoilt(g))
    after, sound = layer.updated(*bad, **HOW)
    good = [True, False, True]
    assert sound.tolist() == (good if which == "features" else [True] * 3)  # is there a P?
    assert after.finite().tolist() == good
    mixed, want = after.where(sound & after.finite(), layer), layer.updated(h, g, **HOW)[0]
    for name in NAMES:
        got = getattr(mixed, name)
        assert torch.equal(got[1], getattr(layer, name)[1])
        torch.testing.assert_close(got[[0, 2]], getattr(want, name)[[0, 2]], **TIGHT)
    assert mixed.finite().all()


def test_an_infinite_gradient_is_cut_by_the_cap():
    layer, (h, g) = learnt(), batch()
    g[1, 0, 0] = float("inf")
    after, sound = layer.updated(h, g, **HOW | {"cap": 1.0})
    assert (sound & after.finite()).all()


def test_a_noise_covariance_that_fails_is_found_per_member():
    layer, g = learnt(3), torch.randn(3, N, B).double()
    after, sound = layer.with_fisher(spoilt(g), rate=0.5, damping=DAMPING)
    assert sound.tolist() == [True, False, True]
    mixed = after.where(sound, layer)
    assert torch.equal(mixed.column[1], layer.column[1])
    assert torch.equal(mixed.fisher[0], after.fisher[0])
    assert not torch.equal(mixed.fisher[0], layer.fisher[0])
