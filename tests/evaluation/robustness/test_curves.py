import json
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

import bayesify
from bayesify import Bernoulli, Categorical, Gaussian, MeanField, Posterior, WeightPosterior
from bayesify.core.errors import DataError, OptionError
from bayesify.core.streams import stream
from bayesify.data.loading import evenly_spread
from bayesify.evaluation.evaluate import evaluate
from bayesify.evaluation.robustness.attacks import InputBox, fgsm, pgd
from bayesify.evaluation.robustness.curves import Attacks, robustness, starts

FEW = Attacks(eps=(0.05, 0.15), steps=4, examples=60, gradient_samples=12)


class Linear(Posterior):
    """A user's own posterior: one fixed linear map (C, D)."""

    device = torch.device("cpu")
    record = None
    trainable_parameters = stored_parameters = 0

    def __init__(self, weight, likelihood=None):
        self.weight = weight
        self.likelihood = likelihood or Categorical()

    def outputs(self, x, *, num_samples=32, generator=None, chunk_size=None):
        return (x @ self.weight.T).unsqueeze(0)

    def point(self):
        return {}


@pytest.fixture
def linear(generator):
    return Linear(torch.randn(2, 5, generator=generator))


@pytest.fixture
def points(generator):
    x = torch.randn(200, 5, generator=generator)
    return x, torch.randint(2, (200,), generator=generator)


@pytest.fixture(scope="module")
def digits():
    return bayesify.data.splits("digits")


@pytest.fixture(scope="module")
def box(digits):
    return InputBox.of(digits.normalise)


@pytest.fixture(scope="module")
def trained(digits):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    return bayesify.fit(net, digits.train, bayesify.MAP(epochs=15), seed=0)


@pytest.fixture(scope="module")
def wide(trained):
    """Mean-field noise about the trained network, far wider than a fit would leave it."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    net.load_state_dict(trained.point())
    return WeightPosterior(net, MeanField.around(net, scale=0.3), Categorical())


@pytest.fixture(scope="module")
def found(wide, trained, digits, box):
    return robustness(wide, digits.test, FEW, box=box, surrogate=trained)


# -------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_a_linear_model_withstands_what_its_margin_allows(linear, points, norm, dual):
    x, y = points
    gap = linear.weight[0] - linear.weight[1]
    margin = (x @ gap) * (1 - 2 * y)
    eps = (0.05, 0.2, 0.6)

    def exact(share):
        left = torch.stack([margin - share * each * gap.norm(p=dual) for each in (0.0, *eps)])
        accuracy = (left > 0).double().mean(1).tolist()
        return accuracy, (-nn.functional.logsigmoid(left).mean(1)).tolist()

    accuracy, nll = exact(1)
    attacks = Attacks(eps=eps, norm=norm, steps=20, restarts=5, examples=None)
    curve = robustness(linear, points, attacks, batch_size=200).curves["robustness"]
    assert curve["eps"] == [0, *eps]
    assert curve["attacks"]["fgsm"]["accuracy"] == pytest.approx(accuracy)
    assert curve["attacks"]["fgsm"]["nll"] == pytest.approx(nll, rel=1e-5)
    assert accuracy[0] > accuracy[-1] + 0.1
    # PGD nears the worst input of an l2 ball without reaching it: it is as bad as 98 % of eps
    for most, found, least in zip(
        accuracy, curve["attacks"]["pgd"]["accuracy"], exact(0.98)[0], strict=True
    ):
        assert most <= found <= least
    for most, found, least in zip(nll, curve["attacks"]["pgd"]["nll"], exact(0.98)[1], strict=True):
        assert least * (1 - 1e-6) <= found <= most * (1 + 1e-6)


def test_clean_numbers_are_those_of_evaluate(found, wide, digits):
    loader, _ = evenly_spread(digits.test, 60, batch_size=60)
    want = evaluate(wide, loader).metrics
    for curve in found.curves["robustness"]["attacks"].values():
        assert curve["accuracy"][0] == want["accuracy"]
        assert curve["nll"][0] == pytest.approx(want["nll"], rel=1e-5)


def test_every_number_is_that_of_the_attack_it_names(found, wide, trained, digits, box):
    loader, count = evenly_spread(digits.test, 60, batch_size=60)
    x, y = next(iter(loader))
    seeds = torch.randint(2**31, (count,), generator=stream(0, "attack"))
    start = starts(seeds, (1, 8, 8), FEW)
    options = {"eps": 0.15, "box": box, "num_samples": 12}
    inputs = {
        "fgsm": fgsm(wide, x, y, **options),
        "pgd": pgd(wide, x, y, steps=4, start=start, **options),
        "transfer": pgd(trained, x, y, steps=4, start=start, **options),
    }
    always = torch.ones(60, dtype=torch.bool)
    for name, moved in inputs.items():
        right = wide.predict(moved).probs.argmax(1) == y
        always &= right
        assert found.metrics[f"{name}_accuracy"] == pytest.approx(right.double().mean().item())
        nll = -wide.predict(moved).log_prob(y).mean().item()
        assert found.metrics[f"{name}_nll"] == pytest.approx(nll, rel=1e-3)
    assert found.metrics["worst_accuracy"] == pytest.approx(always.double().mean().item())
    assert 0 < found.metrics["worst_accuracy"] < found.metrics["transfer_accuracy"]


def test_the_curve_ends_where_the_metrics_are_and_falls_on_the_way(found):
    curve = found.curves["robustness"]
    for name, each in curve["attacks"].items():
        assert each["accuracy"][-1] == found.metrics[f"{name}_accuracy"]
        assert each["nll"][-1] == found.metrics[f"{name}_nll"]
        assert each["nll"] == sorted(each["nll"])
    assert found.metrics["attack_eps"] == 0.15
    assert list(curve) == [
        *("norm", "steps", "restarts", "gradient_samples", "precision"),
        *("num_samples", "examples"),
        *("eps", "attacks"),
    ]
    assert curve["examples"] == 60
    assert json.loads(json.dumps(found.curves, allow_nan=False)) == found.curves


# ------------------------------------------------------------------------- what must not matter


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_batch_size_does_not_matter(wide, digits, box, norm):
    attacks = Attacks(
        eps=(0.1, 0.4), norm=norm, steps=2, restarts=2, examples=9, gradient_samples=10
    )
    want = robustness(wide, digits.test, attacks, box=box, batch_size=9).metrics
    for batch_size in (1, 4):
        got = robustness(wide, digits.test, attacks, box=box, batch_size=batch_size).metrics
        assert got == pytest.approx(want, rel=1e-4)
    other = Attacks(**{**vars(attacks), "seed": 1})
    assert robustness(wide, digits.test, other, box=box).metrics != pytest.approx(want, rel=1e-4)


def test_the_start_of_an_example_depends_on_its_own_seed_alone():
    attacks = Attacks(restarts=3)
    seeds = torch.tensor([5, 6, 7, 6])
    whole = starts(seeds, (2, 2), attacks)
    assert whole.shape == (3, 4, 2, 2)
    assert starts(seeds[2:], (2, 2), attacks).equal(whole[:, 2:])
    assert whole[:, 1].equal(whole[:, 3])
    assert len({*whole.flatten(2).sum(2).flatten().tolist()}) == 9  # all others differ


def test_more_restarts_find_worse(wide, digits, box):
    nlls = [
        robustness(
            wide,
            digits.test,
            Attacks(eps=(0.4,), norm="l2", steps=2, restarts=restarts, examples=40),
            box=box,
            num_samples=20,
        ).metrics["pgd_nll"]
        for restarts in (1, 5)
    ]
    assert nlls[1] > nlls[0]


def test_a_classifier_of_positions_is_measured_over_all_of_them(generator):
    net = nn.Conv2d(1, 2, 1)
    posterior = WeightPosterior(net, MeanField.around(net, scale=1e-4), Categorical())
    image = torch.randn(3, 1, 4, 4, generator=generator)
    target = torch.randint(2, (3, 4, 4), generator=generator)
    found = robustness(posterior, (image, target), Attacks(eps=(0.2,)))
    gap = net.weight.flatten() @ torch.tensor([1.0, -1.0])
    margin = (image.squeeze(1) * gap + net.bias @ torch.tensor([1.0, -1.0])) * (1 - 2 * target)
    want = (margin > 0.2 * gap.abs()).double().mean().item()
    assert found.metrics["fgsm_accuracy"] == pytest.approx(want)
    assert found.curves["robustness"]["examples"] == 3


# ------------------------------------------------------------------------- inflated robustness


def test_few_gradient_samples_inflate_robustness_and_are_warned_about(wide, digits, box):
    options = {"eps": (0.15,), "steps": 5, "examples": 80}
    with pytest.warns(UserWarning, match="gradient_samples=1 of a stochastic"):
        noisy = robustness(wide, digits.test, Attacks(gradient_samples=1, **options), box=box)
    exact = robustness(wide, digits.test, Attacks(gradient_samples=20, **options), box=box)
    for attack in ("fgsm", "pgd"):
        assert noisy.metrics[f"{attack}_accuracy"] > exact.metrics[f"{attack}_accuracy"] + 0.05
        assert noisy.metrics[f"{attack}_nll"] < exact.metrics[f"{attack}_nll"]


def test_a_fixed_number_of_networks_is_not_warned_about(trained, digits, box):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        robustness(trained, digits.test, Attacks(gradient_samples=1, steps=1, examples=5), box=box)


def test_transfer_from_the_posterior_itself_is_its_own_pgd(trained, digits, box):
    got = robustness(trained, digits.test, FEW, box=box, surrogate=trained).metrics
    assert got["transfer_nll"] == got["pgd_nll"]
    assert got["transfer_accuracy"] == got["pgd_accuracy"]
    assert "transfer_nll" not in robustness(trained, digits.test, FEW, box=box).metrics


def test_stf_is_attacked(digits, box):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    method = bayesify.STF(pretrain=bayesify.MAP(epochs=5), epochs=1)
    posterior = bayesify.fit(net, digits.train, method, seed=0)
    for each in posterior.q.parameters():
        each.grad = None  # that of the fit
    metrics = robustness(posterior, digits.test, replace(FEW, steps=10), box=box).metrics
    clean = evaluate(posterior, digits.test).metrics["accuracy"]
    assert metrics["pgd_accuracy"] <= metrics["fgsm_accuracy"] < clean
    assert all(each.grad is None for each in posterior.q.parameters())


def test_progress_is_told(linear, points):
    sizes = []
    robustness(linear, points, Attacks(steps=1, examples=50), batch_size=20, on_batch=sizes.append)
    assert sizes == [20, 20, 10]


# ------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    "options",
    [
        {"eps": ()},
        {"eps": (0.0, 0.1)},
        {"eps": (0.2, 0.1)},
        {"eps": (0.1, 0.1)},
        {"eps": (float("inf"),)},
        {"eps": (float("nan"),)},
        {"eps": [0.1]},
        {"eps": 0.1},
        {"norm": "l1"},
        {"steps": 0},
        {"restarts": 0},
        {"gradient_samples": 0},
        {"examples": 0},
        {"examples": 2.5},
        {"seed": -1},
    ],
)
def test_senseless_options_are_refused(options):
    with pytest.raises(OptionError, match=f"Attacks.{next(iter(options))}="):
        Attacks(**options)


def test_only_classification_has_an_accuracy_to_lose(linear, points):
    for likelihood in (Gaussian(), Bernoulli()):
        other = Linear(linear.weight, likelihood)
        with pytest.raises(OptionError, match="classification posterior, got"):
            robustness(other, points)
        with pytest.raises(OptionError, match="classification posterior, got"):
            robustness(linear, points, surrogate=other)


def test_unusable_data_are_refused(linear, points):
    x, y = points
    with pytest.raises(DataError, match=r"0\.\.1"):
        robustness(linear, (x, y + 1))
    with pytest.raises(DataError, match="one floating-point tensor"):
        robustness(linear, (x.long(), y))
    with pytest.raises(DataError, match="same normalisation"):
        robustness(linear, points, box=InputBox(torch.zeros(5), torch.ones(5), torch.ones(5)))


def test_few_gradient_samples_of_a_posterior_by_probit_are_warned_about():
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3), torch.rand(8, 4)
    q = MeanField.around(net, scale=0.7)
    posterior = WeightPosterior(net, q, Categorical(), average="probit")
    few = Attacks(eps=(0.1,), gradient_samples=2, steps=1)
    with pytest.warns(UserWarning, match="gradient_samples=2 of a stochastic posterior"):
        robustness(posterior, (x, torch.zeros(8).long()), few, box=None)
