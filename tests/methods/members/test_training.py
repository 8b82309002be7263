import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from bayesify import Bella, fit, matching
from bayesify.core.errors import DataError, UnsupportedModelError
from bayesify.core.types import Where
from bayesify.distributions.low_rank_particles import LowRankParticles
from bayesify.distributions.particles import Particles
from bayesify.forward import outputs as forward
from bayesify.likelihoods import Bernoulli, Categorical, Gaussian
from bayesify.likelihoods.base import Likelihood
from bayesify.methods.members.interaction import svgd_
from bayesify.methods.members.training import Training, train_members
from bayesify.numerics.kernels import median_bandwidth
from bayesify.training.loop import GradientRun
from bayesify.training.objective import LIKELIHOOD_RATE
from bayesify.training.problem import Problem
from bayesify.weights.low_rank import LowRankWeight
from bayesify.weights.named import buffers_of, weights_of
from bayesify.weights.select import all_weights
from zoo import NETS

N, LR = 48, 0.01

LOW_RANK_KERNELS = ["none", "product", "factor", "function"]
FULL_KERNELS = ["none", "weights", "function"]
CASES = [(LowRankParticles, each) for each in LOW_RANK_KERNELS]
CASES += [(Particles, each) for each in FULL_KERNELS]

Members = Particles | LowRankParticles


def problem(net: str = "mlp", *, vectorize: bool = True, **changes: Any) -> Problem:
    """In double precision, frozen and in eval mode."""
    made = NETS[net].problem(vectorize=vectorize)
    model = changes.pop("model", made.model).double().eval().requires_grad_(False)
    data = replace(made.data, example=made.data.example.double())
    return replace(made, model=model, data=data, **changes)


def low_rank(model: nn.Module, members: int = 3, *, where: Where = all_weights) -> LowRankParticles:
    return LowRankParticles.around(
        model,
        where=where,
        members=members,
        rank=2,
        noise=0.3,
        generator=torch.Generator().manual_seed(5),
    )


def full(net: str, members: int = 3) -> Particles:
    return Particles.of_models([NETS[net].model(seed).double() for seed in range(members)])


def members_of(kind: type, model: nn.Module, members: int, net: str = "mlp") -> Members:
    return low_rank(model, members) if kind is LowRankParticles else full(net, members)


def batch(net: str = "mlp", step: int = 0) -> tuple[Tensor, Tensor]:
    data = NETS[net].data()
    rows = slice(16 * (step % 3), 16 * (step % 3) + 16)
    return data.inputs[rows].double(), data.target[rows]


def trained(q: Members, task: Problem, training: Training, *, net: str = "mlp", steps: int) -> Any:
    run = train_members(task, q, training)
    for step in range(steps):
        run.step(*batch(net, step))
        if step % 3 == 2:
            run.end_epoch(step // 3)
    return q


def weights_of_member(q: Members, m: int, leaves: dict[str, Tensor]) -> dict[str, Tensor]:
    """Plain tensors of a member whose parameters are `leaves`."""
    stores: dict[str, dict[str, Tensor]] = {}
    for name, each in leaves.items():
        store, _, own = name.partition(".")
        stores.setdefault(store, {})[own.replace("/", ".")] = each
    if isinstance(q, Particles):
        return stores["members"]
    draw = {"down": stores["down"], "up": stores["up"], "own": stores["offsets"]}
    weights = q.weights(draw)
    return {n: e.dense() if isinstance(e, LowRankWeight) else e for n, e in weights.items()}


@pytest.mark.parametrize("net", ["mlp", "cnn", "transformer"])
@pytest.mark.parametrize("kind", [Particles, LowRankParticles])
def test_the_gradient_of_a_member_is_that_of_its_loss_alone(kind, net):
    task = problem(net)
    q, (x, y) = members_of(kind, task.model, 3, net), batch(net)
    want = []
    for m in range(3):
        leaves = {n: each.detach()[m].requires_grad_() for n, each in q.named_parameters()}
        out = functional_call(task.model, weights_of_member(q, m, leaves), (x,))
        want.append(torch.autograd.grad(F.cross_entropy(out, y), list(leaves.values())))
    train_members(task, q, Training(1, LR, prior_scale=1.0)).step(x, y)
    for number, each in enumerate(q.parameters()):
        for m in range(3):
            torch.testing.assert_close(each.grad[m], want[m][number], rtol=1e-9, atol=1e-12)


def test_the_loss_is_the_sum_and_the_nll_the_mean():
    task = problem()
    q, (x, y) = full("mlp"), batch()
    out = forward.outputs(task.model, q, x)
    want = [F.cross_entropy(each, y).item() for each in out]
    for kernel in FULL_KERNELS:
        log = train_members(task, copy.deepcopy(q), Training(1, LR, 1.0, kernel=kernel)).step(x, y)
        assert log["loss"] == pytest.approx(sum(want))
        assert log["nll"] == pytest.approx(sum(want) / 3)


@pytest.mark.parametrize("kernel", LOW_RANK_KERNELS)
@pytest.mark.parametrize(
    ("net", "where"),
    [
        ("mlp", all_weights),
        ("mlp", matching("4.*")),
        ("cnn", all_weights),
        ("cnn", matching("5.*")),
        ("transformer", all_weights),
        ("transformer", matching("encoder.layers.0.linear2.*", "head.*")),
    ],
    ids=lambda each: each if isinstance(each, str) else str(len(getattr(each, "patterns", ()))),
)
def test_members_at_once_are_those_one_after_the_other(net, where, kernel):
    outs = []
    for vectorize in (True, False):
        task = problem(net, vectorize=vectorize)
        q = low_rank(task.model, where=where)
        x = NETS[net].inputs(20, seed=9).double()
        before = forward.outputs(task.model, q, x).detach()
        trained(q, task, Training(2, LR, 1.0, kernel=kernel), net=net, steps=6)
        outs.append(forward.outputs(task.model, q, x).detach())
        assert (outs[-1] - before).abs().max() > 0.01
    torch.testing.assert_close(*outs, rtol=1e-6, atol=1e-6)


def test_full_members_at_once_are_those_one_after_the_other():
    fast, slow = (
        trained(
            full("cnn"), problem("cnn", vectorize=how), Training(2, LR, 1.0), net="cnn", steps=6
        )
        for how in (True, False)
    )
    for name, each in fast.state_dict().items():
        torch.testing.assert_close(each, slow.state_dict()[name], rtol=1e-6, atol=1e-6)


def after(q: Members, training: Training, steps: int = 1) -> list[Tensor]:
    again = copy.deepcopy(q)
    trained(again, problem(), training, steps=steps)
    return [each.detach() for each in again.parameters()]


@pytest.mark.parametrize(("kind", "kernel"), CASES)
def test_the_first_step_of_a_member_is_as_long_as_its_rate(kind, kernel):
    q = members_of(kind, problem().model, 3)
    rates = (1.0, 0.5, 2.0)
    plain = after(q, Training(2, LR, 1.0, kernel=kernel))
    slowed = after(q, Training(2, LR, 1.0, kernel=kernel, rates=rates))
    for start, at_one, at_own in zip(q.parameters(), plain, slowed, strict=True):
        assert (at_one - start).abs().max() > 0.1 * LR
        for m, rate in enumerate(rates):
            torch.testing.assert_close(at_own[m] - start[m], rate * (at_one[m] - start[m]))


def assert_trained_at_their_rates(decay: float) -> None:
    q, rates = full("mlp"), (1.0, 0.5, 0.1)
    together = after(q, Training(2, LR, 1.0, rates=rates, decay=decay), steps=6)
    for m, rate in enumerate(rates):
        alone = Particles(
            {n: each[m : m + 1] for n, each in q.members.named().items()}, q.statistics.named()
        )
        want = after(alone, Training(2, rate * LR, 1.0, decay=decay), steps=6)
        for each, of in zip(together, want, strict=True):
            torch.testing.assert_close(each[m], of[0], rtol=1e-6, atol=1e-9)


def test_a_member_of_its_own_rate_is_one_trained_at_that_rate():
    assert_trained_at_their_rates(decay=0.0)


def test_a_member_of_its_own_rate_decays_at_that_rate():
    assert_trained_at_their_rates(decay=3.0)


def by_hand(
    make: Callable[[list[Tensor], float], torch.optim.Optimizer], steps: int
) -> dict[str, Tensor]:
    """A network trained by an optimiser of torch, along the same cosine."""
    model = NETS["mlp"].model().double()
    optimiser = make(list(model.parameters()), LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        x, y = batch(step=step)
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
        schedule.step()
    return weights_of(model)


@pytest.mark.parametrize("kernel", FULL_KERNELS)
@pytest.mark.parametrize("prior_scale", [0.1, 1.0])
def test_the_prior_is_the_gradient_w_over_n_s_squared(prior_scale, kernel):
    decay = 1 / (N * prior_scale**2)
    want = by_hand(lambda each, lr: torch.optim.Adam(each, lr, weight_decay=decay), 6)
    q = trained(full("mlp", 1), problem(), Training(2, LR, prior_scale, kernel=kernel), steps=6)
    for name, each in q.members.named().items():
        torch.testing.assert_close(each[0].detach(), want[name], rtol=1e-7, atol=1e-9)


def test_decoupled_decay_is_that_of_adamw():
    want = by_hand(lambda each, lr: torch.optim.AdamW(each, lr, weight_decay=3.0), 6)
    q = trained(full("mlp", 1), problem(), Training(2, LR, 1e9, decay=3.0), steps=6)
    for name, each in q.members.named().items():
        torch.testing.assert_close(each[0].detach(), want[name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(("kind", "kernel"), CASES)
def test_decoupled_decay_shrinks_before_the_step(kind, kernel):
    q = members_of(kind, problem().model, 3)
    plain, shrunk = (after(q, Training(2, LR, 1e9, kernel=kernel, decay=e)) for e in (0.0, 3.0))
    for start, each, of in zip(q.parameters(), plain, shrunk, strict=True):
        torch.testing.assert_close(of - each, -LR * 3.0 * start.detach(), rtol=1e-7, atol=1e-12)


class Indifferent(Categorical):
    """All labels are as likely as all others, whatever the network says."""

    def log_prob(self, outputs: Tensor, target: Tensor) -> Tensor:
        return 0 * super().log_prob(outputs, target)


@pytest.mark.parametrize(
    ("kind", "kernel"),
    [(LowRankParticles, "product"), (LowRankParticles, "factor"), (Particles, "weights")],
)
def test_without_data_the_members_flow_to_the_prior(kind, kernel):
    """The direction is that of SVGD on the gradients w / (N s^2)."""
    task = problem(likelihood=Indifferent())
    q, scale = members_of(kind, task.model, 3), 0.4
    twin = copy.deepcopy(q)
    for each in twin.parameters():
        each.grad = each.detach() / (N * scale**2)
    svgd_(twin, num_data=N, temperature=0.7, kernel=kernel)
    train_members(task, q, Training(1, LR, scale, kernel=kernel, temperature=0.7)).step(*batch())
    for each, of in zip(q.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(each.grad, of.grad)


@pytest.mark.parametrize(("kind", "kernel"), CASES)
def test_one_member_is_trained_the_same_by_every_kernel(kind, kernel):
    task = problem()
    x = NETS["mlp"].inputs(20, seed=9).double()
    q = members_of(kind, task.model, 1)
    alone, repelled = (
        trained(copy.deepcopy(q), task, Training(2, LR, 0.5, kernel=each), steps=6)
        for each in ("none", kernel)
    )
    for each, of in zip(repelled.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(each, of, rtol=1e-7, atol=1e-9)
    got = forward.outputs(task.model, alone, x)
    assert (got - forward.outputs(task.model, q, x)).abs().max() > 0.01


def line(members: int) -> tuple[nn.Module, Particles, Tensor]:
    """A network that is linear in its weights, and its inputs."""
    models = [nn.Linear(4, 3, bias=False).double() for _ in range(members)]
    return models[0].eval(), Particles.of_models(models), batch()[0]


def function_direction(outs: Tensor, y: Tensor, temperature: float) -> Tensor:
    """phi in the outputs from its double sum, by autograd of one pair at a time."""
    outs = outs.detach()
    count = len(outs)
    h = median_bandwidth((outs[:, None] - outs).square().flatten(2).sum(2))
    phi = torch.zeros_like(outs)
    for j in range(count):
        f = outs[j].clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(f, y), f)
        for i in range(count):
            k = torch.exp(-(f - outs[i]).square().sum() / h)
            (away,) = torch.autograd.grad(k, f)
            phi[i] += (k.detach() * slope - temperature / N * away) / count
    return phi


@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_in_function_space_outputs_move_along_their_own_direction(temperature):
    model, q, x = line(3)
    y = batch()[1]
    phi = function_direction(forward.outputs(model, q, x), y, temperature)
    training = Training(1, LR, 1e9, kernel="function", temperature=temperature)
    train_members(problem(model=model), q, training).step(x, y)
    want = torch.einsum("mbc,bd->mcd", phi, x)  # each member's Jacobian is x
    torch.testing.assert_close(q.members.named()["weight"].grad, want)


def test_in_function_space_the_prior_stays_with_the_weights_and_is_divided_by_m():
    model, q, _ = line(3)
    weight = q.members.named()["weight"].detach().clone()
    optimiser = torch.optim.Adam([weight], LR, weight_decay=1 / (N * 0.3**2 * 3))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 6)
    for step in range(6):
        x, y = batch(step=step)
        phi = function_direction(torch.einsum("bd,mcd->mbc", x, weight), y, 5.0)
        weight.grad = torch.einsum("mbc,bd->mcd", phi, x)
        optimiser.step()
        schedule.step()
    training = Training(2, LR, 0.3, kernel="function", temperature=5.0)
    trained(q, problem(model=model), training, steps=6)
    torch.testing.assert_close(q.members.named()["weight"].detach(), weight)


@pytest.mark.parametrize(("kind", "kernel"), CASES)
def test_a_learnt_noise_descends_the_sum_of_the_losses(kind, kernel):
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double().eval()
    q = (
        low_rank(model)
        if kind is LowRankParticles
        else Particles.of_models([copy.deepcopy(model) for _ in range(3)])
    )
    likelihood = Gaussian("learnt").double()
    x, y = batch()[0], torch.randn(16, 2).double()
    residual = forward.outputs(model, q, x).detach() - y
    run = train_members(
        problem(model=model, likelihood=likelihood), q, Training(2, LR, 1.0, kernel=kernel)
    )
    run.step(x, y)
    want = (1 - residual.square()).sum(2).mean(1).sum()  # at a scale of 1
    torch.testing.assert_close(likelihood.log_scale.grad, want)
    first = -LIKELIHOOD_RATE * LR * want.sign()  # Adam's first step, without a prior
    torch.testing.assert_close(likelihood.log_scale.detach(), first)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.5)])
@pytest.mark.parametrize("kernel", ["none", "function"])
def test_other_likelihoods_have_their_own_gradients(likelihood: Likelihood, kernel: str):
    model, q, x = line(1)
    y = torch.rand(16, 3).double().round()
    leaf = q.members.named()["weight"].detach()[0].requires_grad_()
    loss = -likelihood.log_prob((x @ leaf.T)[None], y).flatten(1).mean()
    loss.backward()
    task = problem(model=model, likelihood=likelihood)
    train_members(task, q, Training(1, LR, 1e9, kernel=kernel)).step(x, y)
    torch.testing.assert_close(q.members.named()["weight"].grad[0], leaf.grad)


@pytest.mark.parametrize(("kind", "kernel"), CASES)
def test_each_member_is_clipped_by_itself(kind, kernel):
    q = members_of(kind, problem().model, 3)

    def gradients(clip: float | None) -> Tensor:
        again, training = copy.deepcopy(q), Training(1, LR, 1.0, kernel=kernel, clip=clip)
        train_members(problem(), again, training).step(*batch())
        return torch.cat([each.grad.flatten(1) for each in again.parameters()], 1)

    free = gradients(None)
    norms = free.norm(dim=1, keepdim=True)
    limit = norms.median().item()
    want = free * (limit / norms).clamp_max(1)
    assert (norms > limit).any()
    torch.testing.assert_close(gradients(limit), want, rtol=1e-6, atol=1e-9)


def operations(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def wide(*, vectorize: bool) -> tuple[Problem, LowRankParticles]:
    model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 3)).double()
    task = problem(model=model, vectorize=vectorize)
    return task, low_rank(model, 5, where=matching("2.*"))


@pytest.mark.parametrize("vectorize", [True, False], ids=["at once", "one by one"])
def test_what_comes_before_the_first_learnt_weight_is_computed_once(vectorize):
    steps = []
    for members in (1, 5):
        task, q = wide(vectorize=vectorize)
        q = low_rank(task.model, members, where=matching("2.*"))
        run = train_members(task, q, Training(2, LR, 1.0))
        steps.append(operations(lambda run=run: run.step(*batch())))
    trunk = 2 * 16 * 4 * 64
    head = steps[0] - trunk
    assert head > 0
    assert steps[1] <= trunk + 5 * head


@pytest.mark.parametrize("vectorize", [True, False], ids=["at once", "one by one"])
def test_features_are_kept_from_the_first_epoch_on(vectorize):
    task, q = wide(vectorize=vectorize)
    run = train_members(task, q, Training(2, LR, 1.0, cache_features=True))
    first = [operations(lambda step=step: run.step(*batch(step=step))) for step in range(3)]
    run.end_epoch(0)
    second = [operations(lambda step=step: run.step(*batch(step=step))) for step in range(3)]
    assert all(a - b >= 2 * 16 * 4 * 64 for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("vectorize", [True, False], ids=["at once", "one by one"])
@pytest.mark.parametrize("kernel", ["none", "product"])
@pytest.mark.parametrize(
    ("net", "where"),
    [("mlp", "4.*"), ("cnn", "5.*"), ("transformer", "encoder.layers.0.linear2.*")],
)
def test_kept_features_change_nothing(net, where, kernel, vectorize):
    outs = []
    for cached in (False, True):
        task = problem(net, vectorize=vectorize)
        q = low_rank(task.model, where=matching(where))
        training = Training(3, LR, 1.0, kernel=kernel, cache_features=cached)
        trained(q, task, training, net=net, steps=9)
        outs.append(forward.outputs(task.model, q, NETS[net].inputs(20, seed=9).double()))
    torch.testing.assert_close(*outs, rtol=1e-6, atol=1e-6)


def test_features_of_inputs_that_change_are_refused():
    task, q = wide(vectorize=True)
    run = train_members(task, q, Training(2, LR, 1.0, cache_features=True))
    for step in range(3):
        run.step(*batch(step=step))
    run.end_epoch(0)
    x, y = batch()
    with pytest.raises(DataError, match="augmentation"):
        run.step(x + 0.1, y)


def test_there_must_be_features_to_keep():
    task = problem()
    with pytest.raises(UnsupportedModelError, match=r"cache_features=True.*`where`"):
        train_members(task, low_rank(task.model), Training(1, LR, 1.0, cache_features=True))


def test_members_with_statistics_of_their_own_are_the_same_one_by_one():
    outs = []
    for vectorize in (True, False):
        task = problem("cnn", vectorize=vectorize)
        q = LowRankParticles.around(
            task.model,
            members=3,
            rank=2,
            noise=0.3,
            buffers=list(buffers_of(task.model)),
            generator=torch.Generator().manual_seed(5),
        )
        task.model[1].train()
        trained(q, task, Training(2, LR, 1.0), net="cnn", steps=6)
        outs.append(tree_map(lambda each: each.detach().clone(), q.stacked()))
        assert q.statistics.named()["1.num_batches_tracked"].tolist() == [6, 6, 6]
    for name, each in outs[0]["buffers"].items():
        torch.testing.assert_close(each, outs[1]["buffers"][name], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(outs[0]["up"], outs[1]["up"], rtol=1e-5, atol=1e-5)


def test_a_run_knows_its_epochs_and_the_rates_fall_to_nothing():
    run = train_members(problem(), full("mlp"), Training(2, LR, 1.0))
    assert isinstance(run, GradientRun)
    assert run.epochs == 2
    q = run.posterior().q
    moves = []
    for step in range(6):
        before = [each.detach().clone() for each in q.parameters()]
        run.step(*batch(step=step))
        pairs = zip(q.parameters(), before, strict=True)
        moves.append(max((a.detach() - b).abs().max().item() for a, b in pairs))
    assert moves[0] == pytest.approx(LR, rel=1e-3)
    assert moves[-1] < 0.1 * LR


# --- batches of their own, from loaders of a user's


class Long(nn.Module):
    """Tokens of any length, with positions that have no batch axis and a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, positions: Tensor | None = None, twice: bool = False) -> Tensor:
        hidden = self.table(ids)
        if positions is not None:
            hidden = hidden + positions[:, None]
        return self.head(hidden.mean(1)) * (2 if twice else 1)


def tokens(number: int, length: int) -> dict[str, Any]:
    ids = torch.full((length,), number % 20)
    return {"ids": ids, "labels": torch.tensor(number % 3)}


def padded(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """To the longest of the batch."""
    ids = nn.utils.rnn.pad_sequence([row["ids"] for row in rows], batch_first=True)
    positions = torch.arange(ids.shape[1]) / ids.shape[1]
    labels = torch.stack([row["labels"] for row in rows])
    return {"ids": ids, "positions": positions, "twice": True, "labels": labels}


def many_lengths(**options: Any) -> DataLoader[Any]:
    rows = [tokens(number, 3 + number % 7) for number in range(24)]
    return DataLoader(rows, batch_size=5, collate_fn=padded, **options)  # type: ignore[arg-type]


THREE = Bella(pretrain=None, members=3, rank=1, epochs=2, lr=0.01)


def test_own_batches_may_differ_in_length_and_size_and_hold_what_has_no_batch_axis():
    posterior = fit(Long(), many_lengths(shuffle=True), THREE)
    assert posterior.predict(padded([tokens(1, 4)])["ids"]).probs.shape == (1, 3)


class Counter:
    """Of steps."""

    def __init__(self) -> None:
        self.steps = 0

    def on_phase_start(self, phase: str, epochs: int, steps_per_epoch: int) -> None:
        pass

    def on_step(self, log: dict[str, float]) -> None:
        self.steps += 1

    def on_epoch_end(self, log: dict[str, float]) -> None:
        pass

    def on_phase_end(self) -> None:
        pass


def test_own_batches_of_persistent_workers_are_all_there():
    counter = Counter()
    loader = many_lengths(shuffle=True, num_workers=1, persistent_workers=True)
    fit(Long(), loader, THREE, callbacks=[counter])
    assert counter.steps == 2 * 5


def test_members_whose_own_batches_are_the_same_are_warned_of():
    with pytest.warns(UserWarning, match="all 3 members see the same batches.*shuffle=True"):
        fit(Long(), many_lengths(), THREE)


def test_members_with_own_batches_at_once_are_those_one_by_one():
    x, y = torch.randn(30, 4), torch.randint(3, (30,))
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    one, other = (
        fit(net, (x, y), THREE, vectorize=vectorize, batch_size=8, seed=1).outputs(x)
        for vectorize in (True, False)
    )
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
