import pytest
import torch

from bayesify.numerics.softmax import SHORT, entropy, log_softmax


@pytest.mark.parametrize("size", [1, 2, 10, SHORT - 1, SHORT, 200])
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_it_is_the_log_of_softmax(size, dim, generator):
    shape = [3, 4, 5]
    shape[dim] = size
    logits = 30 * torch.randn(shape, generator=generator)
    want = logits.double().log_softmax(dim)
    torch.testing.assert_close(log_softmax(logits, dim).double(), want, rtol=1e-6, atol=1e-5)
    assert log_softmax(logits.double(), dim).dtype == torch.float64


def test_next_to_certain_is_as_exact_as_torch():
    logits = torch.tensor([[90.0, 77.0, 78.0]])
    want = torch.log_softmax(logits, 1)
    assert (logits - logits.logsumexp(1, keepdim=True))[0, 0] != want[0, 0]  # rounded as logits are
    torch.testing.assert_close(log_softmax(logits, 1)[0, 0], want[0, 0], rtol=0, atol=1e-7)


def test_classes_that_are_ruled_out_stay_so_and_huge_logits_overflow_nothing():
    got = log_softmax(torch.tensor([1e38, -torch.inf, 0.0]), 0)
    assert got.tolist() == [0.0, -torch.inf, pytest.approx(-1e38)]


@pytest.mark.parametrize("order", [1, 2])
def test_its_derivatives_are_those_of_torch(order, generator):
    logits = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    check = torch.autograd.gradcheck if order == 1 else torch.autograd.gradgradcheck
    assert check(lambda z: log_softmax(z, 1), (logits,))


def test_entropy_is_that_of_the_probabilities(generator):
    probs = torch.rand(5, 3, generator=generator).softmax(0)
    probs[0] = 0.0
    want = torch.special.entr(probs).sum(0)
    torch.testing.assert_close(entropy(probs.log(), 0), want)
