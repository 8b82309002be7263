import sys
import time

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bayesify import CostMeter
from bayesify.training.cost import FlopCounter


def test_seconds_are_those_of_the_clock():
    with CostMeter() as cost:
        time.sleep(0.05)
    assert 0.05 <= cost.seconds < 1.0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux tells, others do not")
def test_the_peak_is_what_the_work_added():
    with CostMeter() as small:
        torch.ones(10)
    with CostMeter() as large:
        block = torch.ones(25_000_000)
        del block
    if large.peak_memory_bytes is None:
        pytest.skip("the system does not tell")
    assert large.peak_memory_bytes >= 95_000_000 + small.peak_memory_bytes - 20_000_000
    assert small.peak_memory_bytes < 20_000_000


def test_a_system_that_does_not_tell_gives_none(monkeypatch):
    monkeypatch.setattr("bayesify.training.cost.CLEAR_REFS", "/nowhere/at/all")
    with CostMeter() as cost:
        pass
    assert cost.peak_memory_bytes is None
    assert cost.seconds >= 0


def test_time_is_kept_when_the_work_fails():
    cost = CostMeter()
    with pytest.raises(ZeroDivisionError), cost:
        _ = 1 / 0
    assert cost.seconds > 0


def test_operations_are_those_that_torch_counts():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    x = torch.randn(2, 3, 8, 8)
    attention = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    with FlopCounter() as ours, FlopCounterMode(display=False) as theirs:
        net(x).sum().backward()
        attention(torch.randn(2, 5, 8)).sum().backward()
    assert ours.total == theirs.get_total_flops() > 0


def test_gradients_of_inputs_can_be_counted():
    """Forward and backward of 2 x 3 by 3 x 4, one product each."""
    weight, x = torch.randn(4, 3), torch.randn(2, 3, requires_grad=True)
    with FlopCounter() as counter:
        torch.autograd.grad(nn.functional.linear(x, weight).sum(), x)
    assert counter.total == 2 * (2 * 2 * 3 * 4)
