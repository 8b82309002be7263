import math

import pytest
import torch
from torch import Tensor, nn

from bayesify import METHODS, DivergenceError
from bayesify.training.loop import GradientRun, adam
from bayesify.training.method import Method


def run_of(loss, weight: Tensor, *, steps: int = 10, lr: float = 0.1) -> GradientRun:
    return GradientRun(
        lambda inputs, target: {"loss": loss(weight, inputs), "extra": weight.detach().sum()},
        torch.optim.SGD([weight], lr=lr),
        epochs=1,
        steps_per_epoch=steps,
        posterior=lambda: None,
    )


def test_a_step_descends_and_logs():
    weight = nn.Parameter(torch.tensor([2.0]))
    log = run_of(lambda w, x: (w * x).sum(), weight).step(torch.tensor([3.0]), torch.zeros(1))
    assert log == {"loss": 6.0, "extra": 2.0}
    assert weight.item() == pytest.approx(2.0 - 0.1 * 3.0)


def test_the_rate_follows_a_cosine_to_zero():
    weight = nn.Parameter(torch.tensor([0.0]))
    run, moves = run_of(lambda w, x: w.sum(), weight, steps=4), []
    for _ in range(4):
        before = weight.item()
        run.step(torch.ones(1), torch.ones(1))
        moves.append(before - weight.item())
    want = [0.1 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert moves == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_stops_before_it_does_harm(bad):
    weight = nn.Parameter(torch.tensor([2.0]))
    run = run_of(lambda w, x: (w * x).sum(), weight)
    run.step(torch.tensor([3.0]), torch.zeros(1))
    kept = weight.item()
    with pytest.raises(DivergenceError, match=r"diverged at step 1: .* last finite one was 6\.0"):
        run.step(torch.tensor([bad]), torch.zeros(1))
    assert weight.item() == kept


def test_a_gradient_that_is_not_finite_stops_before_it_does_harm():
    weight = nn.Parameter(torch.tensor([0.0]))
    run = run_of(lambda w, x: (w * x).sqrt().sum() + x.sum(), weight)
    with pytest.raises(DivergenceError, match=r"step 0: the loss is 1\.0, but its gradient is not"):
        run.step(torch.tensor([1.0]), torch.zeros(1))
    assert weight.item() == 0.0


def test_decay_is_the_gradient_of_the_log_prior():
    num_data, scale = 20, 0.5
    start = torch.tensor([3.0, -1.0])
    steps = {}
    for name, decay in (("decay", 1 / (num_data * scale**2)), ("prior", 0.0)):
        weight = nn.Parameter(start.clone())
        optimiser = adam([{"params": [weight], "lr": 0.1}], weight_decay=decay)
        for _ in range(5):
            optimiser.zero_grad()
            loss = weight.sum()
            if name == "prior":
                prior = torch.distributions.Normal(0.0, scale)
                loss = loss - prior.log_prob(weight).sum() / num_data
            loss.backward()
            optimiser.step()
        steps[name] = weight.detach()
    torch.testing.assert_close(steps["decay"], steps["prior"])


def test_methods_are_told_by_their_shape():
    assert all(isinstance(kind(), Method) for kind in METHODS.values())
    assert not isinstance(nn.Linear(1, 1), Method)
