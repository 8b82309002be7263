import math

import pytest
import torch
from torch import distributions as D
from torch.nn import functional as F

from bayesify.core.errors import OptionError
from bayesify.likelihoods import Categorical

LABELS = torch.tensor([0, 2, 1, 2])
MANY = 100_000


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


def test_draws_have_the_probabilities(generator):
    logits = torch.tensor([[[1.0, -1.0, 0.5, -math.inf]], [[-math.inf, 40.0, -2.0, 0.0]]])
    drawn = Categorical().sample(logits.expand(2, MANY, 4), generator=generator)
    assert drawn.dtype == torch.int64
    share = F.one_hot(drawn, 4).double().mean(1)
    want = F.softmax(logits[:, 0].double(), 1)
    error = (want * (1 - want) / MANY).sqrt()
    assert ((share - want).abs() <= 4 * error + 1e-12).all()


def test_every_position_is_drawn_by_itself(generator):
    logits = torch.randn(2, 1, 3, 2, 2, generator=generator)
    drawn = Categorical().sample(logits.expand(2, MANY, 3, 2, 2), generator=generator)
    assert drawn.shape == (2, MANY, 2, 2)
    share = F.one_hot(drawn, 3).double().mean(1).movedim(-1, 1)
    want = F.softmax(logits[:, 0], 1).double()
    torch.testing.assert_close(share, want, rtol=0, atol=0.008)
    together = (drawn[0, :, 0, 0].eq(0) & drawn[0, :, 1, 1].eq(1)).double().mean()
    apart = want[0, 0, 0, 0] * want[0, 1, 1, 1]
    torch.testing.assert_close(together, apart, rtol=0, atol=0.008)


def test_half_precision_does_not_bend_the_draws(generator):
    logits = torch.zeros(1, 5_000, 1000, dtype=torch.bfloat16)
    drawn = Categorical().sample(logits, generator=generator)
    assert drawn.double().mean().item() == pytest.approx(499.5, abs=4 * 289 / 5_000**0.5)
    assert len(drawn.unique()) > 950  # bfloat16 has 256 numbers in [0.5, 1)


def test_scores_of_draws_have_the_fisher_information(generator):
    logits = torch.tensor([1.0, -1.0, 0.5]).double()
    outputs = logits.expand(2, MANY, 3).clone().requires_grad_()
    drawn = Categorical().sample(outputs, generator=generator)
    log_prob = Categorical().log_prob(outputs.flatten(0, 1)[None], drawn.flatten(0, 1))
    (scores,) = torch.autograd.grad(log_prob.sum(), outputs)
    got = torch.einsum("sbi,sbj->ij", scores, scores) / (2 * MANY)
    probs = F.softmax(logits, 0)
    torch.testing.assert_close(got, probs.diag() - probs.outer(probs), rtol=0, atol=0.004)
