import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bayesify
from bayesify.core.errors import DataError, OptionError, ShapeError
from bayesify.evaluation.diagnosis import retraining
from bayesify.evaluation.diagnosis.retraining import InEvalMode, Retraining
from bayesify.likelihoods import Gaussian
from bayesify.methods.members.map import MAP
from zoo import LSTMNet

QUICK = MAP(epochs=2)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(40, 4, generator=generator), torch.randint(3, (40,), generator=generator)


@pytest.fixture
def net():
    return nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)
    )


@pytest.fixture
def posteriors(monkeypatch):
    """All that `fit` returns to a retraining."""
    seen = []

    def spy(*args, **kwargs):
        seen.append(bayesify.fit(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(retraining, "fit", spy)
    return seen


def head(value=0.0):
    return {"4.weight": torch.full((3, 6), value), "4.bias": torch.full((3,), value)}


def test_a_linear_model_ends_at_the_closed_form():
    x = torch.randn(50, 3)
    y = x @ torch.tensor([1.0, -2.0, 0.5]) + 0.3 + 0.1 * torch.randn(50)
    retrain = Retraining(
        nn.Linear(3, 1),
        (x, y),
        method=MAP(epochs=300, lr=0.1, prior_scale=0.5),
        likelihood=Gaussian(1.0),
        batch_size=50,
    )
    found, predictions = retrain({"weight": torch.full((1, 3), 2.0), "bias": torch.ones(1)})
    design = torch.cat([x, torch.ones(50, 1)], 1).double()
    ridge = design.T @ design + torch.eye(4).double() / 0.5**2
    want = torch.linalg.solve(ridge, design.T @ y.double())
    got = torch.cat([found["weight"].flatten(), found["bias"]]).double()
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(predictions.mean[:, 0].double(), design @ got, rtol=1e-4, atol=1e-4)


def test_the_trunk_and_its_statistics_stay_bitwise(net, data, posteriors):
    net(data[0])  # moves the statistics away from 0 and 1
    found, _ = Retraining(net, data, method=QUICK)(head())
    (posterior,) = posteriors
    learnt = posterior.point()
    assert learnt.keys() == net.state_dict().keys()
    for name, each in net.state_dict().items():
        assert torch.equal(learnt[name], each) == (name not in found), name


def test_in_train_mode_the_statistics_would_move(net, data):
    frozen = copy.deepcopy(net).requires_grad_(False)
    frozen[4].requires_grad_(True)
    moved = bayesify.fit(frozen, data, QUICK).point()
    held = bayesify.fit(frozen, data, InEvalMode(QUICK)).point()
    assert not torch.equal(moved["1.running_mean"], net[1].running_mean)
    assert torch.equal(held["1.running_mean"], net[1].running_mean)
    assert torch.equal(held["1.num_batches_tracked"], net[1].num_batches_tracked)


def test_a_first_layer_is_trained_through_the_frozen_rest(net, data):
    start = {"0.weight": torch.randn(6, 4), "0.bias": torch.zeros(6)}
    found, _ = Retraining(net, data, method=QUICK)(start)
    assert all(not torch.equal(found[name], start[name]) for name in start)


def test_the_model_given_is_not_touched(net, data):
    before = copy.deepcopy(net.state_dict())
    net[0].requires_grad_(False)
    likelihood = Gaussian()
    data = data[0], torch.randn(40, 3)
    Retraining(net, data, method=QUICK, likelihood=likelihood)(head(0.1))
    assert all(torch.equal(each, before[name]) for name, each in net.state_dict().items())
    assert net.training
    assert [each.requires_grad for each in net.parameters()] == [False] * 2 + [True] * 4
    assert likelihood.log_scale.item() == 0.0


def test_what_is_predicted_as_given_is_what_the_model_says(net, data):
    retrain = Retraining(net, data, method=QUICK)
    want = copy.deepcopy(net).eval()(data[0]).softmax(1).detach()
    torch.testing.assert_close(retrain.given.probs, want)
    assert not retrain.model.training
    assert not any(each.requires_grad for each in retrain.model.parameters())


def test_a_retraining_is_a_function_of_its_start(net, data):
    retrain = Retraining(net, data, method=QUICK, seed=3)
    first, predictions = retrain(head())
    torch.randn(7)  # the global generator is somewhere else now
    again, others = retrain(head())
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.equal(predictions.probs, others.probs)


def test_validation_is_what_is_predicted(net, data):
    validation = torch.randn(7, 4), torch.zeros(7, dtype=torch.int64)
    retrain = Retraining(net, data, validation=validation, method=QUICK)
    assert len(retrain.given) == len(retrain(head())[1]) == 7
    assert sum(len(each) for each in retrain.inputs()) == 40


def test_pretraining_is_in_eval_mode_too():
    method = InEvalMode(bayesify.STF(pretrain=MAP(epochs=1)))
    assert method.pretrain == InEvalMode(MAP(epochs=1))
    assert InEvalMode(MAP()).pretrain is None


def test_recurrent_layers_run(posteriors):
    model = LSTMNet()
    data = torch.randn(20, 5, 4), torch.arange(20) % 3
    start = {"head.weight": torch.zeros(3, 6)}
    found, _ = Retraining(model, data, method=QUICK)(start)
    assert found["head.weight"].any()


def test_a_method_that_trains_other_weights_is_refused(net, data):
    everything = bayesify.MeanFieldVI(epochs=1, where=bayesify.all_weights, pretrain=None)
    with pytest.raises(
        OptionError, match=r"trains 4.weight, 4.bias alone, but it changed 0.weight"
    ):
        Retraining(net, data, method=everything)(head())
    part = bayesify.MeanFieldVI(epochs=1, where=bayesify.matching("4.bias"), pretrain=None)
    with pytest.raises(OptionError, match="did not learn all of them"):
        Retraining(net, data, method=part)(head())
    with pytest.raises(OptionError, match="expected an instance"):
        Retraining(net, data, method=MAP)


def test_a_loader_in_another_order_each_time_is_refused(net, data):
    generator = torch.Generator().manual_seed(0)
    own = DataLoader(TensorDataset(*data), 8, shuffle=True, generator=generator)
    with pytest.raises(DataError, match="shuffle=False"):
        Retraining(net, data, validation=own, method=QUICK)(head())


def test_a_loader_that_shuffles_by_the_global_generator_is_held_to_one_order(net, data):
    shuffled = DataLoader(TensorDataset(*data), 8, shuffle=True)
    retrain = Retraining(net, shuffled, method=QUICK)
    assert torch.equal(retrain(head())[1].target, retrain.given.target)


def test_unusable_data_is_refused_before_training(net, data, posteriors):
    with pytest.raises(DataError, match="NaN"):
        Retraining(net, (data[0] / 0, data[1]), method=QUICK)
    with pytest.raises(ShapeError, match="validation"):
        Retraining(net, data, validation=(data[0], torch.zeros(40, 2, 2).long()), method=QUICK)
    assert posteriors == []
