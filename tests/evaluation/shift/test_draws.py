import numpy as np
import pytest
import torch

from bayesify.evaluation.shift.draws import Draws

SHAPE = torch.Size((5, 1, 3, 3))


def test_an_image_keeps_its_numbers_wherever_the_batch_is_cut():
    whole = Draws(0, "a", 1)
    for start, stop in ((0, 2), (2, 5), (4, 5)):
        part, shape = Draws(0, "a", 1, start), torch.Size((stop - start, *SHAPE[1:]))
        assert torch.equal(part.normal(shape), whole.normal(SHAPE)[start:stop])
        assert torch.equal(part.uniform(shape), whole.uniform(SHAPE)[start:stop])
        rate = torch.arange(45.0).reshape(SHAPE)
        assert torch.equal(part.poisson(rate[start:stop]), whole.poisson(rate)[start:stop])


def test_seed_name_severity_and_position_each_give_other_numbers():
    streams = [Draws(*each) for each in ((0, "a", 1), (1, "a", 1), (0, "b", 1), (0, "a", 2))]
    numbers = torch.cat([each.uniform(torch.Size((50, 100))) for each in streams]).double()
    correlation = torch.corrcoef(numbers) - torch.eye(200, dtype=torch.float64)
    assert correlation.abs().max() < 0.55  # 0.1 is one standard error


def test_numbers_have_the_law_they_are_named_after():
    draws, shape = Draws(3, "a", 1), torch.Size((100, 1000))
    normal, uniform = draws.normal(shape), draws.uniform(shape)
    counts = draws.poisson(torch.full(shape, 4.0))
    for numbers, mean, variance in ((normal, 0, 1), (uniform, 0.5, 1 / 12), (counts, 4, 4)):
        assert numbers.dtype == torch.float32
        assert numbers.mean().item() == pytest.approx(mean, abs=4 * (variance / 1e5) ** 0.5)
        assert numbers.var().item() == pytest.approx(variance, rel=0.03)
    assert 0 <= uniform.min() <= uniform.max() < 1


def test_negative_and_huge_seeds_are_seeds_too():
    some = [Draws(seed, "a", 1).uniform(SHAPE) for seed in (-1, 0, 2**63)]
    assert len(np.unique(torch.stack(some).numpy())) == 3 * SHAPE.numel()
