import math

import pytest
import torch
from torch import distributions as D
from torch.nn import functional as F

from bayesify.errors import DataError, OptionError, ShapeError
from bayesify.likelihoods import (
    LIKELIHOOD_OF_TASK,
    LIKELIHOODS,
    Bernoulli,
    Categorical,
    Gaussian,
    resolve,
)

LABELS = torch.tensor([0, 2, 1, 2])


def test_categorical_is_torchs():
    outputs = torch.randn(3, 4, 5).double()
    want = D.Categorical(logits=outputs).log_prob(LABELS)
    torch.testing.assert_close(Categorical().log_prob(outputs, LABELS), want)


def test_categorical_sums_over_positions():
    outputs, target = torch.randn(2, 3, 4, 5, 6), torch.randint(4, (3, 5, 6))
    by_hand = sum(
        Categorical().log_prob(outputs[..., i, j], target[:, i, j])
        for i in range(5)
        for j in range(6)
    )
    torch.testing.assert_close(Categorical().log_prob(outputs, target), by_hand)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.bool])
def test_labels_may_be_any_integers(dtype):
    outputs, target = torch.randn(2, 4, 3), (LABELS > 0).to(dtype)
    Categorical().check(outputs[0], target)
    want = Categorical().log_prob(outputs, target.long())
    assert torch.equal(Categorical().log_prob(outputs, target), want)
    predictive = Categorical().predictive(outputs)
    assert torch.equal(predictive.log_prob(target), predictive.log_prob(target.long()))


def test_a_logit_temperature_touches_the_predictive_alone():
    outputs = torch.randn(2, 4, 3)
    cold, plain = Categorical(logit_temperature=2.0), Categorical()
    assert torch.equal(cold.log_prob(outputs, LABELS), plain.log_prob(outputs, LABELS))
    want = F.softmax(plain.predictive(outputs).log_probs / 2, 1)
    torch.testing.assert_close(cold.predictive(outputs).probs, want)


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_an_impossible_temperature_is_refused(value):
    with pytest.raises(OptionError, match="logit_temperature"):
        Categorical(logit_temperature=value)


def test_bernoulli_is_torchs_summed_over_labels():
    outputs, target = torch.randn(3, 4, 5).double(), torch.randint(2, (4, 5))
    want = D.Bernoulli(logits=outputs).log_prob(target.double()).sum(-1)
    torch.testing.assert_close(Bernoulli().log_prob(outputs, target), want)
    torch.testing.assert_close(Bernoulli().log_prob(outputs, target.double()), want)


def test_gaussian_with_fixed_noise_is_torchs():
    outputs, target = torch.randn(3, 4, 2).double(), torch.randn(4, 2).double()
    want = D.Normal(outputs, 0.3).log_prob(target).sum(-1)
    torch.testing.assert_close(Gaussian(0.3).log_prob(outputs, target), want)


def test_gaussian_with_learnt_noise_is_torchs():
    likelihood = Gaussian("learnt")
    with torch.no_grad():
        likelihood.log_scale.fill_(0.7)
    outputs, target = torch.randn(3, 4, 1), torch.randn(4)
    want = D.Normal(outputs[..., 0], math.exp(0.7)).log_prob(target)
    torch.testing.assert_close(likelihood.log_prob(outputs, target).detach(), want)
    assert likelihood.predictive(outputs).scale.item() == pytest.approx(math.exp(0.7))
    assert not likelihood.predictive(outputs).scale.requires_grad


def test_gaussian_reads_noise_from_the_output():
    outputs, target = torch.randn(3, 4, 4), torch.randn(4, 2)
    loc, rho = outputs[..., :2], outputs[..., 2:]
    want = D.Normal(loc, F.softplus(rho)).log_prob(target).sum(-1)
    torch.testing.assert_close(
        Gaussian("output").log_prob(outputs, target), want, rtol=1e-3, atol=1e-4
    )
    assert Gaussian("output").predictive(outputs).loc.shape == (3, 4, 2)


def test_gaussian_takes_outputs_and_targets_without_dimension():
    outputs, target = torch.randn(3, 4), torch.randn(4)
    want = Gaussian(1.0).log_prob(outputs.unsqueeze(-1), target.unsqueeze(-1))
    assert torch.equal(Gaussian(1.0).log_prob(outputs, target), want)
    assert torch.equal(Gaussian(1.0).log_prob(outputs, target.unsqueeze(-1)), want)


@pytest.mark.parametrize("scale", [0, -1.0, math.inf, "learned"])
def test_an_impossible_noise_is_refused(scale):
    with pytest.raises(OptionError, match=r"expected a number above 0, 'learnt' or 'output'"):
        Gaussian(scale)


@pytest.mark.parametrize(
    ("likelihood", "output", "target", "error", "said"),
    [
        (Categorical(), (4, 3), torch.eye(3)[LABELS], ShapeError, "class indices, not one-hot"),
        (Categorical(), (4, 3), LABELS[:, None], ShapeError, r"targets \(4, 1\)"),
        (Categorical(), (4,), LABELS, ShapeError, r"outputs \(4,\)"),
        (Categorical(), (4, 3), LABELS.float(), DataError, "torch.float32; convert with"),
        (Categorical(), (4, 2), LABELS, DataError, "from 0 to 2, .* must lie in 0..1"),
        (Categorical(), (4, 3), LABELS - 1, DataError, "from -1 to 1"),
        (Categorical(), (4, 3, 2, 2), LABELS, ShapeError, r"\(4, 3, 2, 2\)"),
        (Bernoulli(), (4, 3), LABELS, ShapeError, "one shape"),
        (Bernoulli(), (4, 1), LABELS[:, None], DataError, "0 or 1, got values from 0 to 2"),
        (Gaussian(), (4, 1), LABELS, DataError, "torch.int64; use"),
        (Gaussian(), (4, 2), torch.randn(4), ShapeError, r"outputs \(4, 2\)"),
        (Gaussian("output"), (4, 3), torch.randn(4, 2), ShapeError, r"2 \* dims"),
        (Gaussian("output"), (4, 1), torch.randn(4), ShapeError, r"2 \* dims"),
        (Gaussian(), (4, 2, 2), torch.randn(4, 4), ShapeError, "expected outputs"),
    ],
)
def test_targets_that_do_not_fit_are_refused(likelihood, output, target, error, said):
    with pytest.raises(error, match=said):
        likelihood.check(torch.zeros(output), target)


@pytest.mark.parametrize(
    ("likelihood", "output", "target"),
    [
        (Categorical(), (4, 3), LABELS),
        (Categorical(), (4, 3, 2), torch.randint(3, (4, 2))),
        (Bernoulli(), (4, 3), torch.randint(2, (4, 3))),
        (Gaussian(), (4, 1), torch.randn(4)),
        (Gaussian(), (4,), torch.randn(4)),
        (Gaussian(), (4, 2), torch.randn(4, 2)),
        (Gaussian("output"), (4, 4), torch.randn(4, 2)),
    ],
)
def test_targets_that_fit_pass_and_have_a_log_density_per_example(likelihood, output, target):
    likelihood.check(torch.zeros(output), target)
    raw = torch.randn(5, *output)
    assert likelihood.log_prob(raw, target).shape == (5, 4)
    assert len(likelihood.predictive(raw).log_prob(target)) == 4


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_options_rebuild_it_and_tasks_find_it(name):
    likelihood = LIKELIHOODS[name]()
    assert type(likelihood)(**likelihood.options()).options() == likelihood.options()
    assert LIKELIHOOD_OF_TASK[likelihood.task] == name
    assert likelihood.predictive(torch.randn(2, 3, 2)).task == likelihood.task


def test_a_likelihood_is_found_by_name():
    own = Gaussian(2.0)
    assert resolve(own) is own
    assert isinstance(resolve("bernoulli"), Bernoulli)
    with pytest.raises(OptionError, match="'normal': expected one of categorical"):
        resolve("normal")
