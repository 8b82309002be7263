import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bayesify import MAP, FineTunedEnsemble, Gaussian, fit
from bayesify.core.errors import OptionError
from bayesify.methods.members.fine_tuned_ensemble import OneByOne
from bayesify.posteriors.weight import WeightPosterior
from bayesify.training.problem import Problem
from zoo import NETS

METHOD = FineTunedEnsemble(pretrain=None, members=3, epochs=2, lr=0.01)
SEPARATE = MAP(epochs=2, lr=0.01)


def batches(member: int, net: str = "cnn") -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Two epochs of three batches, in an order of the member's own."""
    data, generator = NETS[net].data(), torch.Generator().manual_seed(member)
    for _ in range(2):
        order = torch.randperm(48, generator=generator).split(16)
        yield [(data.inputs[rows], data.target[rows]) for rows in order]


def run_of(problem: Problem, members: int = 3, *, batch_norm: str = "moving") -> OneByOne:
    """A run that has had the passes of its first `members`."""
    run, epoch = replace(METHOD, batch_norm=batch_norm).start(problem), 0
    for member in range(members):
        for passes in batches(member):
            for batch in passes:
                run.step(*batch)
            run.end_epoch(epoch)
            epoch += 1
    return run


def alone(member: int, *, batch_norm: str = "moving") -> WeightPosterior:
    """MAP from the given network on the batches of this member."""
    problem = NETS["cnn"].problem()
    run = SEPARATE.start(problem)
    problem.model[1].train(batch_norm == "moving")
    for epoch, passes in enumerate(batches(member)):
        for batch in passes:
            run.step(*batch)
        run.end_epoch(epoch)
    return run.posterior()


@pytest.mark.parametrize("batch_norm", ["frozen", "moving"])
def test_members_are_separate_fits_from_the_given_weights_on_batches_of_their_own(batch_norm):
    problem = NETS["cnn"].problem()
    before = copy.deepcopy(problem.model.state_dict())
    held = run_of(problem, batch_norm=batch_norm).posterior().q.sample(1)
    for member in range(3):
        for name, each in alone(member, batch_norm=batch_norm).q.sample(1).items():
            assert torch.equal(held[name][member], each[0]), name
    assert all(torch.equal(e, before[n]) for n, e in problem.model.state_dict().items())
    for first, second in ((0, 1), (1, 2)):
        assert not torch.equal(held["0.weight"][first], held["0.weight"][second])


def test_statistics_are_those_of_the_network_or_each_members_own():
    start = NETS["cnn"].model()
    start.train()(NETS["cnn"].inputs(32))
    frozen, moving = (
        fit(start, NETS["cnn"].data(), replace(METHOD, batch_norm=how), batch_size=16).q.sample(1)
        for how in ("frozen", "moving")
    )
    for name, each in start.named_buffers():
        assert torch.equal(frozen[name], each.expand_as(frozen[name]))
    assert moving["1.num_batches_tracked"].tolist() == [7, 7, 7]
    for m in range(3):
        assert not torch.equal(moving["1.running_mean"][m], start[1].running_mean)
        assert not torch.equal(moving["1.running_mean"][m], moving["1.running_mean"][m - 1])


def test_members_that_have_not_had_their_turn_are_the_given_network():
    problem = NETS["cnn"].problem()
    held = run_of(problem, members=1).posterior().q.sample(1)
    first = alone(0).q.sample(1)
    for name, each in problem.model.state_dict().items():
        assert torch.equal(held[name][0], first[name][0])
        assert torch.equal(held[name][1], each)
        assert torch.equal(held[name][2], each)


def test_the_run_is_as_long_as_all_members():
    assert METHOD.start(NETS["cnn"].problem()).epochs == 3 * 2
    history = fit(NETS["mlp"].model(), NETS["mlp"].data(), METHOD).record.history
    assert [entry["phase"] for entry in history] == ["FineTunedEnsemble"] * 6
    assert [entry["epoch"] for entry in history] == list(range(6))


def test_every_member_has_a_schedule_of_its_own():
    run = METHOD.start(NETS["mlp"].problem())
    moves, epoch = [], 0
    for member in range(3):
        for passes in batches(member, "mlp"):
            for batch in passes:
                before = run.posterior().q.sample(1)["0.weight"][member].clone()
                run.step(*batch)
                now = run.posterior().q.sample(1)["0.weight"][member]
                moves.append((now - before).abs().max().item())
            run.end_epoch(epoch)
            epoch += 1
    for first, last in ((0, 5), (6, 11), (12, 17)):
        assert moves[first] == pytest.approx(0.01, rel=0.01)
        assert moves[last] < 0.002


def test_the_order_of_the_batches_is_all_that_members_differ_by():
    net, data = NETS["mlp"], NETS["mlp"].data()
    shuffled = fit(net.model(), data, METHOD, batch_size=16).q.sample(1)
    same = fit(net.model(), DataLoader(data, batch_size=16), METHOD).q.sample(1)
    for name, each in same.items():
        assert torch.equal(each[0], each[1])
        assert torch.equal(each[0], each[2])
        assert not torch.equal(shuffled[name][0], shuffled[name][1])
        assert not torch.equal(shuffled[name][1], shuffled[name][2])


def test_members_start_at_the_pretrained_network():
    net, data = NETS["mlp"], NETS["mlp"].data()
    trained = fit(net.model(), data, MAP(epochs=3), seed=1).point()
    method = replace(METHOD, pretrain=MAP(epochs=3), lr=1e-12)
    posterior = fit(net.model(), data, method, seed=1)
    assert posterior.q.size(1) == 3
    for name, each in posterior.q.sample(1).items():
        torch.testing.assert_close(each, trained[name].expand_as(each), rtol=0, atol=1e-6)


def test_a_learnt_noise_is_the_mean_of_the_members_own():
    def problem() -> Problem:
        made = NETS["mlp"].problem()
        return replace(made, likelihood=Gaussian("learnt"), model=Line())

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.full((1, 4), 0.1))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.T * torch.ones(3)

    def targets(member: int) -> list[list[tuple[Tensor, Tensor]]]:
        return [
            [(x, y[:, None] * torch.ones(3)) for x, y in passes]
            for passes in batches(member, "mlp")
        ]

    def trained(method: FineTunedEnsemble | MAP, members: list[int]) -> tuple[float, float]:
        """The noise before and after."""
        task = problem()
        run, epoch = method.start(task), 0
        for member in members:
            for passes in targets(member):
                for batch in passes:
                    run.step(*batch)
                run.end_epoch(epoch)
                epoch += 1
        return task.likelihood.log_scale.item(), run.posterior().likelihood.log_scale.item()

    start, mixed = trained(METHOD, [0, 1, 2])
    own = [trained(SEPARATE, [member])[1] for member in range(3)]
    assert start == 0.0  # the given likelihood is where every member starts
    assert len(set(own)) == 3
    assert mixed == pytest.approx(sum(own) / 3)


def test_what_is_learnt_is_m_times_the_network():
    posterior = fit(NETS["mlp"].model(), NETS["mlp"].data(), METHOD)
    assert posterior.trainable_parameters == 3 * sum(
        each.numel() for each in NETS["mlp"].model().parameters()
    )


def frozen_first() -> WeightPosterior:
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    net[0].requires_grad_(False)
    return fit(net, NETS["mlp"].data(), METHOD)


def test_frozen_weights_stay_as_they_are():
    posterior = frozen_first()
    held = posterior.q.sample(1)
    assert torch.equal(held["0.weight"], posterior.model[0].weight.expand(3, -1, -1))
    assert not torch.equal(held["2.weight"][0], held["2.weight"][1])


def test_frozen_weights_do_not_count_as_learnt():
    assert frozen_first().trainable_parameters == 3 * 27


def test_an_ensemble_has_two_members_at_least():
    with pytest.raises(OptionError, match="members=1"):
        FineTunedEnsemble(members=1)


def test_batch_norm_is_frozen_or_moving():
    with pytest.raises(OptionError, match=r"batch_norm='melting'.*'frozen', 'moving'"):
        FineTunedEnsemble(batch_norm="melting")
