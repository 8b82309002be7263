import gc
import subprocess

import torch
from torch import nn

import bayesify
from bayesify.experiments import measure
from bayesify.experiments.measure import (
    cost,
    flops,
    git_revision,
    quick_collection,
    release_memory,
    samples_used,
    saved_bytes,
    shortened,
    warm_up,
)
from bayesify.methods import METHODS

DATA = (torch.randn(40, 4), torch.arange(40) % 3)


def fitted():
    return bayesify.fit(nn.Linear(4, 3), DATA, bayesify.MAP(epochs=1))


def test_all_costs_are_measured(tmp_path):
    price = cost(fitted(), DATA[0][:1], tmp_path, num_samples=2)
    assert price["trainable_parameters"] == price["stored_parameters"] == 15
    assert price["disk_bytes"] > 4 * 15
    assert price["fit_seconds"] >= price["seconds_per_epoch"] > 0
    assert price["milliseconds_per_prediction"] > 0
    assert price["num_samples"] == 1  # a point has one sample, however many are asked for
    assert list(tmp_path.iterdir()) == []


def test_the_size_is_that_of_a_saved_posterior(tmp_path):
    posterior = fitted()
    folder = bayesify.save(posterior, tmp_path / "saved")
    assert saved_bytes(posterior, tmp_path) == sum(f.stat().st_size for f in folder.iterdir())


def test_what_cannot_be_saved_has_no_size(tmp_path, monkeypatch):
    def refuse(*_):
        raise bayesify.UnsupportedModelError("no format")

    monkeypatch.setattr(measure, "save", refuse)
    assert saved_bytes(fitted(), tmp_path) is None


def test_freed_memory_does_not_hide_the_next_growth():
    peaks = []
    for _ in range(2):
        release_memory()
        with bayesify.CostMeter() as meter:
            blocks = [torch.ones(2_000) for _ in range(2_000)]  # 16 MB in small pieces
            del blocks
        peaks.append(meter.peak_memory_bytes)
    assert None in peaks or min(peaks) > 8_000_000


def test_what_is_set_aside_is_not_walked_through_until_the_block_ends():
    before = gc.get_freeze_count()
    with quick_collection() as set_aside:
        assert gc.get_freeze_count() == before
        set_aside()
        assert gc.get_freeze_count() > before + 1000
    assert gc.get_freeze_count() == 0


def test_every_method_can_be_shortened():
    for kind in METHODS.values():
        assert getattr(shortened(kind()), "epochs", 1) == 1


def test_a_warm_up_never_fails():
    one_class = (DATA[0], torch.zeros(40, dtype=torch.int64))
    for data in (DATA, one_class):
        warm_up(nn.Linear(4, 3), data, bayesify.MAP(), likelihood="categorical", device="cpu")


def test_the_revision_is_that_of_the_checkout():
    revision = git_revision()
    head = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True
    )
    assert revision is None or len(revision.removesuffix("-dirty")) >= 12
    assert head.returncode or revision is None or revision.startswith(head.stdout.strip())


def test_without_git_there_is_no_revision(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_revision() is None


def test_the_operations_of_a_prediction_grow_with_its_samples():
    net, x = nn.Linear(3, 2), torch.randn(1, 3)
    q = bayesify.MeanField.around(net, scale=0.1)
    posterior = bayesify.WeightPosterior(net, q, bayesify.Categorical())
    assert flops(posterior, x, num_samples=1) == 2 * 3 * 2
    assert flops(posterior, x, num_samples=8) == 8 * 2 * 3 * 2


def test_the_price_of_a_posterior_by_probit_counts_the_samples_and_its_center():
    net, x = nn.Linear(3, 2), torch.randn(1, 3)
    q = bayesify.MeanField.around(net, scale=0.1)
    posterior = bayesify.WeightPosterior(net, q, bayesify.Categorical(), average="probit")
    assert samples_used(posterior, x, num_samples=16) == 16
    assert flops(posterior, x, num_samples=8) == (8 + 1) * 2 * 3 * 2
