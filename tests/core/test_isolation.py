"""What a network writes into stays inside the call; the truth is a plain copy of it, on a copy."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify import (
    Bella,
    Categorical,
    LinearisedPosterior,
    MeanField,
    Particles,
    WeightPosterior,
    compressed,
)
from bayesify.core.errors import UnsupportedModelError
from bayesify.core.isolation import isolated, lock_of
from bayesify.core.streams import stream
from bayesify.tracing.trace import call
from bayesify.weights.named import assign_


class Centring(nn.Module):
    """Takes the mean off its inputs, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x.sub_(0.7).mul_(2))


class SometimesCentring(Centring):
    """Only inputs that are large."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if float(x.max()) > 10 else self.body(x)


def rectified() -> nn.Module:
    return nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 8), nn.ReLU(True), nn.Linear(8, 3))


class Counting(nn.Module):
    """Reads buffers that it writes into, in place and by assignment, also in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 3)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("seen", None)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        hidden = self.first(x)
        self.mean = 0.5 * self.mean + 0.5 * hidden.detach().mean(0)
        if not self.training:
            self.seen = hidden.detach()[0]
        return self.head(hidden - self.mean) * self.calls


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: each.clone() for name, each in model.state_dict().items()}


def plain(model: nn.Module, q: Particles | MeanField, x: Tensor, samples: int) -> Tensor:
    """Each sample written into a copy of the network, which is called on a copy of x."""
    drawn = q.sample(samples, generator=stream(0, "predict"))
    results = []
    for s in range(q.size(samples)):
        net = copy.deepcopy(model).eval()
        assign_(net, q.weights({name: each[s] for name, each in drawn.items()}))
        results.append(net(x.clone()))
    return torch.stack(results).detach()


def members(model: nn.Module) -> Particles:
    nets = [copy.deepcopy(model) for _ in range(6)]
    for net in nets:
        for each in net.parameters():
            nn.init.normal_(each, std=0.5)
    return Particles.of_models(nets)


@pytest.mark.parametrize("build", [Centring, rectified, Counting], ids=lambda each: each.__name__)
@pytest.mark.parametrize("kind", ["members", "drawn", "last"])
@pytest.mark.parametrize("size", [None, 1, 2, 6], ids=str)
def test_predictions_are_those_of_plain_copies_whatever_runs_at_once(build, kind, size):
    torch.manual_seed(0)
    model, x = build(), torch.randn(5, 4) + 1
    where = bayesify.last_layer if kind == "last" else bayesify.all_weights
    q = MeanField.around(model, scale=0.3, where=where, example=x.clone())
    q = members(model) if kind == "members" else q
    posterior = WeightPosterior(model, q, Categorical())
    given, before, own = x.clone(), state(model), state(q)
    expected = plain(model, q, x, 6)
    for _ in range(2):
        got = posterior.outputs(x, num_samples=6, chunk_size=size).detach()
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(x, given)
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert all(torch.equal(each, own[name]) for name, each in q.state_dict().items())
    assert model.training
    copy.deepcopy(posterior)


def test_a_fit_and_an_attack_leave_the_callers_inputs_alone():
    torch.manual_seed(0)
    x, y = torch.randn(32, 4) + 1, torch.arange(32) % 3
    batches = torch.utils.data.DataLoader([(x[:16], y[:16]), (x[16:], y[16:])], batch_size=None)
    given, model = x.clone(), Centring()
    start = bayesify.MAP(epochs=1)
    posterior = bayesify.fit(model, batches, bayesify.STF(pretrain=start, epochs=1))
    assert torch.equal(x, given)
    own, apart = x.clone().requires_grad_(), x.clone().requires_grad_()
    posterior.outputs(own, num_samples=3).square().sum().backward()
    posterior.outputs((apart - 0.7) * 2 / 2 + 0.7, num_samples=3).square().sum().backward()
    torch.testing.assert_close(own.grad, apart.grad)
    assert torch.equal(own.detach(), given)


def test_a_network_with_buffers_of_its_own_is_fitted_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    x, y = torch.randn(32, 4), torch.arange(32) % 3
    start = bayesify.MAP(epochs=1)
    for method in (bayesify.STF(pretrain=start, epochs=1), Bella(pretrain=start, epochs=1)):
        posterior = bayesify.fit(Counting(), (x, y), method)
        folder = bayesify.save(posterior, tmp_path / type(method).__name__)
        again = bayesify.load(folder, Counting())
        assert torch.equal(again.predict(x).probs, posterior.predict(x).probs)


def test_a_write_that_comes_late_is_protected_or_said():
    model, x = SometimesCentring(), torch.randn(5, 4)
    q = members(model)
    posterior = WeightPosterior(model, q, Categorical(), vectorize=False)
    for each in (x, x + 20):  # the first teaches nothing about the second
        given = each.clone()
        torch.testing.assert_close(posterior.outputs(each).detach(), plain(model, q, each, 6))
        assert torch.equal(each, given)

    class Late(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if float(x.max()) > 10:
                self.calls += 1
            return super().forward(x)

    late = Late(4, 3).eval()
    late.register_buffer("calls", torch.zeros(()))
    call(late, x)
    with pytest.raises(
        UnsupportedModelError, match=r"wrote into a buffer \(`calls`\) in eval mode"
    ):
        call(late, x + 20)


def test_buffers_of_modules_in_train_mode_move():
    net = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4))
    net[1].eval()
    with isolated(net):
        net(torch.randn(8, 4) + 3)
    assert net[0].running_mean.abs().sum() > 0
    assert net[1].running_mean.abs().sum() == 0


# --- threads

THREADS, CALLS = 4, 12


def fitted(method: bayesify.Method, model: nn.Module) -> bayesify.Posterior:
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(1))
    return bayesify.fit(model, (x, torch.arange(32) % 3), method)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.3), nn.BatchNorm1d(8), nn.Linear(8, 3))


POSTERIORS = {
    "at once": lambda: WeightPosterior(mlp(), members(mlp()), Categorical()),
    "looped": lambda: WeightPosterior(mlp(), members(mlp()), Categorical(), vectorize=False),
    "dropout": lambda: bayesify.DropoutPosterior(mlp(), Categorical()),
    "swag": lambda: fitted(bayesify.SWAG(epochs=2, pretrain=None), mlp()),
    "linearised": lambda: LinearisedPosterior(mlp(), MeanField.around(mlp()), Categorical()),
    "bali": lambda: fitted(bayesify.BALI(pretrain=None, epochs=1, min_steps=1), mlp()),
    "shared": lambda: compressed(
        WeightPosterior(mlp(), MeanField.around(mlp(), where=bayesify.matrices), Categorical()),
        codes=4,
    ),
}


@pytest.mark.parametrize("kind", POSTERIORS)
def test_four_threads_predict_on_one_posterior_as_one_does(kind):
    torch.manual_seed(0)
    posterior = POSTERIORS[kind]()
    posterior.model.train()  # a mode that every call has to leave, and to come back to
    xs = [torch.randn(size, 4) for size in (1, 5, 33)]

    def predict(number: int) -> Tensor:
        how = {"num_samples": 4 + number % 2, "chunk_size": (None, 1, 3)[number % 3]}
        return posterior.predict(xs[number // 2 % 3], **how).probs

    expected = [predict(number) for number in range(CALLS)]
    before = state(posterior.model)
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(predict, list(range(CALLS)) * THREADS))
    for number, each in enumerate(found):
        torch.testing.assert_close(each, expected[number % CALLS], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(each, before[n]) for n, each in posterior.model.state_dict().items())
    assert all(module.training for module in posterior.model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_lock_is_for_one_thread_and_no_part_of_the_model():
    net = nn.Linear(2, 1)
    with lock_of(net), lock_of(net), ThreadPoolExecutor(1) as pool:
        assert not pool.submit(lock_of(net).acquire, blocking=False).result()
        assert pool.submit(lock_of(nn.Linear(2, 1)).acquire, blocking=False).result()
        again = pickle.loads(pickle.dumps(net))  # while it is held
        assert pool.submit(lock_of(copy.deepcopy(again)).acquire, blocking=False).result()
