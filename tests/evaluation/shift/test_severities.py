import json
import math

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset
from torchmetrics.functional.classification import multiclass_calibration_error

import bayesify
from bayesify.core.errors import DataError, OptionError, UnsupportedModelError
from bayesify.data.examples import Normalise
from bayesify.evaluation.evaluate import evaluate
from bayesify.evaluation.shift.corruptions import corrupt, families_for
from bayesify.evaluation.shift.severities import Corruptions, shift
from bayesify.likelihoods.predictive import ClassPredictive, RegressionPredictive

FEW = Corruptions(families=("gaussian_noise", "contrast"), severities=(1, 4))


class ImagePosterior:
    """A user's own: nothing but `predict`, three fixed linear maps of the pixels."""

    device = torch.device("cpu")

    def __init__(self, pixels=64, classes=10):
        generator = torch.Generator().manual_seed(0)
        self.maps = 0.3 * torch.randn(3, pixels, classes, generator=generator)
        self.seen = []

    def predict(self, x, *, num_samples=32, generator=None, chunk_size=None):
        assert generator is None
        self.seen.append((x, num_samples, chunk_size))
        return ClassPredictive(x.flatten(1) @ self.maps)


class Regressor(ImagePosterior):
    def predict(self, x, **_):
        return RegressionPredictive(x.flatten(1) @ self.maps[..., :1], torch.ones(1))


class Stubborn(ImagePosterior):
    """Certain of class 0, whatever it sees."""

    def predict(self, x, **_):
        logits = torch.full((1, len(x), 10), -math.inf)
        logits[..., 0] = 0
        return ClassPredictive(logits)


@pytest.fixture(scope="module")
def digits():
    return bayesify.data.splits("digits")


def test_clean_images_are_measured_as_evaluate_does(digits):
    posterior = ImagePosterior()
    few = Corruptions(families=("contrast",), severities=(1,), examples=None)
    found = shift(posterior, digits.test, few, normalise=digits.normalise)
    want = evaluate(posterior, digits.test).metrics
    for name, values in found.curves["corruption"]["families"]["contrast"].items():
        assert values[0] == pytest.approx(want[name], abs=1e-6)


def test_the_numbers_are_those_of_a_loop_by_hand(digits):
    posterior = ImagePosterior()
    found = shift(posterior, digits.test, FEW, normalise=digits.normalise, batch_size=100)
    curve = found.curves["corruption"]
    assert curve["severities"] == [0, 1, 4]
    assert curve["examples"] == len(digits.test) < 1000
    assert list(curve["families"]) == ["gaussian_noise", "contrast"]
    target, totals = digits.test.y, {"accuracy": 0.0, "nll": 0.0, "ece": 0.0}
    for name in ("gaussian_noise", "contrast"):
        for place, severity in ((1, 1), (2, 4)):
            x = digits.normalise(corrupt(digits.test.x, name, severity))
            probs = posterior.predict(x).probs
            got = {metric: values[place] for metric, values in curve["families"][name].items()}
            want = {
                "accuracy": (probs.argmax(1) == target).double().mean().item(),
                "nll": -probs[torch.arange(len(target)), target].log().mean().item(),
                "ece": multiclass_calibration_error(probs, target, 10, n_bins=15).item(),
            }
            assert got == pytest.approx(want, abs=1e-5)
            totals = {metric: total + want[metric] for metric, total in totals.items()}
    want = {f"corrupted_{metric}": total / 4 for metric, total in totals.items()}
    assert found.metrics == pytest.approx(want, abs=1e-5)


def test_a_trained_network_fails_more_and_more(digits):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    posterior = bayesify.fit(net, digits.train, bayesify.MAP(epochs=5), seed=0)
    chosen = Corruptions(families=("contrast", "impulse_noise", "brightness"), examples=300)
    found = shift(posterior, digits.test, chosen, normalise=digits.normalise)
    for values in found.curves["corruption"]["families"].values():
        assert values["nll"][0] < values["nll"][3] < values["nll"][5]
    assert found.metrics["corrupted_nll"] > values["nll"][0]


@pytest.mark.parametrize("batch_size", [3, 7, 64])
def test_nothing_depends_on_the_batch_size(digits, batch_size):
    chosen = Corruptions(families=("shot_noise", "motion_blur", "pixelate"), examples=20)
    posterior, normalise = ImagePosterior(), digits.normalise
    want = shift(posterior, digits.test, chosen, normalise=normalise)
    got = shift(posterior, digits.test, chosen, normalise=normalise, batch_size=batch_size)
    assert got.metrics == pytest.approx(want.metrics, rel=1e-5)
    for name, values in got.curves["corruption"]["families"].items():
        for metric, series in values.items():
            same = want.curves["corruption"]["families"][name][metric]
            assert series == pytest.approx(same, abs=2e-6)


def test_examples_are_spread_evenly_and_normalised_as_they_were(digits):
    posterior = ImagePosterior()
    chosen = Corruptions(families=("contrast",), severities=(5,), examples=4)
    found = shift(
        posterior, digits.test, chosen, normalise=digits.normalise, num_samples=5, chunk_size=2
    )
    assert found.curves["corruption"]["examples"] == 4
    assert found.curves["corruption"]["num_samples"] == 5
    (first, *_), (clean, *passed), (corrupted, *_) = posterior.seen  # the first: which task?
    assert len(first) == 1
    assert passed == [5, 2]
    raw = digits.test.x[[each * len(digits.test) // 4 for each in range(4)]]
    torch.testing.assert_close(clean, digits.normalise(raw))
    want = digits.normalise(corrupt(raw, "contrast", 5))
    torch.testing.assert_close(corrupted, want)


def test_tensors_data_sets_and_loaders_are_the_same_data(digits):
    x, y = digits.test.batch(torch.arange(50))
    want = shift(ImagePosterior(), (x, y), FEW, normalise=digits.normalise)
    dataset = TensorDataset(x, y)
    for data in (
        dataset,
        Subset(digits.test, range(50)),
        DataLoader(dataset, 7),
        DataLoader(dataset, 7, shuffle=True),
        bayesify.data.loading.as_loader((x, y), batch_size=7, shuffle=False),
        DataLoader(dataset, 7, collate_fn=lambda pairs: tuple(map(torch.stack, zip(*pairs)))),  # noqa: B905
    ):
        found = shift(ImagePosterior(), data, FEW, normalise=digits.normalise)
        assert found.metrics == pytest.approx(want.metrics, rel=1e-6)


def test_without_normalise_inputs_are_images_already(digits):
    identity = Normalise(torch.zeros(1, 1, 1), torch.ones(1, 1, 1))
    raw = digits.test.x[:50], digits.test.y[:50]
    want = shift(ImagePosterior(), raw, FEW, normalise=identity)
    assert shift(ImagePosterior(), raw, FEW, normalise=None).metrics == want.metrics


def test_all_families_that_fit_are_the_default():
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for channels in (1, 3):
        data = images[:, :channels], torch.tensor([0, 1, 2, 1])
        counts = []
        found = shift(
            ImagePosterior(64 * channels, 3), data, normalise=None, on_batch=counts.append
        )
        assert tuple(found.curves["corruption"]["families"]) == families_for(channels)
        assert sum(counts) == 4 * (1 + 5 * len(families_for(channels)))
        json.dumps(found.curves, allow_nan=False)


def test_the_seed_is_that_of_the_noise(digits):
    def nll(seed):
        chosen = Corruptions(families=("gaussian_noise",), severities=(5,), seed=seed)
        found = shift(ImagePosterior(), digits.test, chosen, normalise=digits.normalise)
        return found.metrics["corrupted_nll"]

    assert nll(0) == nll(0) != nll(1)


def test_a_true_class_of_probability_zero_has_no_nll(digits):
    with pytest.raises(DataError, match="finite"):
        shift(Stubborn(), digits.test, FEW, normalise=digits.normalise)


def test_unusable_data_and_models_are_refused(digits):
    x, y = digits.test.batch(torch.arange(10))
    posterior, normalise = ImagePosterior(), digits.normalise
    with pytest.raises(DataError, match="expected images"):
        shift(posterior, (x.flatten(1), y), normalise=None)
    with pytest.raises(DataError, match="one class an image"):
        shift(posterior, (x, torch.rand(10)), normalise=normalise)
    with pytest.raises(DataError, match="came through"):
        shift(posterior, (x, y), normalise=None)
    with pytest.raises(OptionError, match="with 1 channel"):
        shift(posterior, (x, y), Corruptions(("saturate",)), normalise=normalise)
    with pytest.raises(OptionError, match="batch_size=0"):
        shift(posterior, (x, y), normalise=normalise, batch_size=0)
    assert not posterior.seen  # nothing was predicted in vain
    with pytest.raises(UnsupportedModelError, match="regression task"):
        shift(Regressor(), (x, y), FEW, normalise=normalise)


def test_data_without_an_index_are_refused():
    class Stream(IterableDataset):
        def __len__(self):
            return 3

        def __iter__(self):
            return iter([(torch.zeros(1, 8, 8), 0)] * 3)

    with pytest.raises(DataError, match="index"):
        shift(ImagePosterior(), DataLoader(Stream(), 2), normalise=None)


def test_options_are_checked():
    for families in ((), ("rain",), ("contrast", "contrast")):
        with pytest.raises(OptionError, match="at least one name"):
            Corruptions(families=families)
    for severities in ((), (0, 1), (2, 1), (1, 1), (5, 6), 3):
        with pytest.raises(OptionError, match="from 1 to 5"):
            Corruptions(severities=severities)
    with pytest.raises(OptionError, match="examples"):
        Corruptions(examples=0)
    with pytest.raises(OptionError, match="seed"):
        Corruptions(seed=0.5)  # pyright: ignore[reportArgumentType]
