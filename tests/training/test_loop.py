import copy
import math
from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn

import bayesify
from bayesify import METHODS, DivergenceError
from bayesify.training.loop import GradientRun, adam
from bayesify.training.method import Method
from bayesify.training.objective import Objective
from zoo import NETS


def fields_of(kind: type) -> set[str]:
    return {each.name for each in fields(kind)}


class Given(Objective):
    """A loss of one weight and the inputs."""

    def __init__(self, loss, weight: Tensor) -> None:
        super().__init__(NETS["mlp"].problem())
        self.loss, self.weight = loss, weight
        self.seen = []

    def forward(self, inputs: Tensor, target: Tensor) -> dict[str, Tensor]:
        return {"loss": self.loss(self.weight, inputs), "extra": self.weight.detach().sum()}

    def posterior(self) -> None:
        return None

    def direct_(self) -> None:
        self.seen.append(("direct", self.weight.detach().clone()))

    def stepped_(self) -> None:
        self.seen.append(("stepped", self.weight.detach().clone()))

    def end_epoch(self, epoch: int) -> None:
        self.seen.append(("epoch", epoch))


def run_of(loss, weight: Tensor, *, steps: int = 10, lr: float = 0.1) -> GradientRun:
    optimiser = torch.optim.SGD([weight], lr=lr)
    return GradientRun(Given(loss, weight), optimiser, epochs=1, steps_per_epoch=steps)


def test_an_objective_sees_the_gradient_and_then_the_step():
    weight = nn.Parameter(torch.tensor([2.0]))
    run = run_of(lambda w, x: (w * x).sum(), weight)
    run.step(torch.tensor([3.0]), torch.zeros(1))
    run.end_epoch(0)
    (first, before), (then, after), last = run.objective.seen
    assert [first, then, last] == ["direct", "stepped", ("epoch", 0)]
    assert before == 2.0
    assert after == pytest.approx(1.7)


def test_what_the_objective_makes_of_the_gradient_is_the_step():
    weight = nn.Parameter(torch.tensor([2.0]))
    run = run_of(lambda w, x: (w * x).sum(), weight)
    run.objective.direct_ = lambda: weight.grad.neg_()
    run.step(torch.tensor([3.0]), torch.zeros(1))
    assert weight.item() == pytest.approx(2.0 + 0.1 * 3.0)


@pytest.mark.parametrize("bad", [False, True])
def test_an_accelerator_is_not_waited_for_until_the_epoch_ends(bad):
    weight = nn.Parameter(torch.tensor([2.0]))
    run = run_of(lambda w, x: (w * x).sum(), weight)
    run._looks = False  # as on an accelerator
    for x in (3.0, math.inf if bad else 1.0, 1.0):
        log = run.step(torch.tensor([x]), torch.zeros(1))
        assert all(isinstance(each, Tensor) and not each.requires_grad for each in log.values())
    if bad:
        with pytest.raises(DivergenceError, match="diverged in epoch 0"):
            run.end_epoch(0)
    else:
        run.end_epoch(0)


@pytest.mark.parametrize("name", ["map", "ensemble", "stf", "mean-field-vi", "bella", "svgd"])
def test_a_run_goes_on_to_the_bit_from_its_state(name):
    x, y = torch.randn(24, 4), torch.randint(3, (24,))
    batches = [(x[i : i + 8], y[i : i + 8]) for i in range(0, 24, 8)]

    def begun() -> GradientRun:
        torch.manual_seed(0)
        given = {"pretrain": None, "batches": "same"}  # batches of their own are the loader's
        given = {n: e for n, e in given.items() if n in fields_of(METHODS[name])}
        problem = NETS["mlp"].problem()
        return METHODS[name](epochs=2, **given).start(problem)

    def steps(run: GradientRun, which: slice) -> None:
        for each in batches[which]:
            run.step(*each)

    whole, first, second = begun(), begun(), begun()
    steps(whole, slice(None))
    steps(first, slice(2))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(second, slice(2, None))
    now, want = second.posterior().q.state_dict(), whole.posterior().q.state_dict()
    assert all(torch.equal(now[key], each) for key, each in want.items())


def test_the_network_of_the_user_is_no_part_of_an_objective():
    run = bayesify.STF(pretrain=None).start(NETS["mlp"].problem())
    assert not any(run.objective.problem.model is each for each in run.objective.modules())
    learnt = {id(e) for group in run.optimiser.param_groups for e in group["params"]}
    assert learnt == {id(each) for each in run.objective.parameters()}


def test_a_step_descends_and_logs():
    weight = nn.Parameter(torch.tensor([2.0]))
    log = run_of(lambda w, x: (w * x).sum(), weight).step(torch.tensor([3.0]), torch.zeros(1))
    assert log == {"loss": 6.0, "extra": 2.0}
    assert weight.item() == pytest.approx(2.0 - 0.1 * 3.0)


def test_the_rate_follows_a_cosine_to_zero():
    weight = nn.Parameter(torch.tensor([0.0]))
    run, moves = run_of(lambda w, x: w.sum(), weight, steps=4), []
    for _ in range(4):
        before = weight.item()
        run.step(torch.ones(1), torch.ones(1))
        moves.append(before - weight.item())
    want = [0.1 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert moves == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_stops_before_it_does_harm(bad):
    weight = nn.Parameter(torch.tensor([2.0]))
    run = run_of(lambda w, x: (w * x).sum(), weight)
    run.step(torch.tensor([3.0]), torch.zeros(1))
    kept = weight.item()
    with pytest.raises(DivergenceError, match=r"diverged at step 1: .* last finite one was 6\.0"):
        run.step(torch.tensor([bad]), torch.zeros(1))
    assert weight.item() == kept


def test_a_gradient_that_is_not_finite_stops_before_it_does_harm():
    weight = nn.Parameter(torch.tensor([0.0]))
    run = run_of(lambda w, x: (w * x).sqrt().sum() + x.sum(), weight)
    with pytest.raises(DivergenceError, match=r"step 0: the loss is 1\.0, but its gradient is not"):
        run.step(torch.tensor([1.0]), torch.zeros(1))
    assert weight.item() == 0.0


def test_decay_is_the_gradient_of_the_log_prior():
    num_data, scale = 20, 0.5
    start = torch.tensor([3.0, -1.0])
    steps = {}
    for name, decay in (("decay", 1 / (num_data * scale**2)), ("prior", 0.0)):
        weight = nn.Parameter(start.clone())
        optimiser = adam([{"params": [weight], "lr": 0.1}], weight_decay=decay)
        for _ in range(5):
            optimiser.zero_grad()
            loss = weight.sum()
            if name == "prior":
                prior = torch.distributions.Normal(0.0, scale)
                loss = loss - prior.log_prob(weight).sum() / num_data
            loss.backward()
            optimiser.step()
        steps[name] = weight.detach()
    torch.testing.assert_close(steps["decay"], steps["prior"])


def test_methods_are_told_by_their_class():
    assert all(isinstance(kind(), Method) for kind in METHODS.values())
    assert not isinstance(nn.Linear(1, 1), Method)
