"""What every method must do, over `METHODS`: a later method is tested by being listed there."""

import copy
import dataclasses
import json
import math
import random
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import bayesify
from bayesify import METHODS, DropoutPosterior, Posterior, WeightPosterior, fit
from bayesify.core.errors import OptionError, UnsupportedModelError
from bayesify.core.options import from_json, to_json
from bayesify.likelihoods import Bernoulli, Categorical, Gaussian
from bayesify.training.method import AUTO, Method
from bayesify.weights.named import buffers_of, weights_of
from zoo import CLASSES, NETS, Net, row, with_dropout

NAMES = list(METHODS)
POINT_ESTIMATES = {"map"}
SMALL = {
    "epochs": 2,
    "burn_in": 0,
    "members": 3,
    "min_steps": 1,
    "rest": "all",
    "factor": 1.0,
    "average": "samples",  # the other rule gives one output in place of S
}
WITH_DROPOUT = {"mc-dropout"}
"""Their nets get a dropout layer, a sample is a draw of its mask, and they learn nothing beyond the
pretraining; samples run one by one.
"""
OVER_WEIGHTS = [name for name in NAMES if name not in WITH_DROPOUT]
ONE_NOISE = {"laplace"}
"""They take class labels, and numbers whose noise is one number; others are refused."""
OWN_OPTIONS = {("laplace", "tied"): {"structure": "full"}}
"""By method and net: Kronecker factors are of a layer that shares no weight."""
VECTORIZABLE = [name for name, net in NETS.items() if net.vectorizes]


def small(method: Method, **changes: Any) -> Any:
    """The same method, with a few epochs and members, in its pretraining too."""
    wanted = SMALL | changes
    new: dict[str, Any] = {}
    for field in fields(method):  # type: ignore[arg-type]
        value = getattr(method, field.name)
        if field.name in wanted:
            new[field.name] = wanted[field.name]
        elif value == AUTO:
            new[field.name] = small(bayesify.MAP(), **changes)
        elif dataclasses.is_dataclass(value) and isinstance(value, Method):
            new[field.name] = small(value, **changes)
    return replace(method, **new)  # type: ignore[type-var]


def suited(name: str, model: nn.Module | Net, seed: int = 0) -> nn.Module:
    """The model as the method needs it."""
    model = model.model(seed) if isinstance(model, Net) else model
    return with_dropout(model) if name in WITH_DROPOUT else model


def fitted(name: str, net: str = "mlp", *, seed: int = 0, **changes: Any) -> Posterior:
    model, data = suited(name, NETS[net]), NETS[net].data()
    changes = OWN_OPTIONS.get((name, net), {}) | changes
    return fit(model, data, small(METHODS[name](), **changes), seed=seed, batch_size=16)


@pytest.fixture(scope="module")
def shared() -> dict[tuple[str, str], Posterior]:
    """Posteriors that several tests read and none changes."""
    return {}


@pytest.fixture
def posterior_of(shared):
    def get(name: str, net: str = "mlp") -> Posterior:
        if (name, net) not in shared:
            shared[name, net] = fitted(name, net)
        return shared[name, net]

    return get


def state(posterior: Posterior) -> dict[str, Tensor]:
    if isinstance(posterior, DropoutPosterior):
        return posterior.point()
    assert isinstance(posterior, WeightPosterior)
    return posterior.q.state_dict() | {f"base.{n}": e for n, e in posterior.base().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(each, b[name]) for name, each in a.items())


def everything_about(module: nn.Module) -> list[Any]:
    return [
        copy.deepcopy(module.state_dict()),
        [(name, each.requires_grad, each.grad) for name, each in module.named_parameters()],
        [id(each) for each in (*module.parameters(), *module.buffers())],
        [(name, type(each), each.training) for name, each in module.named_modules()],
        [(list(m._forward_hooks), list(m._forward_pre_hooks)) for m in module.modules()],
        [sorted(vars(each)) for each in module.modules()],
    ]


@pytest.mark.parametrize("name", NAMES)
def test_the_users_model_and_likelihood_are_bitwise_what_they_were(name):
    model, likelihood = suited(name, NETS["cnn"]), Categorical()
    model[0].weight.requires_grad_(False)
    model[1].eval()
    model.register_forward_hook(lambda module, args, output: None)
    before, noted = everything_about(model), everything_about(likelihood)
    posterior = fit(model, NETS["cnn"].data(), small(METHODS[name]()), likelihood=likelihood)
    posterior.predict(NETS["cnn"].inputs(3), num_samples=2)
    for was, each in ((before, everything_about(model)), (noted, everything_about(likelihood))):
        assert equal(was[0], each[0])
        assert was[1:] == each[1:]


@pytest.mark.parametrize("name", NAMES)
def test_a_learnt_noise_scale_of_the_users_likelihood_is_not_moved(name):
    likelihood, model = Gaussian("learnt"), suited(name, nn.Linear(4, 1))
    posterior = fit(
        model, (torch.randn(32, 4), torch.randn(32)), small(METHODS[name]()), likelihood=likelihood
    )
    assert likelihood.log_scale.item() == 0.0
    assert posterior.likelihood.log_scale.item() != 0.0


@pytest.mark.parametrize("net", ["cnn", "lstm"])
@pytest.mark.parametrize("name", NAMES)
def test_a_seed_decides_everything_and_global_generators_rest(name, net):
    torch.manual_seed(99)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    first = fitted(name, net, seed=3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])
    torch.manual_seed(100)
    again, other = fitted(name, net, seed=3), fitted(name, net, seed=4)
    assert equal(state(first), state(again))
    assert not equal(state(first), state(other))
    x = NETS[net].inputs(4)
    assert torch.equal(first.outputs(x), again.outputs(x))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", NAMES)
def test_outputs_have_samples_batch_and_classes(name, net, posterior_of):
    posterior, x = posterior_of(name, net), NETS[net].inputs(5)
    out = posterior.outputs(x, num_samples=4)
    assert out.shape[1:] == (5, CLASSES)
    assert (len(out) == 1) == (name in POINT_ESTIMATES)
    assert torch.isfinite(out).all()
    predictive = posterior.predict(x, num_samples=4)
    torch.testing.assert_close(predictive.probs.sum(1), torch.ones(5))
    assert (predictive.mutual_information() >= 0).all()


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", NAMES)
def test_samples_differ(name, net, posterior_of):
    out = posterior_of(name, net).outputs(NETS[net].inputs(5), num_samples=4)
    if name in WITH_DROPOUT:  # two masks of so few units may well be equal
        assert len(out.unique(dim=0)) > 1
        return
    for i in range(len(out)):
        for j in range(i):
            assert not torch.allclose(out[i], out[j], atol=1e-6)


@pytest.mark.parametrize("net", VECTORIZABLE)
@pytest.mark.parametrize("name", OVER_WEIGHTS)
def test_all_at_once_is_one_after_the_other_and_in_chunks(name, net, posterior_of):
    posterior, x = posterior_of(name, net), NETS[net].inputs(5)
    assert posterior.vectorize
    loop = copy.copy(posterior)
    loop.vectorize = False
    whole = posterior.outputs(x, num_samples=10, chunk_size=10)
    torch.testing.assert_close(whole, loop.outputs(x, num_samples=10), rtol=1e-4, atol=1e-5)
    for size in (1, 3, None):
        part = posterior.outputs(x, num_samples=10, chunk_size=size)
        torch.testing.assert_close(whole, part, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OVER_WEIGHTS)
def test_recurrent_nets_take_the_loop_visibly(name, posterior_of):
    posterior = posterior_of(name, "lstm")
    assert not posterior.vectorize
    assert "one by one" in repr(posterior)
    assert "at once" in repr(posterior_of(name, "mlp"))


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_predicted_the_same_alone_and_in_company(name, net, posterior_of):
    posterior, x = posterior_of(name, net), NETS[net].inputs(5)
    together = posterior.predict(x, num_samples=6)
    for i in range(5):
        alone = posterior.predict(row(x, slice(i, i + 1)), num_samples=6)
        torch.testing.assert_close(alone.probs[0], together.probs[i], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(alone.logits[:, 0], together.logits[:, i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_one_sample_is_the_first_of_many(name, posterior_of):
    posterior, x = posterior_of(name), NETS["mlp"].inputs(5)
    one, many = posterior.outputs(x, num_samples=1), posterior.outputs(x, num_samples=9)
    torch.testing.assert_close(one, many[: len(one)])


@pytest.mark.parametrize("name", NAMES)
def test_a_generator_of_the_users_decides_the_samples(name, posterior_of):
    posterior, x = posterior_of(name), NETS["mlp"].inputs(5)
    first, again, other = (
        posterior.outputs(x, num_samples=3, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    finite_set = isinstance(posterior, WeightPosterior) and posterior.q.size(99) < 99
    assert torch.equal(first, other) == finite_set


@pytest.mark.parametrize("name", NAMES)
def test_a_loader_a_data_set_and_tensors_are_the_same_data(name):
    net, method = NETS["mlp"], small(METHODS[name]())
    model, data = suited(name, net), net.data()
    tensors = (data.inputs, data.target)
    want = state(fit(model, tensors, method, batch_size=16))
    whole = torch.utils.data.TensorDataset(*tensors)
    assert equal(want, state(fit(model, whole, method, batch_size=16)))
    loader = DataLoader(data, batch_size=16, shuffle=True)
    posterior = fit(model, loader, method)
    assert equal(state(posterior), state(fit(model, loader, method)))
    assert posterior.record.num_data == 48


@pytest.mark.parametrize("name", NAMES)
def test_dtype_names_and_tying_are_kept(name):
    model = suited(name, NETS["tied"]).double()
    method = small(METHODS[name](), **OWN_OPTIONS.get((name, "tied"), {}))
    posterior = fit(model, NETS["tied"].data(), method)
    names = weights_of(model) | buffers_of(model)
    if isinstance(posterior, WeightPosterior) and posterior.q.networks > 1:
        with pytest.raises(OptionError, match="whose mean is no network"):
            posterior.point()
    point = posterior.q.point() if isinstance(posterior, WeightPosterior) else posterior.point()
    assert set(point) <= set(names)
    assert posterior.outputs(NETS["tied"].inputs(3), num_samples=2).dtype == torch.float64
    assert posterior.model.score.weight is posterior.model.embed.weight
    assert list(posterior.model.state_dict()) == list(model.state_dict())
    for key, each in point.items():
        assert (each.dtype, each.shape) == (names[key].dtype, names[key].shape)


@pytest.mark.parametrize("name", NAMES)
def test_options_survive_json(name):
    for method in (METHODS[name](), small(METHODS[name](), epochs=7)):
        text = json.dumps(to_json(method))
        again = from_json(json.loads(text))
        assert again == method
        assert type(again) is METHODS[name]


@pytest.mark.parametrize("name", NAMES)
def test_options_are_frozen_and_described(name):
    method = METHODS[name]()
    for field in fields(method):
        assert field.metadata.get("help"), f"{field.name} has no help text"
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, field.name, None)


@pytest.mark.parametrize("name", NAMES)
def test_the_record_tells_how_it_was_fitted(name, posterior_of):
    record = posterior_of(name).record
    assert record.options == to_json(small(METHODS[name]()))
    assert (record.seed, record.num_data) == (0, 48)
    assert record.versions["bayesify"] == bayesify.__version__
    own = [entry for entry in record.history if entry["phase"] == type(METHODS[name]()).__name__]
    assert [entry["epoch"] for entry in own] == list(range(len(own)))
    assert len(own) in (1, 2, 3, 6)  # a pass, two epochs, both, or two for each of three members
    assert all(math.isfinite(entry["loss"]) for entry in record.history)
    assert 0 < record.seconds_per_epoch * len(own) <= record.seconds
    json.dumps(record.to_json())


@pytest.mark.parametrize("name", OVER_WEIGHTS)
def test_a_step_moves_every_parameter_and_the_predictions(name):
    method, problem = small(METHODS[name]()), NETS["mlp"].problem()
    run, data = method.start(problem), NETS["mlp"].data()
    x = NETS["mlp"].inputs(5)
    before = copy.deepcopy(run.posterior().q.state_dict())
    outputs = run.posterior().outputs(x, num_samples=2).detach()
    for _ in range(3):
        log = run.step(data.inputs, data.target)
    run.end_epoch(0)
    assert math.isfinite(log["loss"])
    for key, each in run.posterior().q.named_parameters():
        moved = key not in before or not torch.equal(each, before[key])  # or a new distribution
        assert moved == each.requires_grad, f"{key} has {'not ' * (not moved)}moved"
    assert not torch.allclose(run.posterior().outputs(x, num_samples=2), outputs, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_short_fit_beats_knowing_nothing(name):
    net = NETS["mlp"]
    train, test = net.data(256, seed=1), net.data(256, seed=2)
    posterior = fit(suited(name, net), train, small(METHODS[name](), epochs=30), batch_size=32)
    nll = -posterior.predict(test.inputs).log_prob(test.target).mean()
    prior = bayesify.MeanField.around(net.model())
    with torch.no_grad():
        for store, value in ((prior.loc, 0.0), (prior.rho, math.log(math.expm1(1.0)))):
            for each in store.parameters():
                each.fill_(value)
    blind = WeightPosterior(net.model(), prior, Categorical()).predict(test.inputs, num_samples=200)
    assert nll < 0.75 * -blind.log_prob(test.target).mean()
    assert nll < 0.75 * math.log(CLASSES)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", NAMES)
def test_a_saved_posterior_predicts_the_same_to_the_bit(name, net, posterior_of, tmp_path):
    posterior, x = posterior_of(name, net), NETS[net].inputs(5)
    bayesify.save(posterior, tmp_path / "saved")
    again = bayesify.load(tmp_path / "saved", suited(name, NETS[net], seed=5))
    assert torch.equal(again.outputs(x), posterior.outputs(x))
    assert equal(state(again), state(posterior))
    assert again.record == posterior.record
    assert type(again) is type(posterior)
    assert repr(again) == repr(posterior)  # at once or one by one


@pytest.mark.parametrize(
    ("likelihood", "outputs", "target"),
    [
        (Gaussian("learnt"), 2, torch.randn(32, 2)),
        (Gaussian("output"), 4, torch.randn(32, 2)),
        (Gaussian(0.5), 1, torch.randn(32)),
        (Bernoulli(), 3, torch.randint(2, (32, 3))),
    ],
    ids=["learnt noise", "noise from the output", "fixed noise", "labels"],
)
@pytest.mark.parametrize("name", NAMES)
def test_every_likelihood_can_be_fitted(name, likelihood, outputs, target):
    model = suited(name, nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, outputs)))
    x, method = torch.randn(32, 4), small(METHODS[name]())
    if name in ONE_NOISE and likelihood.options().get("scale", "output") == "output":
        with pytest.raises(UnsupportedModelError, match="no form for the likelihood"):
            fit(model, (x, target), method, likelihood=likelihood)
        return
    posterior = fit(model, (x, target), method, likelihood=likelihood)
    log_prob = posterior.predict(x, num_samples=3).log_prob(target)
    assert log_prob.shape == (32,)
    assert torch.isfinite(log_prob).all()


@pytest.mark.parametrize("name", NAMES)
def test_classes_per_position_can_be_fitted(name):
    model = suited(name, nn.Conv2d(1, CLASSES, 3, padding=1))
    x, target = torch.randn(8, 1, 4, 4), torch.randint(CLASSES, (8, 4, 4))
    posterior = fit(model, (x, target), small(METHODS[name]()))
    predictive = posterior.predict(x, num_samples=3)
    assert predictive.probs.shape == (8, CLASSES, 4, 4)
    assert predictive.log_prob(target).shape == (8, 4, 4)


@pytest.mark.parametrize("name", NAMES)
def test_predictions_leave_the_posterior_as_it_is(name, posterior_of):
    posterior = posterior_of(name, "cnn")
    before = {n: each.clone() for n, each in state(posterior).items()}
    modes = [each.training for each in posterior.model.modules()]
    out = posterior.outputs(NETS["cnn"].inputs(6))
    assert out.requires_grad
    posterior.predict(NETS["cnn"].inputs(6))
    assert equal(before, state(posterior))
    assert modes == [each.training for each in posterior.model.modules()]
    assert not posterior.predict(NETS["cnn"].inputs(6)).logits.requires_grad
