import json
import math

import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

import bayesify
from bayesify import Categorical, Gaussian, MeanField, WeightPosterior
from bayesify.core.errors import BayesifyError, DataError, ShapeError
from bayesify.evaluation.evaluate import evaluate
from bayesify.evaluation.robustness.attacks import InputBox
from evaluation.stub import LinearPosterior


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(50, 4, generator=generator), torch.randint(3, (50,), generator=generator)


@pytest.fixture
def targets():
    return torch.randn(50, 3, generator=torch.Generator().manual_seed(1))


def test_classification_is_measured(data):
    result = evaluate(LinearPosterior("classification"), data)
    quality = ["accuracy", "nll", "ece", "adaptive_ece", "mce", "brier", "mean_entropy", "aurc"]
    assert list(result.metrics) == quality
    assert list(result.curves) == ["reliability", "risk_coverage"]
    assert sum(result.curves["reliability"]["count"]) == 50


@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_metrics_do_not_depend_on_the_batch_size(data, batch_size):
    posterior = LinearPosterior("classification")
    want = evaluate(posterior, data, ood=data[0] / 9).metrics
    got = evaluate(posterior, data, ood=data[0] / 9, batch_size=batch_size).metrics
    assert got == pytest.approx(want, rel=1e-5)


def test_tensors_data_set_and_loader_are_the_same_data(data):
    posterior, dataset = LinearPosterior("classification"), TensorDataset(*data)
    want = evaluate(posterior, data).metrics
    assert evaluate(posterior, dataset).metrics == want
    assert evaluate(posterior, DataLoader(dataset, 50)).metrics == pytest.approx(want)


def test_inputs_far_less_clear_are_recognised_as_out_of_distribution(data):
    x, y = data
    result = evaluate(LinearPosterior("classification"), (10 * x, y), ood=(x / 100, y + 90))
    assert result.metrics["ood_auroc"] > 0.99
    assert result.metrics["ood_fpr95"] < 0.1
    assert set(result.curves["roc"]) == {"fpr", "tpr"}


def test_multilabel_is_measured(data):
    labels = torch.ones(50, 3)
    result = evaluate(LinearPosterior("multilabel"), (data[0], labels), ood=data[0] / 9)
    assert "exact_match" in result.metrics
    assert "ood_auroc" in result.metrics


def test_target_scale_gives_the_numbers_of_unscaled_targets(data, targets):
    scale = torch.tensor([2.0, 5.0, 0.1])
    standardised = evaluate(LinearPosterior("regression"), (data[0], targets))
    got = evaluate(LinearPosterior("regression"), (data[0], targets), target_scale=scale).metrics
    residual = (standardised.predictions.mean - targets) * scale
    assert got["rmse"] == pytest.approx(residual.square().mean().sqrt().item())
    assert got["nll"] == pytest.approx(standardised.metrics["nll"] + math.log(2 * 5 * 0.1))
    for name in ("coverage90", "interval_error"):  # have no unit
        assert got[name] == standardised.metrics[name]
    crps = standardised.predictions.scores["crps"] * scale
    assert got["crps"] == pytest.approx(crps.mean().item(), rel=1e-5)


def test_target_scale_must_fit(data, targets):
    with pytest.raises(ShapeError, match="regression only"):
        evaluate(LinearPosterior("classification"), data, target_scale=torch.ones(3))
    for scale in (torch.ones(2), torch.zeros(3)):
        with pytest.raises(ShapeError, match="3 output dimensions"):
            evaluate(LinearPosterior("regression"), (data[0], targets), target_scale=scale)


def test_the_table_shows_every_metric_and_the_json_is_strict(data):
    result = evaluate(LinearPosterior("classification"), data, ood=data[0] / 9)
    assert "classification, 50 examples" in str(result)
    assert all(name in str(result) for name in result.metrics)
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["metrics"] == result.metrics


def test_unusable_data_is_refused(data):
    x, y = data
    posterior = LinearPosterior("classification")
    with pytest.raises(ShapeError, match="x has 50 examples, but y has 49"):
        evaluate(posterior, (x, y[:-1]))
    with pytest.raises(DataError, match="two tensors"):
        evaluate(posterior, (x, y, y))  # pyright: ignore[reportArgumentType]
    with pytest.raises(BayesifyError, match="no examples"):
        evaluate(posterior, (x[:0], y[:0]))


class Committee(bayesify.Posterior):
    """Somebody else's posterior: two networks that are no weights of one model."""

    def __init__(self):
        torch.manual_seed(0)
        self.nets = [torch.nn.Linear(64, 10) for _ in range(2)]
        self.likelihood = bayesify.Categorical()
        self.record = None

    @property
    def device(self):
        return torch.device("cpu")

    def outputs(self, x, *, num_samples=32, generator=None, chunk_size=None):
        return torch.stack([net(x.flatten(1)) for net in self.nets])

    def point(self):
        return dict(self.nets[0].named_parameters())

    @property
    def trainable_parameters(self):
        return 1300

    @property
    def stored_parameters(self):
        return 1300


@pytest.fixture(scope="module")
def digits():
    return bayesify.data.splits("digits")


FEW = {
    "attacks": bayesify.Attacks(eps=(0.1,), steps=2, examples=30),
    "corruptions": bayesify.Corruptions(families=("contrast",), severities=(3,), examples=30),
}


def test_every_part_takes_a_posterior_of_the_users_own(digits):
    committee = Committee()
    result = evaluate(committee, digits.test, members=digits.train, surrogate=committee, **FEW)
    for name in ("pgd_accuracy", "transfer_nll", "corrupted_ece", "membership_auc"):
        assert math.isfinite(result.metrics[name])
    assert result.metrics["transfer_nll"] == result.metrics["pgd_nll"]
    for part in ({"certifying": digits.train}, {"far_away": True}):
        with pytest.raises(bayesify.UnsupportedModelError, match="over weights"):
            evaluate(committee, digits.test, **part)


def test_what_cannot_be_followed_far_away_is_refused_before_anything_is_predicted(digits):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    q, seen = bayesify.MeanField.around(net, scale=0.1), []
    tangent = bayesify.WeightPosterior(net, q, bayesify.Categorical(), tangent=True)
    with pytest.raises(bayesify.UnsupportedModelError, match="whose network itself"):
        evaluate(tangent, digits.test, far_away=True, on_batch=seen.append)
    assert not seen


def test_the_parts_are_those_of_their_own_functions(digits):
    committee, box = Committee(), InputBox.of(digits.normalise)
    metrics = evaluate(committee, digits.test, members=digits.train, **FEW).metrics
    attacked = bayesify.robustness(committee, digits.test, FEW["attacks"], box=box)
    shifted = bayesify.shift(committee, digits.test, FEW["corruptions"], normalise=digits.normalise)
    told = bayesify.membership(committee, digits.train, digits.test)
    for part in (attacked, shifted, told):
        assert {name: metrics[name] for name in part.metrics} == pytest.approx(part.metrics)


def test_the_units_of_an_attack_are_those_of_the_images(digits):
    """Given as tensors, the same images need to be told how they were normalised."""
    committee = Committee()
    x, y = digits.test[list(range(60))]
    told = evaluate(committee, (x, y), attacks=FEW["attacks"], normalise=digits.normalise)
    part = bayesify.data.Examples(digits.test.x[:60], digits.test.y[:60], digits.normalise)
    known = evaluate(committee, part, attacks=FEW["attacks"])
    assert told.metrics == pytest.approx(known.metrics)
    for inside in (DataLoader(part, 60), Subset(part, range(60))):
        found = evaluate(committee, inside, attacks=FEW["attacks"])
        assert found.metrics == pytest.approx(known.metrics)
    untold = evaluate(committee, (x, y), attacks=FEW["attacks"])
    assert untold.metrics["pgd_nll"] != pytest.approx(known.metrics["pgd_nll"])


def test_attacks_need_gradients_and_that_is_said_before_anything_is_predicted(data):
    posterior = LinearPosterior("classification")
    with pytest.raises(bayesify.UnsupportedModelError, match="derive from it"):
        evaluate(posterior, data, attacks=FEW["attacks"])
    assert posterior.seen == []


@pytest.mark.parametrize("likelihood", [Categorical(), Gaussian(0.5)])
def test_a_network_of_half_precision_is_measured(likelihood):
    net = torch.nn.Linear(4, 100 if likelihood.task == "classification" else 1).bfloat16()
    q = MeanField.around(net, scale=0.5)
    posterior = WeightPosterior(net, q, likelihood)
    x = torch.randn(30, 4).bfloat16()
    y = torch.arange(30) if likelihood.task == "classification" else torch.randn(30)
    found = evaluate(posterior, (x, y)).metrics
    predictive = posterior.predict(x)
    assert found["nll"] == pytest.approx(-predictive.log_prob(y).double().mean().item(), rel=1e-5)
    assert all(value == value for value in found.values())


@pytest.mark.parametrize(
    "kind", [torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.bool]
)
def test_labels_of_any_integer_type_are_labels(kind):
    """Fit and evaluation are those of int64, number by number."""
    x = torch.randn(40, 4)
    y = (x[:, 0] > 0).long()
    methods = [
        bayesify.MAP(epochs=1),
        bayesify.Laplace(pretrain=bayesify.MAP(epochs=1), structure="diag"),
        bayesify.DiagonalLaplace(pretrain=bayesify.MAP(epochs=1), factor=1.0),
        bayesify.BALI(epochs=1, min_steps=2),
    ]
    for method in methods:
        torch.manual_seed(0)
        net = torch.nn.Linear(4, 2)
        want = bayesify.evaluate(bayesify.fit(net, (x, y), method), (x, y))
        got = bayesify.evaluate(bayesify.fit(net, (x, y.to(kind)), method), (x, y.to(kind)))
        assert got.metrics == want.metrics


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x, y: (x, y + 1), "labels reach from"),
        (lambda x, y: (x, y.float()), "expected integer class indices"),
        (lambda x, y: (x, torch.nn.functional.one_hot(y)), "not one-hot rows"),
        (lambda x, y: (x / 0, y), "batch 0: .* NaN or infinite"),
    ],
)
def test_what_is_judged_is_checked_before_it_is_predicted(change, said):
    x = torch.randn(40, 4)
    y = torch.arange(40) % 2
    posterior = bayesify.fit(torch.nn.Linear(4, 2), (x, y), bayesify.MAP(epochs=1))
    seen = []
    with pytest.raises(bayesify.BayesifyError, match=said):
        bayesify.evaluate(posterior, change(x, y), on_batch=seen.append)
    assert seen == []
