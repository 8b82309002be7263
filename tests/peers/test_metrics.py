"""Our metrics against torch-uncertainty's, on random and on awkward predictions."""

import math
import warnings

import pytest
import torch

from bayesify.evaluation.metrics import scores as metrics
from bayesify.evaluation.metrics.ood import fpr95
from bayesify.evaluation.metrics.selective import risk_coverage
from bayesify.likelihoods.predictive import ClassPredictive

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    peer = pytest.importorskip("torch_uncertainty.metrics")

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore:.*large memory footprint.*")]
CLASSES = 5


def predictions(seed, number=200, sharpness=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(number, CLASSES, generator=generator, dtype=torch.float64) * sharpness
    return logits.softmax(1), torch.randint(0, CLASSES, (number,), generator=generator)


def theirs(metric, probs, target):
    metric.update(probs, target)
    return float(metric.compute())


def calibration(adaptive, bins):
    return peer.CalibrationError(
        task="multiclass", adaptive=adaptive, num_bins=bins, num_classes=CLASSES
    )


PAIRS = {
    "nll": (metrics.nll, lambda: peer.CategoricalNLL()),
    "brier": (metrics.brier, lambda: peer.BrierScore(num_classes=CLASSES)),
    "ece": (metrics.ece, lambda: calibration(False, 15)),
    "ece, 10 bins": (lambda p, y: metrics.ece(p, y, bins=10), lambda: calibration(False, 10)),
    "adaptive ece": (metrics.adaptive_ece, lambda: calibration(True, 15)),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(("seed", "sharpness"), [(0, 2.0), (1, 0.2), (1234, 2.0), (2, 8.0)])
def test_a_metric_of_classes(name, seed, sharpness):
    ours, peers = PAIRS[name]
    probs, target = predictions(seed, sharpness=sharpness)
    assert ours(probs, target) == pytest.approx(theirs(peers(), probs, target), abs=2e-5)


@pytest.mark.parametrize("seed", range(4))
def test_the_area_under_the_curve_of_selective_risk(seed):
    """Theirs is a trapezoid from coverage 1/N to 1, ours the mean over all coverages.

    A trapezoid leaves half of the first and of the last risk out, and is divided by N - 1.
    """
    probs, target = predictions(seed)
    risk, number = risk_coverage(probs, target).risk, len(target)
    ends = float(risk[0] + risk[-1]) / 2
    trapezoid = (number * metrics.aurc(probs, target) - ends) / (number - 1)
    assert trapezoid == pytest.approx(theirs(peer.AURC(), probs, target), abs=2e-5)


def test_numbers_on_record():
    """Computed once by torchmetrics and torch-uncertainty for this very tensor."""
    probs, target = predictions(1234)
    found = {
        "nll": metrics.nll(probs, target),
        "brier": metrics.brier(probs, target),
        "ece": metrics.ece(probs, target),
        "adaptive_ece": metrics.adaptive_ece(probs, target),
    }
    recorded = {
        "nll": 2.744300,
        "brier": 1.125468,
        "ece": 0.448172,
        "adaptive_ece": 0.442918,
    }
    assert found == pytest.approx(recorded, abs=2e-5)


@pytest.mark.parametrize("seed", range(3))
def test_false_positives_at_95_percent(seed):
    """Theirs takes the score of the positive class, which with us are the data of training."""
    generator = torch.Generator().manual_seed(seed)
    inside = torch.randn(400, generator=generator) + 1
    outside = torch.randn(300, generator=generator)
    metric = peer.FPR95(pos_label=1)
    metric.update(
        torch.cat([inside, outside]), torch.cat([torch.ones(400), torch.zeros(300)]).long()
    )
    assert fpr95(inside, outside) == pytest.approx(float(metric.compute()), abs=1e-6)


def test_information_and_disagreement_of_opposed_members():
    """ln 2, theirs and ours."""
    members = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # (B, M, C)
    metric = peer.MutualInformation()
    metric.update(members)
    assert float(metric.compute()) == pytest.approx(math.log(2), abs=1e-4)
    logits = members.transpose(0, 1).clamp_min(1e-30).log()
    assert ClassPredictive(logits).mutual_information().item() == pytest.approx(math.log(2))
