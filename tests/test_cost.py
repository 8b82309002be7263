import sys
import time

import pytest
import torch

from bayesify import CostMeter


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
    monkeypatch.setattr("bayesify.cost.CLEAR_REFS", "/nowhere/at/all")
    with CostMeter() as cost:
        pass
    assert cost.peak_memory_bytes is None
    assert cost.seconds >= 0


def test_time_is_kept_when_the_work_fails():
    cost = CostMeter()
    with pytest.raises(ZeroDivisionError), cost:
        _ = 1 / 0
    assert cost.seconds > 0
