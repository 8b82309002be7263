import pytest
import torch
from torch import Tensor, nn

from bayesify.distributions.mean_field import magnitudes
from bayesify.distributions.priors import NormalPrior
from bayesify.distributions.shared.normal import SharedNormal
from bayesify.methods.sharing import tuning as shared_tuning
from bayesify.methods.sharing.codebook import share
from bayesify.methods.sharing.merging import MergeLimits, current, merge
from bayesify.methods.sharing.structure import Source
from bayesify.methods.sharing.tuning import Tuning, TuningOptions
from bayesify.training.objective import negative_elbo
from bayesify.training.problem import Problem
from bayesify.weights.named import weights_of
from bayesify.weights.noise_scope import noise_scopes
from zoo import NETS

LAWS = ("per_weight", "per_layer", "shared_loc", "shared")
EVERYTHING = MergeLimits(1e9)


def tuning(
    law: str = "per_weight",
    *,
    scale: float = 0.05,
    codes: int = 12,
    outliers: float = 0.05,
    **changes,
) -> Tuning:
    """Of the matrices of a small network, at what they are now."""
    problem = NETS["mlp"].problem()
    loc = {name: each for name, each in weights_of(problem.model).items() if each.ndim > 1}
    wide = {name: scale * each.std() * torch.rand_like(each).exp() for name, each in loc.items()}
    source, q = share(
        loc, wide, codes=codes, outliers=outliers, law=law, blending=law != "shared", em_steps=10
    )
    return tuned(q, source, problem, **changes)


def tuned(q: SharedNormal, source: Source, problem: Problem, **changes) -> Tuning:
    given = {
        "epochs": 4,
        "lr": 0.03,
        "scale_lr": 0.03,
        "prior_scale": 0.3,
        "prior_loc": "start",
        "temperature": 0.1,
        "limits": None,
    }
    options = TuningOptions(**(given | changes))
    made = Tuning(options, problem, source, q)
    made.steps = made.run(lr=options.lr, scale_lr=options.scale_lr, epochs=options.epochs)
    return made


def epoch(made: Tuning) -> list[float]:
    return [made.steps.step(x, y)["loss"] for x, y in made.problem.data.batches()]


def everything(problem: Problem) -> tuple[Tensor, Tensor]:
    batches = list(problem.data.batches())
    return tuple(torch.cat(each) for each in zip(*batches, strict=True))


# --- gradients


@pytest.mark.parametrize(("law", "outliers"), [("per_weight", 0.0), *((law, 0.05) for law in LAWS)])
def test_without_a_prior_the_loss_on_the_data_falls(law, outliers):
    made = tuning(law, outliers=outliers, temperature=0.0, codes=40, lr=0.1, epochs=20)
    losses = [epoch(made) for _ in range(20)]
    assert sum(losses[-1]) < 0.7 * sum(losses[0])


def test_the_gradient_of_a_code_is_the_sum_over_its_weights():
    """Without noise, and without blends: unit times dL/dw, summed."""
    made = tuning("shared", scale=1e-12, temperature=0.0)
    with torch.no_grad():
        made.q.spread.zero_()
    q, problem = made.q, made.problem
    x, y = next(problem.data.batches())
    point = q.point()
    weights = {name: each.clone().requires_grad_() for name, each in point.items()}
    out = torch.func.functional_call(problem.model, weights, (x,))
    loss = nn.functional.cross_entropy(out, y)
    by_weight = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
    assert made.steps.step(x, y)["loss"] == pytest.approx(loss.item(), rel=1e-5)
    book, own = torch.zeros(len(q.loc)), []
    for unit, (name, coded) in zip(q.unit, q.tensors().items(), strict=True):
        assert len(coded.blends) == 0
        slope = unit * by_weight[name].flatten()
        outliers = coded.outliers.tolist()
        own += [slope[i] for i in outliers]
        for i, code in enumerate(coded.codes.flatten().tolist()):
            book[code] += 0.0 if i in outliers else slope[i]
    assert book.abs().max() > 0.01
    torch.testing.assert_close(q.loc.grad, book, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(q.own_loc.grad, torch.stack(own), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("prior_loc", ["start", "zero"])
def test_the_loss_is_the_negative_elbo_with_a_prior_relative_to_each_tensor(prior_loc):
    made = tuning(temperature=0.7, prior_loc=prior_loc, prior_scale=0.4)
    q, problem = made.q, made.problem
    start = q.point()
    prior = NormalPrior(
        {name: 0.4 * each for name, each in magnitudes(start).items()},
        loc=start if prior_loc == "start" else None,
    )
    x, y = next(problem.data.batches())
    noise = torch.Generator().set_state(problem.generator.get_state())
    want = negative_elbo(
        problem.model,
        q,
        problem.likelihood,
        prior,
        x,
        y,
        num_data=48,
        temperature=0.7,
        generator=noise,
        scopes=noise_scopes(problem.model, problem.data.example, q.names),
    )
    assert made.steps.step(x, y)["loss"] == pytest.approx(want.item(), rel=1e-5)


def test_scales_have_a_rate_of_their_own():
    made = tuning(lr=1e-12, scale_lr=0.1)
    before = {name: each.clone() for name, each in made.q.named_parameters()}
    epoch(made)
    for name, each in made.q.named_parameters():
        moved = (each - before[name]).abs().max().item()
        assert (moved > 0.05) == name.endswith("log_scale")


# --- what happens between epochs


@pytest.mark.parametrize("limits", [None, MergeLimits(0.05), EVERYTHING])
@pytest.mark.parametrize("law", LAWS)
def test_restructuring_keeps_parameters_and_outliers(law, limits):
    made = tuning(law, limits=limits)
    before = {name: id(each) for name, each in made.q.named_parameters()}
    outliers = {name: each.outliers.tolist() for name, each in made.q.tensors().items()}
    for _ in range(3):
        epoch(made)
        own = made.q.own_loc.clone()
        made.restructure()
        assert torch.equal(made.q.own_loc, own)
    assert {name: id(each) for name, each in made.q.named_parameters()} == before
    assert {name: each.outliers.tolist() for name, each in made.q.tensors().items()} == outliers
    assert sum(len(each) for each in outliers.values()) > 0


@pytest.mark.parametrize("law", LAWS)
def test_without_merging_the_book_stays(law):
    made = tuning(law)
    epoch(made)
    before = {name: each.clone() for name, each in made.q.named_parameters()}
    made.restructure()
    for name, each in made.q.named_parameters():
        torch.testing.assert_close(each, before[name], rtol=1e-6, atol=1e-7)


def used(q: SharedNormal) -> list[int]:
    found = [each.codes.flatten()[each.alone()] for each in q.tensors().values()]
    found += [each.codes.flatten()[each.blends.long()] for each in q.tensors().values()]
    found += [each.second for each in q.tensors().values()]
    return torch.cat(found).unique().tolist()


@pytest.mark.parametrize("law", LAWS)
def test_merged_codes_share_the_first_entry_and_the_others_never_return(law):
    made = tuning(law, limits=EVERYTHING)
    q = made.q
    epoch(made)
    mixture, codes = current(made._source, q)
    before = q.loc.detach().clone()
    made.restructure()
    assert used(q) == [0] == codes[:1].tolist()
    pooled = (mixture.weight @ mixture.loc)[0].item()
    assert q.loc[0].item() == pytest.approx(pooled, abs=1e-6)
    assert torch.equal(q.loc[1:], before[1:])
    assert len(q.compacted().loc) == 1
    again = tuned(q, made._source, made.problem)
    epoch(again)
    again.restructure()
    assert used(q) == [0]


def test_some_merge_and_predictions_go_on_with_fewer():
    made = tuning(limits=MergeLimits(0.05))
    epoch(made)
    made.restructure()
    small = made.q.compacted()
    assert 1 < len(small.loc) < len(made.q.loc)
    for name, each in small.point().items():
        assert torch.equal(each, made.q.point()[name])
        torch.testing.assert_close(small.scale()[name], made.q.scale()[name])
    epoch(made)  # with the gradients of fewer


@pytest.mark.parametrize("law", ["shared_loc", "shared"])
def test_merged_codes_have_the_spread_of_both_and_of_the_way_between(law):
    made = tuning(law, limits=EVERYTHING)
    q = made.q
    with torch.no_grad():
        q.spread.uniform_(-0.3, 0.3)
    mixture, _ = current(made._source, q)
    lower = torch.zeros(len(q.loc), 2, 2).double()
    lower[:, 0, 0] = q.spread[:, 0].detach()
    if law == "shared":
        lower[:, 1, 0], lower[:, 1, 1] = q.spread[:, 1:].detach().T
    loc = torch.stack([q.loc, q.log_scale], 1).detach().double()
    off = loc - mixture.weight @ loc
    inside = lower @ lower.mT + off[:, :, None] * off[:, None, :]
    want = (mixture.weight[:, None, None] * inside).sum(0)
    others = q.spread[1:].detach().clone()
    made.restructure()
    a, *rest = q.spread[0].tolist()
    assert a**2 == pytest.approx(want[0, 0].item(), rel=1e-5)
    if law == "shared":
        b, c = rest
        assert a * b == pytest.approx(want[0, 1].item(), rel=1e-4)
        assert b**2 + c**2 == pytest.approx(want[1, 1].item(), rel=1e-5)
    assert torch.equal(q.spread[1:], others)


def test_blends_follow_their_codes():
    """A blend of two that merge is a shared entry; the others stay as they are."""
    loc, problem = {"w": torch.randn(1000)}, NETS["mlp"].problem()
    scale = {"w": 0.1 * torch.randn(1000).exp()}
    source, q = share(loc, scale, codes=12, outliers=0.0, blending=True, em_steps=10)
    before = q.tensors()["w"]
    mixture, _ = current(source, q)
    limits = MergeLimits(0.3)
    group = merge(mixture, limits)[1]
    assert 1 < len(group.unique()) < len(group)
    tuned(q, source, problem, limits=limits).restructure()
    after = q.tensors()["w"]
    new = group.unique()[:, None].eq(group).int().argmax(1)[group]  # the first of each group
    assert torch.equal(after.codes.long(), new[before.codes.long()])
    first, second = new[before.codes[before.blends.long()].long()], new[before.second.long()]
    real = first != second
    assert 0 < real.sum() < len(real)
    assert torch.equal(after.blends, before.blends[real])
    assert torch.equal(after.second.long(), second[real])
    assert torch.equal(after.share, before.share[real])


@pytest.mark.parametrize("limits", [None, MergeLimits(0.0)])
def test_weights_stay_with_their_codes_however_far_these_move(limits):
    made = tuning(limits=limits)
    codes = {name: each.codes.clone() for name, each in made.q.tensors().items()}
    with torch.no_grad():
        made.q.loc += torch.randn_like(made.q.loc)
        made.q.log_scale -= 2
    point = made.q.point()
    made.restructure()
    for name, each in made.q.tensors().items():
        assert torch.equal(each.codes, codes[name])
        torch.testing.assert_close(made.q.point()[name], point[name])


def test_the_gate_reads_the_mean_of_the_epochs_gradients(monkeypatch):
    seen: list[Tensor] = []
    merge = shared_tuning.merge

    def spy(mixture, limits, slope):
        seen.append(slope.clone())
        return merge(mixture, limits, slope)

    monkeypatch.setattr(shared_tuning, "merge", spy)
    made = tuning(limits=MergeLimits(0.0))
    for _ in range(2):
        steps = []
        for x, y in made.problem.data.batches():
            made.steps.step(x, y)
            steps.append(made.q.loc.grad.clone())
        _, codes = current(made._source, made.q)
        made.restructure()
        assert len(steps) == 3
        torch.testing.assert_close(seen[-1], torch.stack(steps).mean(0)[codes])
    assert not torch.equal(*seen)
