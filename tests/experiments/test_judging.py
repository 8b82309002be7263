from dataclasses import replace

import pytest
import torch
from torch import nn

import bayesify
from bayesify.data.augment import augmented
from bayesify.data.loading import evenly, subset
from bayesify.evaluation.guarantees.certificates import certify
from bayesify.evaluation.privacy.membership import membership
from bayesify.experiments.aspects import Aspects
from bayesify.experiments.judging import Judge

QUICK = {
    "attacks": {"eps": (0.1,), "steps": 2, "gradient_samples": 10, "examples": 20},
    "corruptions": {"families": ("contrast",), "severities": (3,), "examples": 20},
    "shadows": {"count": 4, "examples": 40},
}


@pytest.fixture(scope="module")
def digits():
    return bayesify.data.splits("digits")


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


@pytest.fixture(scope="module")
def stf(digits):
    method = bayesify.STF(pretrain=bayesify.MAP(epochs=2), epochs=1, certify_split=0.3)
    return bayesify.fit(net(), digits.train, method)


@pytest.fixture(scope="module")
def trained(digits):
    return bayesify.fit(net(), digits.train, bayesify.MAP(epochs=2))


def judge(splits, *names, surrogate=None, **more):
    settings = {name: QUICK[name] for name in names if name in QUICK}
    aspects = Aspects().changed(names, settings)
    return Judge(aspects, splits, splits.test, None, 4, surrogate=lambda: surrogate, **more)


def test_quality_alone_by_default(digits, stf):
    found = judge(digits)(stf).metrics
    assert found == bayesify.evaluate(stf, digits.test, num_samples=4).metrics


def test_every_aspect_adds_its_numbers(digits, stf, trained):
    names = ("attacks", "corruptions", "membership", "certificates", "far-away")
    found = judge(digits, *names, surrogate=trained)(stf)
    wanted = ["transfer_accuracy", "corrupted_nll", "membership_auc", "certificate"]
    assert {*wanted, "far_confidence"} <= set(found.metrics)
    assert {"robustness", "corruption", "membership", "far_away"} <= set(found.curves)


def test_members_are_as_many_as_the_others_and_not_augmented(digits, stf):
    size = len(digits.test)
    members = subset(digits.train, evenly(len(digits.train), size))
    want = membership(stf, members, digits.test, num_samples=4).metrics
    found = judge(augmented(digits), "membership")(stf).metrics
    assert {name: found[name] for name in want} == pytest.approx(want)


def test_certificates_of_those_who_kept_examples_for_them(digits, stf, trained):
    found = judge(augmented(digits), "certificates")(stf).metrics
    assert found["certificate"] == certify(stf, digits.train).bound
    assert "certificate" not in judge(digits, "certificates")(trained).metrics


def test_what_does_not_apply_is_left_out():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    generic = bayesify.data.splits("digits")
    part = bayesify.data.Examples(
        x, x[:, :1], bayesify.data.Normalise(torch.zeros(3), torch.ones(3))
    )
    numbers = replace(
        generic, task="regression", train=part, validation=part, test=part, input_shape=(3,)
    )
    line = bayesify.fit(nn.Linear(3, 1), part, bayesify.MAP(epochs=1), likelihood="gaussian")
    names = ("attacks", "corruptions", "membership", "certificates", "far-away")
    found = judge(numbers, *names)(line).metrics
    assert "membership_auc" in found
    assert not {"pgd_accuracy", "corrupted_nll", "certificate", "far_confidence"} & set(found)


def test_it_says_what_was_left_out(digits):
    class Squared(nn.Module):
        def forward(self, x):
            return x.square()

    posterior = bayesify.fit(
        nn.Sequential(nn.Flatten(), Squared(), nn.Linear(64, 10)),
        digits.train,
        bayesify.MAP(epochs=1),
    )
    told = []
    found = judge(digits, "far-away", tell=told.append)(posterior)
    assert "far_confidence" not in found.metrics
    assert told[0].startswith("far-away: left out, ")


def test_every_aspect_that_is_left_out_is_told(digits, trained):
    told = []
    judge(digits, "certificates", tell=told.append)(trained)
    assert told == [
        "certificates: left out, the network has seen all data; fit with certify_split=0.5."
    ]


def test_nobody_transfers_attacks_from_itself(digits, trained):
    assert "transfer_nll" not in judge(digits, "attacks", surrogate=trained)(trained).metrics


def test_shadows_are_fitted_where_they_are_asked_for(digits, tmp_path):
    passing = {"batch_size": 64, "device": "cpu", "out": tmp_path}
    posterior_of = (net, bayesify.MAP(epochs=1), bayesify.Categorical())
    assert judge(digits).shadowed(*posterior_of, **passing).metrics == {}
    told = []
    found = judge(digits, "shadows", tell=told.append).shadowed(*posterior_of, **passing)
    assert found.curves["lira"]["shadows"] == 4
    assert told == [f"shadow {n} of 4 is fitted" for n in (1, 2, 3, 4)]
