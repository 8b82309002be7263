import pytest
import torch
from torch import nn

from bayesify.modes import attention_for_vmap, evaluating, seeded


def test_evaluating_gives_each_module_its_mode_back():
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Sequential(nn.BatchNorm1d(2)))
    model[1].eval()
    before = [module.training for module in model.modules()]
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == before


def test_modes_come_back_after_an_error():
    model = nn.Linear(2, 2)
    with pytest.raises(ZeroDivisionError), evaluating(model):
        _ = 1 / 0
    assert model.training
    with pytest.raises(ZeroDivisionError), attention_for_vmap():
        _ = 1 / 0
    assert torch.backends.mha.get_fastpath_enabled()


def test_attention_is_plain_inside():
    with attention_for_vmap():
        assert not torch.backends.mha.get_fastpath_enabled()
        assert not torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_seed_holds_inside_only():
    model = nn.Linear(2, 2)
    before = torch.get_rng_state()
    draws = []
    for _ in range(2):
        with seeded(3, "fit", model):
            draws.append(torch.rand(2))
    assert torch.equal(*draws)
    assert torch.equal(torch.get_rng_state(), before)
