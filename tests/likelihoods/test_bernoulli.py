import torch
from torch import distributions as D

from bayesify.likelihoods import Bernoulli

MANY = 100_000


def test_bernoulli_is_torchs_summed_over_labels():
    outputs, target = torch.randn(3, 4, 5).double(), torch.randint(2, (4, 5))
    want = D.Bernoulli(logits=outputs).log_prob(target.double()).sum(-1)
    torch.testing.assert_close(Bernoulli().log_prob(outputs, target), want)
    torch.testing.assert_close(Bernoulli().log_prob(outputs, target.double()), want)


def test_draws_have_the_probabilities_and_are_independent(generator):
    logits = torch.tensor([[[2.0, -1.0, -200.0]], [[0.0, 200.0, 0.3]]])
    drawn = Bernoulli().sample(logits.expand(2, MANY, 3), generator=generator)
    assert ((drawn == 0) | (drawn == 1)).all()
    assert drawn.dtype == torch.float32
    want = torch.sigmoid(logits[:, 0])
    torch.testing.assert_close(drawn.mean(1), want, rtol=0, atol=0.007)
    both = (drawn[..., 0] * drawn[..., 1]).mean(1)
    torch.testing.assert_close(both, want[:, 0] * want[:, 1], rtol=0, atol=0.007)


def test_scores_of_draws_have_the_fisher_information(generator):
    logits = torch.tensor([2.0, -1.0, 0.3]).double()
    outputs = logits.expand(2, MANY, 3).clone().requires_grad_()
    drawn = Bernoulli().sample(outputs, generator=generator)
    log_prob = Bernoulli().log_prob(outputs.flatten(0, 1)[None], drawn.flatten(0, 1))
    (scores,) = torch.autograd.grad(log_prob.sum(), outputs)
    got = torch.einsum("sbi,sbj->ij", scores, scores) / (2 * MANY)
    probs = torch.sigmoid(logits)
    torch.testing.assert_close(got, (probs * (1 - probs)).diag(), rtol=0, atol=0.004)
