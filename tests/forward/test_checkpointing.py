import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from bayesify import (
    MAP,
    Categorical,
    Ensemble,
    Laplace,
    MeanFieldVI,
    WeightPosterior,
    all_weights,
    fit,
    last_layer,
)
from bayesify.core.errors import UnsupportedModelError
from bayesify.distributions.mean_field import MeanField
from bayesify.forward import outputs as forward
from bayesify.forward.checkpointing import check_graph, no_checkpointing


class Checkpointed(nn.Module):
    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.first, self.head, self.reentrant = nn.Linear(4, 8), nn.Linear(8, 3), reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = x.requires_grad_() if torch.is_grad_enabled() else x
        return self.head(checkpoint(self.first, x, use_reentrant=self.reentrant))


X, Y = torch.randn(32, 4), torch.randint(3, (32,))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_fit_refuses_before_its_first_step_is_made(reentrant):
    for method in (MAP(epochs=1), MeanFieldVI(pretrain=None, epochs=1)):
        with pytest.raises(UnsupportedModelError, match="gradient checkpointing"):
            fit(Checkpointed(reentrant=reentrant), (X, Y), method, vectorize=False)


def test_an_own_loop_is_told_too():
    model = Checkpointed(reentrant=False)
    q = MeanField.around(model, where=last_layer, example=X)
    for run in (forward.outputs, forward.local_outputs):
        with pytest.raises(UnsupportedModelError, match="gradient checkpointing"):
            run(model, q, X)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [True, False])
def test_predictions_do_not_mind(reentrant):
    model = Checkpointed(reentrant=reentrant)
    q = MeanField.around(model)
    posterior = WeightPosterior(model, q, Categorical(), vectorize=not reentrant)
    assert posterior.predict(X, num_samples=3).probs.shape == (32, 3)


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="another"), no_checkpointing():
        raise RuntimeError("another")


def test_an_ordinary_graph_passes():
    weight = torch.ones(2, requires_grad=True)
    check_graph((weight * weight).sum() + weight.sum())
    check_graph(torch.ones(()))


@pytest.mark.parametrize(
    "method", [Laplace(pretrain=None, where=all_weights), Ensemble(members=2, epochs=1)]
)
def test_a_hook_that_asks_for_gradients_of_activations_is_told(method):
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    net[0].register_forward_hook(lambda module, args, output: output.requires_grad_(True))
    with pytest.raises(UnsupportedModelError, match=r"calls `requires_grad_\(\)` on its activa"):
        fit(net, (X, Y), method)
