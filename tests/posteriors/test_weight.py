from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bayesify import (
    MAP,
    STF,
    Ensemble,
    MeanField,
    MeanFieldVI,
    WeightPosterior,
    first_layer,
    fit,
    last_layer,
)
from bayesify.core.errors import OptionError
from bayesify.likelihoods import Categorical, Gaussian
from bayesify.posteriors.weight import FitRecord, Posterior
from zoo import NETS


@pytest.fixture
def posterior() -> WeightPosterior:
    net = NETS["cnn"].model()
    return WeightPosterior(net, MeanField.around(net, where=first_layer, scale=0.2), Categorical())


X = NETS["cnn"].inputs(6)


def test_it_predicts_the_mean_of_the_samples_probabilities(posterior):
    raw = posterior.outputs(X, num_samples=7)
    torch.testing.assert_close(posterior.predict(X, num_samples=7).probs, raw.softmax(2).mean(0))


def test_the_same_samples_serve_every_call(posterior):
    assert torch.equal(posterior.outputs(X), posterior.outputs(X))
    torch.testing.assert_close(posterior.outputs(X[2:4]), posterior.outputs(X)[:, 2:4])


def test_the_model_is_called_in_eval_mode_and_left_in_its_own(posterior):
    posterior.model.train()
    held = posterior.model[1].running_mean.clone()
    posterior.predict(X)
    assert posterior.model.training
    assert torch.equal(posterior.model[1].running_mean, held)


def test_outputs_are_differentiable_in_the_inputs_and_predictions_are_not(posterior):
    x = X.clone().requires_grad_()
    posterior.outputs(x, num_samples=3).sum().backward()
    assert x.grad.abs().sum() > 0
    assert not posterior.predict(x).logits.requires_grad


@pytest.mark.parametrize("name", ["num_samples", "chunk_size"])
@pytest.mark.parametrize("value", [0, -3])
def test_counts_are_at_least_one(posterior, name, value):
    for call in (posterior.predict, posterior.outputs):
        with pytest.raises(OptionError, match=rf"{name}={value}: expected at least 1"):
            call(X, **{name: value})


def test_the_counts_of_numbers(posterior):
    first = posterior.model[0].weight.numel()
    total = sum(each.numel() for each in posterior.model.parameters())
    statistics = 4 + 4 + 1
    assert posterior.trainable_parameters == 2 * first
    assert posterior.stored_parameters == 2 * first + (total - first) + statistics
    assert "0.weight" not in posterior.base()
    assert set(posterior.base()) | {"0.weight"} == set(posterior.model.state_dict())


def test_a_learnt_noise_counts():
    net = nn.Linear(3, 1)
    posterior = WeightPosterior(net, MeanField.around(net), Gaussian("learnt"))
    assert posterior.trainable_parameters == 9
    assert posterior.stored_parameters == 9


def test_types_decide_whether_samples_run_at_once_unless_told():
    net = NETS["lstm"].model()
    q = MeanField.around(net)
    assert not WeightPosterior(net, q, Categorical()).vectorize
    assert WeightPosterior(net, q, Categorical(), vectorize=True).vectorize


def test_it_says_what_it_is(posterior):
    said = "WeightPosterior(Sequential, MeanField over 1 tensors, Categorical, samples at once)"
    assert repr(posterior) == said


def test_inputs_of_another_size_are_measured_anew():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    wide = WeightPosterior(net, MeanField.around(net), Categorical())
    sizes = [wide._chunk_size(torch.zeros(2, 1, side, side), 100) for side in (8, 64, 8)]
    assert sizes[0] == sizes[2] > sizes[1]


def test_a_posterior_goes_on_from_its_point():
    data = NETS["mlp"].data()
    posterior = fit(NETS["mlp"].model(), data, STF(pretrain=MAP(epochs=1), epochs=1))
    assert list(posterior.point()) == posterior.q.names


def test_a_record_is_plain_values():
    record = FitRecord(options={"kind": "MAP"}, seed=1, num_data=2)
    assert FitRecord(**record.to_json()) == record


def test_the_abstract_posterior_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        Posterior()


def flops(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("vectorize", [True, False])
def test_samples_in_chunks_compute_once_what_they_have_in_common(vectorize):
    net = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    q = MeanField.around(net, where=last_layer, scale=0.1)
    posterior = WeightPosterior(net, q, Categorical(), vectorize=vectorize)
    x, trunk, head = torch.randn(16, 8), 2 * 16 * (8 + 64) * 64, 2 * 16 * 64 * 2
    posterior.predict(x, num_samples=6, chunk_size=2)  # finds the trunk
    count = flops(lambda: posterior.predict(x, num_samples=6, chunk_size=2))
    assert count == trunk + 6 * head
    with torch.no_grad():
        at_once = WeightPosterior(net, q, Categorical()).outputs(x, num_samples=6, chunk_size=6)
        chunks = posterior.outputs(x, num_samples=6, chunk_size=2)
    torch.testing.assert_close(chunks, at_once)


def test_whoever_differentiates_gets_the_whole_graph_in_chunks_too():
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    posterior = WeightPosterior(net, MeanField.around(net, where=last_layer), Categorical())
    slopes = []
    for chunk_size in (1, 5):
        x = torch.ones(3, 4, requires_grad=True)
        posterior.outputs(x, num_samples=5, chunk_size=chunk_size).square().sum().backward()
        slopes.append(x.grad)
    assert slopes[0].abs().sum() > 0
    torch.testing.assert_close(*slopes)


def test_one_more_sample_costs_numbers_only_where_there_are_members():
    net, (x, y) = nn.Linear(4, 3), (torch.randn(30, 4), torch.arange(30) % 3)
    three = fit(net, (x, y), Ensemble(members=3, epochs=1))
    assert three.member_parameters == 15
    gaussian = fit(net, (x, y), MeanFieldVI(pretrain=None, epochs=1))
    assert gaussian.member_parameters == 0
