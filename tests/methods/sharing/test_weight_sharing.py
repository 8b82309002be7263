import json
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from bayesify import (
    MAP,
    SWAG,
    DiagonalLaplace,
    Ensemble,
    MeanFieldVI,
    WeightPosterior,
    WeightSharing,
    fit,
    load,
    matching,
    matrices,
    save,
)
from bayesify.core.errors import DivergenceError, OptionError, UnsupportedModelError
from bayesify.core.options import from_json, to_json
from bayesify.distributions.mean_field import MeanField
from bayesify.distributions.shared.normal import LAWS, SharedNormal
from bayesify.methods.sharing import weight_sharing
from bayesify.methods.sharing.codebook import share
from bayesify.methods.sharing.structure import Source
from bayesify.methods.sharing.weight_sharing import SharingRun, accumulated_gradient
from bayesify.training.data import TrainingData
from bayesify.training.problem import Problem
from bayesify.weights.named import weights_of
from zoo import NETS, TiedNet

LAPLACE = DiagonalLaplace(pretrain=None, where=matrices, factor=0.1)
VI = MeanFieldVI(pretrain=None, epochs=2, temperature=0.1)
WANDERING = SWAG(pretrain=None, burn_in=0, epochs=2, where=matrices)
PLAIN = WeightSharing(pretrain=None, mean_field=LAPLACE, codes=12, outliers=0.05)


def run_through(method: WeightSharing, problem: Problem) -> SharingRun:
    run = method.start(problem)
    for epoch in range(run.epochs):
        for inputs, target in problem.data.batches():
            run.step(inputs, target)
        run.end_epoch(epoch)
    return run


def fitted(method: WeightSharing, net: str = "mlp", **given) -> WeightPosterior:
    return fit(NETS[net].model(), NETS[net].data(), method, batch_size=16, **given)


def outliers(q: SharedNormal) -> dict[str, list[int]]:
    return {name: each.outliers.tolist() for name, each in q.tensors().items()}


def largest(scores: dict[str, Tensor], share: float) -> dict[str, list[int]]:
    flat = torch.cat([each.flatten() for each in scores.values()])
    least = flat.topk(round(share * len(flat))).values.min()
    return {
        name: (each.flatten() >= least).nonzero()[:, 0].tolist() for name, each in scores.items()
    }


# --- without tuning


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("source", [LAPLACE, VI, WANDERING])
def test_without_tuning_it_is_the_sources_posterior_shared_and_rounded(law, source):
    problem = NETS["mlp"].problem()
    method = replace(PLAIN, mean_field=source, law=law)
    run = method.start(problem)
    assert run.epochs == source.start(NETS["mlp"].problem()).epochs
    for epoch in range(run.epochs):
        for inputs, target in problem.data.batches():
            run.step(inputs, target)
        before = run.posterior().q
        generator = torch.Generator().set_state(problem.generator.get_state())
        run.end_epoch(epoch)
    scale = {name: each.detach() for name, each in before.scale.items()}
    _, want = share(before.point(), scale, codes=12, outliers=0.05, law=law, generator=generator)
    got, want = run.posterior().q.state_dict(), want.rounded().state_dict()
    assert got.keys() == want.keys()
    for name, each in want.items():
        assert torch.equal(got[name], each), name


@pytest.mark.parametrize("changes", [{}, {"epochs": 2}, {"mean_field": VI}])
def test_all_learnt_numbers_are_exact_in_half_precision(changes):
    q = fitted(replace(PLAIN, **changes)).q
    assert isinstance(q, SharedNormal)
    for each in q.parameters():
        assert torch.equal(each, each.half().float())
    assert len(q.own_loc) == round(0.05 * sum(each.numel() for each in q.point().values()))


def test_the_default_source_leaves_biases_and_norms_alone():
    assert WeightSharing().mean_field == DiagonalLaplace(pretrain=None, where=matrices)
    method = WeightSharing(pretrain=None, codes=8)
    posterior = fitted(method, "cnn", validation=NETS["cnn"].data(seed=3))
    assert posterior.q.names == ["0.weight", "5.weight"]
    model = NETS["cnn"].model()
    for name, each in weights_of(posterior.model).items():
        assert torch.equal(each, weights_of(model)[name])
    q = posterior.q
    assert posterior.trainable_parameters == 2 * (len(q.loc) + len(q.own_loc))


def test_the_network_is_trained_first():
    posterior = fitted(replace(PLAIN, pretrain=MAP(epochs=2), epochs=2))
    phases = [each["phase"] for each in posterior.record.history]
    assert phases == ["MAP"] * 2 + ["WeightSharing"] * 3


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("epochs", [0, 2])
def test_a_saved_one_predicts_the_same(tmp_path, law, epochs):
    if law == "fixed" and epochs:
        return
    method = replace(PLAIN, law=law, epochs=epochs, blending=True, em_steps=5)
    posterior, x = fitted(method), NETS["mlp"].inputs(7)
    save(posterior, tmp_path / "saved")
    again = load(tmp_path / "saved", NETS["mlp"].model(seed=4))
    for n in (1, 5):
        assert torch.equal(again.outputs(x, num_samples=n), posterior.outputs(x, num_samples=n))


# --- outliers


def test_the_largest_may_be_the_outliers():
    q = fitted(replace(PLAIN, outlier_rule="magnitude")).q
    weights = {n: e for n, e in weights_of(NETS["mlp"].model()).items() if e.ndim > 1}
    sizes = {n: each.abs() / each.square().mean().sqrt() for n, each in weights.items()}
    assert outliers(q) == largest(sizes, 0.05)


def gradients(problem: Problem, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """By hand: of the mean cross entropy, their sizes summed over batches, times each unit."""
    held = {name: each.clone().requires_grad_() for name, each in weights.items()}
    total = {name: torch.zeros_like(each) for name, each in weights.items()}
    for x, y in problem.data.batches():
        out = torch.func.functional_call(problem.model, held, (x,))
        found = torch.autograd.grad(nn.functional.cross_entropy(out, y), list(held.values()))
        for (name, size), each in zip(total.items(), found, strict=True):
            size += each.abs() * weights[name].square().mean().sqrt()
    return total


@pytest.fixture
def problem() -> Problem:
    """With batches that do not change."""
    made = NETS["mlp"].problem()
    batches = list(made.data.batches())
    return replace(made, data=TrainingData.of(lambda: iter(batches)))


@pytest.mark.parametrize("source", [None, DiagonalLaplace, "diagonal-laplace"])
def test_the_source_is_an_instance_of_a_method(source):
    with pytest.raises(OptionError, match="expected an instance of a method"):
        WeightSharing(mean_field=source)


def test_what_tuning_has_not_looked_at_is_looked_at_when_its_epoch_ends(problem):
    run = replace(PLAIN, epochs=2).start(problem)
    for x, y in problem.data.batches():
        run.step(x, y)
    run.end_epoch(0)
    run._run._sound = torch.tensor(False)  # as on an accelerator, after a loss that is no number
    with pytest.raises(DivergenceError, match="diverged in epoch 0"):
        run.end_epoch(1)


@pytest.mark.parametrize("order", [1, -1])
def test_the_accumulated_gradient_is_that_of_the_means_in_units(problem, order):
    names = [name for name, each in weights_of(problem.model).items() if each.ndim > 1][::order]
    loc = {name: weights_of(problem.model)[name] + 0.1 for name in names}
    source = Source.of(loc, {name: torch.ones_like(each) for name, each in loc.items()})
    found = accumulated_gradient(problem, source)
    assert list(found) == names
    for name, each in gradients(problem, loc).items():
        torch.testing.assert_close(found[name], each.flatten(), rtol=1e-4, atol=1e-6)


def test_those_of_the_largest_gradients_may_be_the_outliers(problem):
    weights = {n: e for n, e in weights_of(problem.model).items() if e.ndim > 1}
    q = run_through(replace(PLAIN, outlier_rule="gradient"), problem).posterior().q
    assert outliers(q) == largest(gradients(problem, weights), 0.05)
    assert not any(each.requires_grad for each in problem.model.parameters())


class Idle(nn.Module):
    """Has a matrix that no prediction reads."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.used = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@pytest.mark.parametrize(("model", "net"), [(Idle, "mlp"), (TiedNet, "tied")])
def test_weights_may_be_idle_or_tied(model, net):
    method = replace(PLAIN, outlier_rule="gradient", epochs=1)
    q = fit(model(), NETS[net].data(), method, batch_size=16).q
    assert "idle.weight" not in q.names or not outliers(q)["idle.weight"]
    assert len(q.own_loc) > 0


# --- tuning


def test_tuning_adds_its_epochs_to_the_sources():
    run = run_through(replace(PLAIN, mean_field=VI, epochs=3), NETS["mlp"].problem())
    assert run.epochs == 5
    history = fitted(replace(PLAIN, mean_field=VI, epochs=3)).record.history
    assert len(history) == 5
    for each in history:
        assert each["loss"] == pytest.approx(each["nll"] + 0.1 * each["kl"] / 48, rel=1e-4)


def test_what_has_been_learnt_can_be_read_at_any_time():
    problem = NETS["mlp"].problem()
    run, x = replace(PLAIN, epochs=2).start(problem), NETS["mlp"].inputs(3)
    kinds = []
    for epoch in range(run.epochs):
        kinds.append(type(run.posterior().q))
        for inputs, target in problem.data.batches():
            run.step(inputs, target)
        assert run.posterior().outputs(x, num_samples=2).shape == (2, 3, 3)
        run.end_epoch(epoch)
    assert [*kinds, type(run.posterior().q)] == [
        MeanField,
        SharedNormal,
        SharedNormal,
        SharedNormal,
    ]


@pytest.mark.parametrize(
    ("epochs", "wanted"), [(1, []), (2, [0]), (3, [0, 1]), (6, [0, 1, 2, 3]), (7, [0, 1, 2, 3])]
)
def test_the_structure_rests_in_the_last_third(monkeypatch, epochs, wanted):
    seen: list[int] = []
    now = -1
    restructure = weight_sharing.Tuning.restructure

    def spy(tuning: weight_sharing.Tuning) -> None:
        seen.append(now)
        restructure(tuning)

    monkeypatch.setattr(weight_sharing.Tuning, "restructure", spy)
    problem = NETS["mlp"].problem()
    run = replace(PLAIN, epochs=epochs).start(problem)
    for epoch in range(run.epochs):
        now = epoch - 1  # of tuning
        run.step(*next(problem.data.batches()))
        run.end_epoch(epoch)
    assert seen == wanted
    assert all(each < 2 * epochs / 3 for each in seen)


def test_merged_codes_are_gone_in_the_end():
    method = replace(PLAIN, epochs=3, merge_gradient=1e9, merge_variance=1e9)
    sizes = [
        len(fitted(replace(method, merge_distance=distance)).q.loc) for distance in (0.0, 0.1, 1e9)
    ]
    assert sizes[0] > sizes[1] > sizes[2] == 1


def test_means_and_scales_are_learnt_from_the_data():
    def nll(epochs: int) -> float:
        method = replace(PLAIN, codes=60, epochs=epochs, lr=0.1, temperature=0.0)
        posterior, data = fitted(method), NETS["mlp"].data()
        return -posterior.predict(data.inputs).log_prob(data.target).mean().item()

    assert nll(20) < 0.85 * nll(0)


@pytest.mark.parametrize(
    ("changes", "times"),
    [
        ({"epochs": 1}, 1),
        ({}, 0),
        ({"epochs": 1, "rescale": False}, 0),
        ({"mean_field": WANDERING}, 1),
    ],
)
def test_after_tuning_or_without_covariances_noise_is_scaled_on_validation_examples(
    monkeypatch, changes, times
):
    seen: list[WeightPosterior] = []

    def spy(posterior, batches, *, num_samples):
        assert [len(target) for _, target in batches()] == [16, 14]
        assert num_samples == 3
        seen.append(posterior)
        return 0.5

    monkeypatch.setattr(weight_sharing, "best_factor", spy)
    method = replace(PLAIN, num_samples=3, **changes)
    data = NETS["mlp"].data(30, seed=3)
    posterior = fitted(method, validation=data)
    assert len(seen) == times
    unscaled = fitted(method)
    want = unscaled.q.log_scale + (math.log(0.5) if times else 0.0)
    torch.testing.assert_close(
        posterior.q.log_scale, want, rtol=0, atol=2**-7
    )  # of float16 below 16
    assert torch.equal(posterior.q.loc, unscaled.q.loc)


def test_weights_that_never_moved_keep_next_to_no_noise_and_the_likelihood_its_own():
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        net[0].bias[0], net[0].weight[0] = -100.0, 0.0  # dead, and decay leaves zeros alone
    x = torch.randn(40, 3)
    source = replace(WANDERING, where=matching("*.weight"), epochs=4)
    method = replace(PLAIN, mean_field=source, codes=4)
    posterior = fit(net, (x, x.sum(1)), method, likelihood="gaussian")
    assert posterior.q.log_scale.isfinite().all()
    scale = posterior.q.scale()["0.weight"]
    assert scale[0].max() < 0.1 * scale[1:].median()
    alone = fit(net, (x, x.sum(1)), source, likelihood="gaussian")
    assert torch.equal(posterior.likelihood.log_scale, alone.likelihood.log_scale)


# --- options


def test_the_published_settings_are_saved_and_start():
    method = WeightSharing.as_published(pretrain=None, mean_field=LAPLACE, epochs=2)
    assert (method.law, method.codes, method.outlier_rule) == ("shared_loc", 6000, "gradient")
    assert WeightSharing.as_published().epochs == 200
    assert from_json(json.loads(json.dumps(to_json(method)))) == method
    assert from_json(json.loads(json.dumps(to_json(WeightSharing())))) == WeightSharing()
    assert fitted(method).q.law == "shared_loc"


def test_as_many_codes_as_an_int16_holds():
    assert fitted(replace(PLAIN, codes=2**15)).q.loc.numel() <= 120
    for codes in (0, 2**15 + 1):
        with pytest.raises(OptionError, match=f"codes={codes}"):
            replace(PLAIN, codes=codes)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mean_field": MeanFieldVI(pretrain=MAP())}, r"mean_field=.*pretrain=None.*move it there"),
        ({"law": "fixed", "epochs": 1}, "law='fixed'.*nothing random"),
        ({"law": "martial"}, "law='martial'.*'per_weight', 'per_layer'"),
        ({"outlier_rule": "taste"}, "outlier_rule='taste'.*'quantisation', 'magnitude'"),
        ({"outliers": 0.6}, "outliers=0.6"),
        ({"merge_distance": -1.0}, "merge_distance=-1"),
        ({"merge_variance": 0.0}, "merge_variance=0"),
        ({"epochs": -1}, "epochs=-1"),
        ({"prior_loc": "here"}, "prior_loc='here'"),
    ],
)
def test_options_that_cannot_be_are_named(options, words):
    with pytest.raises(OptionError, match=words):
        replace(PLAIN, **options)


@pytest.mark.parametrize("source", [MAP(), Ensemble(members=2, epochs=1)])
def test_a_source_without_a_mean_field_posterior_is_named_before_training(source):
    words = rf"mean_field={type(source).__name__}\(.*mean-field"
    with pytest.raises(UnsupportedModelError, match=words):
        fitted(replace(PLAIN, pretrain=MAP(epochs=10**9), mean_field=source))


def test_what_is_shared_already_is_not_shared_again():
    with pytest.raises(UnsupportedModelError, match=r"mean_field=WeightSharing\(.*mean-field"):
        fitted(replace(PLAIN, mean_field=PLAIN))


def test_where_of_the_source_decides_what_is_shared():
    method = replace(PLAIN, mean_field=replace(LAPLACE, where=matching("4.*")))
    assert fitted(method).q.names == ["4.weight", "4.bias"]
