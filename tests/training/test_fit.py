import json
import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from bayesify import (
    BALI,
    MAP,
    STF,
    SVGD,
    SWAG,
    Bella,
    Ensemble,
    MeanFieldVI,
    fit,
    last_layer,
    matching,
)
from bayesify.core.errors import (
    BayesifyError,
    DataError,
    DivergenceError,
    OptionError,
    ShapeError,
    UnsupportedModelError,
)
from bayesify.core.streams import stream
from bayesify.likelihoods import Categorical
from bayesify.training.fit import versions
from bayesify.training.method import Method
from zoo import NETS, BranchingNet, Pairs

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()


class Watcher:
    """Writes down what happens; `trained` tells whether any step was made."""

    def __init__(self) -> None:
        self.events: list[tuple] = []

    @property
    def trained(self) -> bool:
        return any(event[0] == "step" for event in self.events)

    def on_phase_start(self, phase: str, epochs: int, steps_per_epoch: int) -> None:
        self.events.append(("start", phase, epochs, steps_per_epoch))

    def on_step(self, log: dict[str, float]) -> None:
        self.events.append(("step", log["loss"]))

    def on_epoch_end(self, entry: dict) -> None:
        self.events.append(("epoch", entry["phase"], entry["epoch"]))

    def on_phase_end(self) -> None:
        self.events.append(("end",))


def net() -> nn.Module:
    return NETS["mlp"].model()


class Odd(nn.Module):
    """A linear map whose output is changed by `change`."""

    def __init__(self, change) -> None:
        super().__init__()
        self.linear, self.change = nn.Linear(4, 3), change

    def forward(self, x: Tensor):
        return self.change(self.linear(x))


def spoilt(tensor: Tensor, value: float) -> Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[-1] = value
    return tensor


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield X[0], Y[0]


def raises(x: Tensor) -> Tensor:
    raise AttributeError("no such layer")


BAD = {
    # data
    "nan inputs": ({"data": (spoilt(X, math.nan), Y)}, DataError, "1 of .* inputs are NaN"),
    "infinite inputs": ({"data": (spoilt(X, math.inf), Y)}, DataError, "expected finite"),
    "nan targets": (
        {
            "data": (X, spoilt(X[:, 0], math.nan)),
            "model": nn.Linear(4, 1),
            "likelihood": "gaussian",
        },
        DataError,
        "targets are NaN",
    ),
    "no examples": ({"data": (X[:0], Y[:0])}, DataError, "no examples; expected at least one"),
    "no batch": (
        {"data": DataLoader(TensorDataset(X, Y), batch_size=64, drop_last=True)},
        DataError,
        "no batch; expected at least one",
    ),
    "one class": ({"data": (X, 0 * Y + 2)}, DataError, "all targets equal 2.*at least two"),
    "labels too high": ({"data": (X, Y + 1)}, DataError, r"1 to 3.*0\.\.2; relabel"),
    "labels too low": ({"data": (X, Y - 1)}, DataError, r"-1 to 1.*0\.\.2"),
    "float labels": ({"data": (X, Y.float())}, DataError, "expected integer.*convert with"),
    "one-hot labels": ({"data": (X, torch.eye(3)[Y])}, ShapeError, "not one-hot rows"),
    "columns of labels": ({"data": (X, Y[:, None])}, ShapeError, r"targets \(14, 1\)"),
    "fewer targets": ({"data": (X, Y[:-1])}, ShapeError, "x has 40 examples, but y has 39"),
    "three items": ({"data": TensorDataset(X, X, Y)}, DataError, r"\(inputs, target\).*3 items"),
    "no target": (
        {"data": DataLoader([{"x": each} for each in X])},
        DataError,
        r"under 'labels' or 'target', got the keys \['x'\]",
    ),
    "arrays": ({"data": (X.numpy(), Y.numpy())}, DataError, r"got \(ndarray, ndarray\).*as_tensor"),
    "no length": ({"data": Endless()}, DataError, "has no length; .*define `__len__`"),
    "loader without length": ({"data": DataLoader(Endless())}, DataError, "has no length"),
    "single examples": (
        {"data": DataLoader(TensorDataset(X, Y), batch_size=None)},
        ShapeError,
        "expected targets with a batch axis",
    ),
    # model
    "wrong inputs": ({"data": (X[:, :3], Y)}, UnsupportedModelError, r"shape \(14, 3\).*expects"),
    "wrong dtype": ({"data": (X.double(), Y)}, UnsupportedModelError, "torch.float64: .*dtype"),
    "ids out of range": (
        {"model": nn.Sequential(nn.Embedding(2, 3), nn.Flatten()), "data": (Y[:, None] + 5, Y)},
        UnsupportedModelError,
        "index out of range",
    ),
    "no parameters": ({"model": nn.ReLU()}, UnsupportedModelError, "nothing to make Bayesian"),
    "lazy": ({"model": nn.LazyLinear(3)}, UnsupportedModelError, "call the model once"),
    "no module": ({"model": len}, UnsupportedModelError, "expected a torch.nn.Module, got"),
    "nan outputs": ({"model": Odd(lambda o: o * math.nan)}, DataError, "returns NaN or inf"),
    "unreadable": ({"model": Odd(lambda o: (o, o))}, UnsupportedModelError, "pass `readout="),
    "no batch axis": (
        {"model": Odd(lambda o: o.sum(0))},
        ShapeError,
        r"returns \(3,\).*first axis",
    ),
    "scalar": ({"model": Odd(lambda o: o.sum())}, ShapeError, r"returns \(\)"),
    "raising": ({"model": Odd(raises)}, UnsupportedModelError, "no such layer"),
    "branching": (
        {"model": BranchingNet(), "method": Ensemble(epochs=1)},
        UnsupportedModelError,
        "pass `vectorize=False`",
    ),
    "branching later": (
        {"model": BranchingNet(), "method": STF(pretrain=MAP(epochs=1))},
        UnsupportedModelError,
        "pass `vectorize=False`",
    ),
    "too few outputs": (
        {"model": nn.Linear(4, 3), "likelihood": "gaussian", "data": (X, X)},
        ShapeError,
        "expected outputs",
    ),
    # options
    "the class": ({"method": MAP}, OptionError, "expected an instance .*call the class"),
    "a name": ({"method": "map"}, OptionError, "expected an instance .*got 'map'"),
    "pretraining by class": ({"method": STF(pretrain=MAP)}, OptionError, "expected an instance"),
    "pretraining by name": ({"method": STF(pretrain="map")}, OptionError, "got 'map'"),
    "selector by name": (
        {"method": STF(pretrain=MAP(epochs=1), where="first_layer")},
        OptionError,
        "where='first_layer': expected a selector",
    ),
    "selector without hit": (
        {"method": STF(pretrain=MAP(epochs=1), where=matching("encoder.*"))},
        OptionError,
        r"matching\('encoder.\*'\) found no weight",
    ),
    "selector that cannot be saved": (
        {"method": STF(pretrain=MAP(epochs=1), where=lambda model, example: ["0.weight"])},
        OptionError,
        "as JSON: expected",
    ),
    "norm first": (
        {
            "method": STF(pretrain=MAP(epochs=1)),
            "model": nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)),
        },
        UnsupportedModelError,
        "no weight to make Bayesian",
    ),
    "likelihood": ({"likelihood": "normal"}, OptionError, "'normal': expected one of categorical"),
    "likelihood by class": ({"likelihood": Categorical}, OptionError, "or a Likelihood"),
    "batch size": ({"batch_size": 0}, OptionError, "batch_size=0: expected at least 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_told_before_any_step(name):
    given, error, said = BAD[name]
    watcher = Watcher()
    call = {"model": net(), "data": (X, Y), "method": MAP(epochs=1), "batch_size": 16} | given
    with pytest.raises(BayesifyError, match=said) as caught:
        fit(**call, callbacks=[watcher])
    assert type(caught.value) is error
    assert not watcher.trained


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"epochs": -1},
        {"epochs": 1.5},
        {"epochs": None},
        {"epochs": True},
        {"lr": 0.0},
        {"lr": -1e-3},
        {"lr": math.nan},
        {"lr": math.inf},
        {"lr": "0.1"},
        {"prior_scale": 0.0},
    ],
)
@pytest.mark.parametrize("method", [MAP, Ensemble, MeanFieldVI, STF])
def test_senseless_options_are_refused_when_they_are_given(method, options):
    (name,) = options
    with pytest.raises(OptionError, match=rf"{method.__name__}\({name}=.*: expected"):
        method(**options)


def test_callbacks_see_every_phase_epoch_and_step():
    watcher = Watcher()
    method = STF(pretrain=MAP(epochs=2), epochs=1)
    posterior = fit(net(), (X, Y), method, batch_size=16, callbacks=[watcher])
    kinds = [event[0] for event in watcher.events]
    epoch = ["step"] * 3 + ["epoch"]
    assert kinds == ["start", *epoch, *epoch, "end", "start", *epoch, "end"]
    assert watcher.events[0] == ("start", "MAP", 2, 3)
    assert [event[1:] for event in watcher.events if event[0] == "epoch"] == [
        ("MAP", 0),
        ("MAP", 1),
        ("STF", 0),
    ]
    steps = [event[1] for event in watcher.events if event[0] == "step"]
    assert posterior.record.history[0]["loss"] == pytest.approx(sum(steps[:3]) / 3)


def test_an_interrupt_ends_the_phase_and_passes_on():
    class Impatient(Watcher):
        def on_step(self, log: dict[str, float]) -> None:
            raise KeyboardInterrupt

    watcher = Impatient()
    with pytest.raises(KeyboardInterrupt):
        fit(net(), (X, Y), MAP(epochs=5), callbacks=[watcher])
    assert watcher.events[-1] == ("end",)


def test_divergence_tells_the_step_and_the_last_finite_loss():
    watcher = Watcher()
    with pytest.raises(
        DivergenceError, match=r"diverged at step \d+: .*lower the learning rate"
    ) as caught:
        fit(net(), (1e18 * X, Y), MAP(epochs=50, lr=1e18), callbacks=[watcher], batch_size=16)
    steps = [event[1] for event in watcher.events if event[0] == "step"]
    assert all(math.isfinite(each) for each in steps)
    assert f"step {len(steps)}:" in str(caught.value)
    assert str(steps[-1] if steps else None) in str(caught.value)


def test_without_a_copy_the_model_itself_is_used():
    model = net()
    before = model[0].weight.detach().clone()
    posterior = fit(model, (X, Y), STF(pretrain=MAP(epochs=1), epochs=1), copy=False)
    assert posterior.model is model
    assert not torch.equal(model[0].weight, before)


def test_a_single_last_example_is_left_out_of_training_with_batch_norm():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    for data in (Pairs(X[:33], Y[:33]), (X[:33], Y[:33]), TensorDataset(X[:33], Y[:33])):
        posterior = fit(model, data, MAP(epochs=1), batch_size=16)
        assert posterior.record.num_data == 33


def test_a_branching_net_can_be_fitted_in_a_loop():
    for method in (Ensemble(members=2, epochs=1), STF(pretrain=None, epochs=1)):
        posterior = fit(BranchingNet(), (X, Y), method, vectorize=False)
        assert posterior.predict(X, num_samples=3).probs.shape == (40, 3)


def test_a_readout_is_used_in_training_and_prediction():
    model = Odd(lambda out: {"scores": out, "twice": 2 * out})
    method = MeanFieldVI(pretrain=MAP(epochs=1), epochs=1, where=last_layer)
    posterior = fit(model, (X, Y), method, readout=lambda output: output["twice"])
    want = 2 * nn.functional.linear(X, *posterior.point().values())
    mean = posterior.outputs(X, num_samples=2000).mean(0)
    torch.testing.assert_close(mean, want, rtol=0.1, atol=0.1)


def test_lists_of_tensors_are_data_too():
    assert fit(net(), [X, Y], MAP(epochs=1)).record.num_data == 40


def test_peak_memory_has_the_copy_of_the_network_in_it():
    wide, x, y = nn.Linear(4096, 4096), torch.randn(2, 4096), torch.tensor([0, 1])
    peaks = [
        fit(wide, (x, y), MAP(epochs=1), copy=copy).record.peak_memory_bytes
        for copy in (True, False)
    ]
    if peaks[0] is None:
        pytest.skip("the system does not tell")
    assert peaks[0] - peaks[1] > 0.7 * wide.weight.nbytes


def test_seconds_of_the_method_itself_are_apart_from_those_of_all():
    record = fit(net(), (X, Y), STF(pretrain=MAP(epochs=20), epochs=1), batch_size=4).record
    assert 0 < record.seconds_per_epoch < 0.5 * record.seconds
    assert 0 < record.seconds_per_step <= record.seconds_per_epoch


def test_versions_are_recorded():
    assert set(versions()) == {"bayesify", "torch", "python"}


def test_the_seed_decides_the_starts_and_not_the_order_alone():
    method = Ensemble(members=2, epochs=1, lr=1e-9)
    first, other = (fit(net(), (X, Y), method, seed=seed).q.members.named() for seed in (1, 2))
    for name, each in first.items():
        assert (each - other[name]).abs().max() > 0.05


class Reader(Method):
    """Writes down the held-out batches it is given, and trains as MAP does."""

    pretrain = None

    def __init__(self) -> None:
        self.read: list = []

    def start(self, problem):
        self.read.append(None if problem.validation is None else list(problem.validation()))
        return MAP(epochs=1).start(problem)


def test_held_out_examples_reach_the_method_in_order(monkeypatch):
    monkeypatch.setattr("bayesify.training.fit.to_json", lambda method: {})
    method = Reader()
    fit(net(), (X, Y), method, validation=(X[:20], Y[:20]), batch_size=8)
    for read in method.read:  # of the rehearsal, and of the fit
        assert [len(y) for _, y in read] == [8, 8, 4]
        assert torch.equal(torch.cat([x for x, _ in read]), X[:20])
        assert torch.equal(torch.cat([y for _, y in read]), Y[:20])
    without = Reader()
    fit(net(), (X, Y), without)
    assert without.read == [None, None]


def test_a_method_that_needs_no_held_out_examples_fits_as_without_them():
    before = torch.get_rng_state()
    with_them, without = (
        fit(net(), (X, Y), MAP(epochs=2), validation=held_out, batch_size=8)
        for held_out in (DataLoader(TensorDataset(X, Y), shuffle=True), None)
    )
    assert torch.equal(torch.get_rng_state(), before)
    for name, each in with_them.point().items():
        assert torch.equal(each, without.point()[name])


@pytest.mark.parametrize(
    ("held_out", "error", "said"),
    [
        ((spoilt(X, math.nan), Y), DataError, "^validation: batch 2: 1 of .* inputs are NaN"),
        ((X, Y + 1), DataError, "^validation: labels reach from 1 to 3"),
        ((X[:, :2], Y), UnsupportedModelError, "^validation: .*cannot be called"),
        ((X[:0], Y[:0]), DataError, "no examples"),
        ((X, Y[:-1]), ShapeError, "x has 40 examples, but y has 39"),
    ],
)
def test_bad_held_out_examples_are_told_before_any_step(held_out, error, said):
    watcher = Watcher()
    with pytest.raises(error, match=said):
        fit(net(), (X, Y), MAP(epochs=1), validation=held_out, callbacks=[watcher], batch_size=16)
    assert not watcher.trained


def test_one_held_out_example_is_enough():
    assert fit(net(), (X, Y), MAP(epochs=1), validation=(X[:1], Y[:1])).record.num_data == 40


def test_the_operations_of_a_step_are_those_of_its_products_of_matrices():
    """A linear layer of 3 x 2 on 32 inputs, forward, and backward with respect to its weight."""
    data = torch.randn(64, 3), torch.arange(64) % 2
    posterior = fit(nn.Linear(3, 2), data, MAP(epochs=1), batch_size=32)
    assert posterior.record.flops_per_step == 2 * (2 * 32 * 3 * 2)


@pytest.mark.parametrize(
    "method",
    [
        STF(pretrain=Ensemble(members=2, epochs=1), epochs=1),
        Bella(pretrain=Ensemble(members=2, epochs=1), epochs=1),
        SWAG(pretrain=STF(pretrain=Ensemble(members=2, epochs=1)), epochs=1),
        SWAG(pretrain=BALI(members=2, epochs=1, pretrain=None), epochs=1),
    ],
)
def test_a_method_that_begins_at_one_network_refuses_several_before_anything_is_trained(method):
    model, watcher = net(), Watcher()
    with pytest.raises(OptionError, match=r"trains 2, whose mean is no network"):
        fit(model, (X, Y), method, callbacks=[watcher])
    assert not watcher.trained


class Unread(Method):
    """MAP whose steps leave their terms as tensors, as on an accelerator."""

    def start(self, problem):
        run = MAP(epochs=2).start(problem)
        run._looks = False
        return run


def test_terms_that_nobody_has_read_are_numbers_in_the_record_and_to_callbacks(monkeypatch):
    monkeypatch.setattr("bayesify.training.fit.to_json", lambda method: {})
    watchers, losses = (Watcher(), Watcher()), []
    for method, watcher in zip((MAP(epochs=2), Unread()), watchers, strict=True):
        posterior = fit(net(), (X, Y), method, seed=1, callbacks=[watcher])
        losses.append([json.loads(json.dumps(each))["loss"] for each in posterior.record.history])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    steps = [[event for event in each.events if event[0] == "step"] for each in watchers]
    assert steps[0] == steps[1]
    assert all(isinstance(loss, float) for _, loss in steps[1])


class Breaks(Method):
    """A method whose first step does not work."""

    pretrain = MAP(epochs=1)

    def start(self, problem):
        run = MAP(epochs=1).start(problem)
        run.step = lambda inputs, target: (_ for _ in ()).throw(OptionError("in a step"))
        return run


def test_a_step_that_cannot_be_taken_says_so_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr("bayesify.training.fit.to_json", lambda method: {})
    watcher = Watcher()
    with pytest.raises(OptionError, match="in a step"):
        fit(net(), (X, Y), Breaks(), callbacks=[watcher])
    assert not watcher.trained


class Gate(nn.Module):
    """A network with a weight without axes, as the gate of ReZero or the scale of CLIP."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.layer = nn.Parameter(torch.tensor(0.5)), nn.Linear(4, 3)

    def reset_parameters(self) -> None:
        nn.init.constant_(self.gate, 0.5)

    def forward(self, x):
        return self.gate * self.layer(x)


@pytest.mark.parametrize(
    "method",
    [
        Bella(pretrain=None, members=3, rank=1, epochs=2),
        Bella(pretrain=None, members=3, rank=1, epochs=2, interaction="svgd", rates=(1, 0.5, 2)),
        SWAG(pretrain=None, burn_in=1, epochs=3),
        SVGD(members=2, epochs=1, clip=1.0),
    ],
)
def test_a_weight_without_axes_is_learnt(method):
    """Each output is that of the plain network with the sample's own numbers."""
    x, y = torch.randn(40, 4), torch.arange(40) % 3
    posterior = fit(Gate(), (x, y), method)
    draw = posterior.q.sample(2, generator=stream(0, "predict"))
    for sample, got in enumerate(posterior.outputs(x, num_samples=2)[:2]):
        one = torch.utils._pytree.tree_map(lambda each, s=sample: each[s], draw)
        weights = posterior.q.weights(one)
        plain = {n: getattr(e, "dense", lambda e=e: e)() for n, e in weights.items()}
        want = plain["gate"] * nn.functional.linear(x, plain["layer.weight"], plain["layer.bias"])
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
        assert plain["gate"] != 0.5
