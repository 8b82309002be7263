import pytest
import torch
from torch import nn

from bayesify import BALI, MAP, SVGD, SWAG, Bella, Ensemble, FineTunedEnsemble, fit
from bayesify.core.modes import attention_for_vmap, evaluating, seeded, train_


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


def frozen_norms() -> nn.Sequential:
    """A network whose first batch norm its user froze, and the second did not."""
    net = nn.Sequential(
        nn.Linear(4, 6),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Linear(6, 6),
        nn.BatchNorm1d(6),
        nn.Dropout(0.5),
        nn.Linear(6, 3),
    )
    with torch.no_grad():
        for _ in range(5):
            net(3 + torch.randn(30, 4))
    net[1].eval().requires_grad_(False)
    return net


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize(
    "method",
    [
        MAP(epochs=2),
        Ensemble(members=2, epochs=1),
        SVGD(members=2, epochs=1),
        SWAG(pretrain=MAP(epochs=1), burn_in=1, epochs=3),
        BALI(pretrain=None, epochs=1),
        FineTunedEnsemble(pretrain=MAP(epochs=1), members=2, epochs=1, batch_norm="moving"),
        Bella(pretrain=None, members=2, epochs=1, batch_norm="moving"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_batch_norm_that_its_user_froze_keeps_its_statistics(method, mode):
    net = frozen_norms()
    if not mode:
        net.eval()  # as a trained network is handed over
    before = {n: each.clone() for n, each in net.named_buffers()}
    posterior = fit(net, (torch.randn(60, 4), torch.arange(60) % 3), method)
    own = posterior.q.point()
    now = {n: own.get(n, each) for n, each in posterior.model.named_buffers()}
    for name, each in before.items():
        assert torch.equal(now[name], each) == name.startswith("1."), name


def test_what_a_user_took_out_of_train_mode_stays_out():
    net = frozen_norms()
    net[5].eval()
    assert [each.training for each in train_(net)] == [True, False, True, True, True, False, True]
    net.eval()
    assert [each.training for each in train_(net)] == [True, False, *5 * [True]]
