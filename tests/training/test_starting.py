import copy
import json
import logging
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bayesify
from bayesify import METHODS, Bernoulli, Categorical, Gaussian, fit, matrices
from bayesify.core.errors import OptionError
from bayesify.training.method import AUTO
from bayesify.training.starting import EXAMPLES, phases_of
from zoo import with_dropout

X = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
SIGNAL = (X @ torch.tensor([1.0, -2.0, 0.5]))[:, None]
NUMBERS = SIGNAL.tanh() + 0.1 * torch.randn(200, 1, generator=torch.Generator().manual_seed(1))
CLASSES = (SIGNAL[:, 0] > 0).long() + (SIGNAL[:, 0] > 1).long()
LABELS = torch.cat([SIGNAL > 0, X[:, :1] > 0.5], 1).float()

TASKS = {
    "classes": (Categorical, 3, CLASSES),
    "numbers": (Gaussian, 1, NUMBERS),
    "labels": (Bernoulli, 2, LABELS),
}
STILL = {"factor": 1.0, "where": matrices}


def net(task: str, seed: int = 0) -> nn.Module:
    """With batch norm, whose statistics are those of a net that nobody has trained."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(3, 24), nn.BatchNorm1d(24), nn.Tanh(), nn.Linear(24, TASKS[task][1])
        )


def loss(task: str, outputs: Tensor, target: Tensor) -> Tensor:
    """As anybody would train without this library."""
    if task == "classes":
        return F.cross_entropy(outputs, target)
    if task == "labels":
        return F.binary_cross_entropy_with_logits(outputs, target)
    return F.mse_loss(outputs, target)


def trained(task: str, *, steps: int = 300, x: Tensor = X, y: Tensor | None = None) -> nn.Module:
    """Trained by torch alone, in train mode, and given to `fit` in eval mode."""
    model, y = net(task), TASKS[task][2] if y is None else y
    descent = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        descent.zero_grad()
        loss(task, model(x), y).backward()
        descent.step()
    return model.eval()


def phases(posterior: bayesify.Posterior) -> set[str]:
    return {each["phase"] for each in posterior.record.history}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(each, b[name]) for name, each in a.items())


@pytest.mark.parametrize("task", TASKS)
def test_a_fresh_network_is_trained_by_map_with_the_very_result_of_asking_for_it(task):
    likelihood, _, y = TASKS[task]
    auto, asked = (
        fit(net(task), (X, y), bayesify.STF(epochs=1, pretrain=first), likelihood=likelihood())
        for first in (AUTO, bayesify.MAP())
    )
    assert bayesify.STF().pretrain == AUTO
    assert phases(auto) == {"MAP", "STF"}
    assert auto.record.start["pretrained"]
    assert auto.record.start["noise"] is None
    assert same(auto.q.state_dict(), asked.q.state_dict())
    assert same(auto.base(), asked.base())
    assert same(auto.likelihood.state_dict(), asked.likelihood.state_dict())


@pytest.mark.parametrize("task", TASKS)
def test_a_trained_network_is_kept_to_the_bit_and_the_record_says_why(task, caplog):
    """Errors of network and constant, by hand: entropies of frequencies, standard deviation."""
    likelihood, _, y = TASKS[task]
    model = trained(task)
    with caplog.at_level(logging.INFO, "bayesify"):
        method = bayesify.DiagonalLaplace(**STILL)
        posterior = fit(model, (X, y), method, likelihood=likelihood())
    assert phases(posterior) == {"DiagonalLaplace"}
    for name, each in posterior.point().items():
        assert torch.equal(each, model.state_dict()[name])
    if task == "classes":
        share = torch.bincount(y) / len(y)
        constant, per_example = -(share * share.log()).sum().item(), 1
    elif task == "labels":
        p = y.mean(0)
        constant = -(p * p.log() + (1 - p) * (1 - p).log()).sum().item()
        per_example = 2
    else:
        constant, per_example = y.std(correction=0).item(), 1
    with torch.no_grad():
        own = loss(task, model(X), y).item() * per_example
    start = posterior.record.start
    assert start["network"] == pytest.approx(math.sqrt(own) if task == "numbers" else own, rel=1e-4)
    assert start["constant"] == pytest.approx(constant, rel=1e-4)
    assert not start["pretrained"]
    assert start["noise"] == ("training" if task == "numbers" else None)
    assert "kept as it is" in start["said"]
    assert start["said"].startswith(caplog.messages[0])
    json.dumps(start)


def test_members_around_a_trained_network_are_not_preceded_by_training_it_again():
    """With its default, Bella trained it for 60 passes first, and forgot what it knew."""
    few = torch.arange(60)
    model = trained("classes")
    posterior = fit(model, (X[few], CLASSES[few]), bayesify.Bella(members=5, rank=1, epochs=1))
    assert phases(posterior) == {"Bella"}
    before, after = (
        -Categorical().predictive(outputs).log_prob(CLASSES).mean().item()
        for outputs in (model(X)[None].detach(), posterior.outputs(X).detach())
    )
    assert after < before + 0.1


def test_what_is_asked_for_is_done():
    model = trained("classes")
    again = bayesify.DiagonalLaplace(pretrain=bayesify.MAP(epochs=1), **STILL)
    assert phases(fit(model, (X, CLASSES), again)) == {"MAP", "DiagonalLaplace"}
    as_it_is = fit(net("classes"), (X, CLASSES), bayesify.DiagonalLaplace(pretrain=None, **STILL))
    assert phases(as_it_is) == {"DiagonalLaplace"}
    assert as_it_is.record.start == {
        "pretrained": False,
        "said": "",
        **dict.fromkeys(("network", "constant", "error", "noise")),
    }


def test_a_new_head_on_a_trained_trunk_is_trained():
    model = trained("classes")
    model[-1] = nn.Linear(24, 3)
    posterior = fit(model, (X, CLASSES), bayesify.STF(epochs=1))
    assert posterior.record.start["pretrained"]
    assert "MAP trains the network first" in posterior.record.start["said"]


def test_a_network_that_is_better_than_a_constant_but_not_far_is_trained_with_a_warning(caplog):
    """Trained on noise beside the signal: its error is .6 of a constant's at best."""
    noise = 1.2 * NUMBERS.std() * torch.randn(200, 1)
    y = NUMBERS + noise
    model = trained("numbers", steps=40, y=y)
    with caplog.at_level(logging.INFO, "bayesify"):
        posterior = fit(with_dropout(model), (X, y), bayesify.MCDropout(), likelihood="gaussian")
    start = posterior.record.start
    assert 0.5 < start["network"] / start["constant"] < 0.8
    assert phases(posterior) == {"MAP", "MCDropout"}
    assert [each.levelname for each in caplog.records] == ["WARNING"]
    assert "Pass pretrain=None to keep it" in caplog.text


def test_data_kept_for_a_certificate_need_a_network_that_is_trained_here():
    method = bayesify.STF(epochs=1, certify_split=0.5)
    posterior = fit(trained("classes"), (X, CLASSES), method)
    assert phases(posterior) == {"MAP", "STF"}
    assert "certify_split" in posterior.record.start["said"]


class Unknowing(Categorical):
    """A likelihood of one's own, which knows no best constant."""

    def against_constant(self, batches):
        return None


def test_where_a_constant_is_not_known_the_network_is_trained():
    posterior = fit(
        trained("classes"), (X, CLASSES), bayesify.STF(epochs=1), likelihood=Unknowing()
    )
    assert phases(posterior) == {"MAP", "STF"}
    assert "cannot tell" in posterior.record.start["said"]


def test_no_more_examples_are_looked_at_than_it_takes():
    seen = []
    model = trained("classes")
    model.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    many = torch.arange(3000) % 200
    data = X[many], CLASSES[many]
    fit(model, data, bayesify.DiagonalLaplace(examples=8, **STILL), batch_size=100)
    looks = [each for each in seen if each == 100]
    assert len(looks) <= EXAMPLES // 100 + 4  # the check, the rehearsal, and the end


def test_the_last_of_nested_methods_decides():
    outer = bayesify.WeightSharing(pretrain=bayesify.STF(), codes=4)
    assert [type(each).__name__ for each in phases_of(outer)] == ["WeightSharing", "STF"]
    with pytest.raises(OptionError, match="got 'autos'"):
        phases_of(bayesify.STF(pretrain="autos"))


HELD_OUT = torch.randn(1000, 3, generator=torch.Generator().manual_seed(5))
AT_HELD_OUT = (HELD_OUT @ torch.tensor([[1.0], [-2.0], [0.5]])).tanh() + 0.1 * torch.randn(
    1000, 1, generator=torch.Generator().manual_seed(6)
)
DRAW_ANEW = {"ensemble", "svgd"}
"""They begin at networks of their own, of which nothing is known yet."""


@pytest.fixture(scope="module")
def regression() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 24), nn.Tanh(), nn.Linear(24, 1))
    descent = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(300):
        descent.zero_grad()
        F.mse_loss(model(X), NUMBERS).backward()
        descent.step()
    return model.eval()


@pytest.mark.parametrize("name", sorted(METHODS.keys() - DRAW_ANEW))
def test_the_noise_of_a_trained_network_is_that_of_its_residuals(name, regression):
    """Truth: the root mean square of what the network leaves on examples held out of everything.

    Trained by squared errors, it brings no noise of its own; targets have .1, and not 1.
    """
    part, judge = slice(0, 500), slice(500, 1000)
    changes = {"pretrain": None, "factor": 1.0, "epochs": 5, "burn_in": 2, "min_steps": 200}
    changes |= {"bali": {}, "weight-sharing": {"epochs": 0}}.get(name, {"members": 2})
    if name == "mc-dropout":
        regression = with_dropout(copy.deepcopy(regression)).eval()
        regression[-1].drop.p = 0.02  # little, since it was not trained with it
    known = METHODS[name].__dataclass_fields__
    method = METHODS[name](**{key: each for key, each in changes.items() if key in known})
    held_out = HELD_OUT[part], AT_HELD_OUT[part]
    posterior = fit(
        regression, (X, NUMBERS), method, likelihood=Gaussian(), validation=held_out, batch_size=20
    )
    with torch.no_grad():
        residual = (regression(HELD_OUT[judge]) - AT_HELD_OUT[judge]).square().mean().sqrt().item()
    predicted = posterior.predict(HELD_OUT[judge])
    assert predicted.aleatoric.mean().sqrt().item() == pytest.approx(residual, rel=0.2)
    assert (predicted.mean - AT_HELD_OUT[judge]).square().mean().sqrt().item() < 1.2 * residual
    assert posterior.record.start["noise"] == "validation"


def test_without_validation_examples_training_residuals_are_taken_and_said(regression):
    posterior = fit(
        regression, (X, NUMBERS), bayesify.Laplace(pretrain=None), likelihood="gaussian"
    )
    with torch.no_grad():
        residual = (regression(X) - NUMBERS).square().mean().sqrt().log()
    torch.testing.assert_close(posterior.likelihood.log_scale.detach(), residual)
    assert posterior.record.start["noise"] == "training"
    assert "residuals on training examples" in posterior.record.start["said"]


@pytest.mark.parametrize("change", ["fixed", "trained before", "held"])
def test_a_noise_that_is_somebodys_choice_stays(change, regression):
    likelihood = Gaussian(0.5) if change == "fixed" else Gaussian()
    if change == "trained before":
        likelihood.log_scale.data.fill_(-0.3)
    if change == "held":
        likelihood.log_scale.requires_grad_(False)
    before = likelihood.sample(torch.zeros(1, 9, 1), generator=torch.Generator().manual_seed(0))
    method = bayesify.Laplace(pretrain=None)
    posterior = fit(regression, (X, NUMBERS), method, likelihood=likelihood)
    after = posterior.likelihood.sample(
        torch.zeros(1, 9, 1), generator=torch.Generator().manual_seed(0)
    )
    assert torch.equal(before, after)
    assert posterior.record.start["noise"] is None


@pytest.mark.parametrize("name", sorted(DRAW_ANEW))
def test_members_that_begin_anew_begin_with_the_noise_as_given(name, regression):
    with_one_epoch = METHODS[name](members=2, epochs=1, lr=1e-9)
    posterior = fit(regression, (X, NUMBERS), with_one_epoch, likelihood="gaussian")
    assert posterior.likelihood.log_scale.item() == pytest.approx(0.0, abs=1e-5)
