import torch

from bayesify.numerics.noise import noise, single_or_better, standard_normal, standard_normal_rows


def test_noise_has_the_shape_and_type_it_is_asked_for(generator):
    drawn = standard_normal(torch.ones(2, 3, dtype=torch.bfloat16), generator)
    assert (drawn.shape, drawn.dtype) == ((2, 3), torch.bfloat16)


def test_one_seed_gives_one_noise_and_other_devices_get_it_too():
    like = torch.zeros(2, 3)
    first, again = (noise(torch.rand, like, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, again)
    moved = standard_normal(like.to("meta"), torch.Generator())
    assert (moved.device.type, moved.shape) == ("meta", like.shape)


def test_the_first_rows_of_more_are_those_of_fewer():
    more, fewer = (
        standard_normal_rows(n, 4, torch.zeros(1), torch.Generator().manual_seed(1)) for n in (5, 2)
    )
    assert more.shape == (5, 4)
    assert torch.equal(more[:2], fewer)


def test_half_types_become_single():
    assert single_or_better(torch.bfloat16) == torch.float32
    assert single_or_better(torch.float64) == torch.float64
