import copy
import json
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from torch import nn

import bayesify
from bayesify.core.errors import OptionError, UnsupportedModelError
from bayesify.core.streams import stream
from bayesify.evaluation.diagnosis.layers import redrawable_layers
from bayesify.evaluation.diagnosis.open_layers import (
    Diagnosis,
    diagnose,
    disagreement,
    pearson,
    relative_distance,
)
from bayesify.evaluation.diagnosis.retraining import Retraining
from bayesify.evaluation.predictions import Predictions
from bayesify.likelihoods import Gaussian
from bayesify.methods.members.fresh import fresh_weights
from bayesify.methods.members.map import MAP
from bayesify.models.mlp import mlp
from bayesify.weights.named import assign_

QUICK = MAP(epochs=2)
LONG = MAP(epochs=300, lr=0.1, prior_scale=100.0)


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(60, 4, generator=generator), torch.randint(3, (60,), generator=generator)


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 3))


@pytest.fixture
def linear_data():
    x = torch.randn(60, 3)
    return x, x @ torch.tensor([[1.0, -1.0], [0.5, 2.0], [-2.0, 0.3]])


def as_rows(weights):
    return torch.cat([each.flatten() for each in weights.values()]).double().numpy()


def only(diagnosis):
    (layer,) = diagnosis.layers
    return layer


def test_a_convex_problem_has_one_optimum(data):
    model = nn.Linear(4, 3)
    method = MAP(epochs=300, lr=0.1)
    assign_(model, bayesify.fit(model, data, method, batch_size=60).point())
    found = only(diagnose(model, data, starts=3, method=method, batch_size=60))
    assert min(found.correlations + found.correlations_with_given) > 0.9999
    assert max(found.distances + found.distances_to_given) < 0.01
    assert found.disagreements == (0.0, 0.0, 0.0)
    assert found.varying_correlation == pytest.approx(found.correlation)


def test_two_linear_layers_in_a_row_have_many_optima_that_agree(linear_data):
    model = nn.Sequential(nn.Linear(3, 30, bias=False), nn.Linear(30, 2, bias=False))
    with torch.no_grad():
        model[1].weight.mul_(3)  # so that what is determined of the first is small
    passing = {"starts": 3, "method": LONG, "likelihood": Gaussian(1.0), "batch_size": 60}
    first = only(diagnose(model, linear_data, layers=["0"], **passing))
    assert min(first.distances) > 0.8
    assert max(first.correlations) < 0.8
    assert max(first.disagreements) < 1e-2  # of targets whose scale is 2
    assert first.score < 1e-2
    alone = nn.Linear(3, 2)  # the same functions, each by one setting only
    assert max(only(diagnose(alone, linear_data, **passing)).distances) < 1e-2


@pytest.mark.parametrize("seed", range(5))
def test_correlation_and_distance_agree_with_numpy(seed):
    a, b = np.random.default_rng(seed).normal(3 * seed, 1 + seed, (2, 50))
    given = torch.tensor(a), torch.tensor(b)
    assert pearson(*given) == pytest.approx(np.corrcoef(a, b)[0, 1], abs=1e-12)
    norms = np.linalg.norm(a), np.linalg.norm(b)
    assert relative_distance(*given) == pytest.approx(np.linalg.norm(a - b) / np.mean(norms))


def test_special_cases_of_correlation_and_distance():
    a = torch.tensor([1.0, 2.0, 4.0])
    assert pearson(a, 3 * a + 7) == pytest.approx(1.0)
    assert pearson(a, -a) == pytest.approx(-1.0)
    assert math.isnan(pearson(a, torch.full((3,), 0.1)))
    assert math.isnan(pearson(a[:1], a[:1]))
    assert relative_distance(a, a) == relative_distance(0 * a, 0 * a) == 0.0
    assert relative_distance(a, -a) == pytest.approx(2.0)
    turned = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert relative_distance(*turned) == pytest.approx(math.sqrt(2))


def predictions(task, **values):
    values = {name: torch.tensor(each) for name, each in values.items()}
    size = len(next(iter(values.values())))
    return Predictions(task, values, torch.zeros(size), torch.zeros(size))


def test_disagreement_is_counted_by_task():
    one = predictions("classification", probs=[[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.7, 0.3]])
    other = predictions("classification", probs=[[0.6, 0.4], [0.4, 0.6], [0.1, 0.9], [0.9, 0.1]])
    assert disagreement(one, other) == 0.25
    one = predictions("multilabel", probs=[[0.9, 0.4], [0.6, 0.2]])
    other = predictions("multilabel", probs=[[0.4, 0.3], [0.2, 0.7]])
    assert disagreement(one, other) == 0.75
    one, other = predictions("regression", mean=[[1.0], [5.0]]), [[4.0], [9.0]]
    assert disagreement(one, predictions("regression", mean=other)) == pytest.approx(12.5**0.5)


def test_the_numbers_are_those_of_the_retrained_weights(net, data):
    found = only(diagnose(net, data, layers=["3"], starts=3, method=QUICK, seed=5))
    retrain = Retraining(net, data, method=QUICK, seed=5)
    drawn = fresh_weights(net, found.names, 3, stream(5, "start"))
    ends = [retrain({name: each[m] for name, each in drawn.items()}) for m in range(3)]
    rows = [as_rows(weights) for weights, _ in ends]
    given = as_rows({name: net.get_parameter(name).detach() for name in found.names})
    table = np.corrcoef([*rows, given])
    pairs = list(combinations(range(3), 2))
    assert found.correlations == pytest.approx([table[pair] for pair in pairs])
    assert found.correlations_with_given == pytest.approx(table[:3, 3])
    norm = np.linalg.norm
    want = [2 * norm(rows[a] - rows[b]) / (norm(rows[a]) + norm(rows[b])) for a, b in pairs]
    assert found.distances == pytest.approx(want)
    want = [2 * norm(row - given) / (norm(row) + norm(given)) for row in rows]
    assert found.distances_to_given == pytest.approx(want)
    classes = [each.probs.argmax(1).numpy() for _, each in ends]
    assert found.disagreements == tuple((classes[a] != classes[b]).mean() for a, b in pairs)
    assert found.scores == tuple((each == data[1].numpy()).mean() for each in classes)
    assert found.nlls == pytest.approx([-each.log_prob.mean().item() for _, each in ends])
    assert found.correlation == pytest.approx(np.mean(found.correlations))
    assert found.num_weights == len(given) == 21


def test_weights_of_constant_inputs_can_be_told_apart(linear_data):
    x, y = linear_data
    blank = torch.cat([x, torch.zeros(60, 20)], 1)  # 20 pixels that are always off
    passing = {"starts": 2, "method": LONG, "likelihood": Gaussian(1.0), "batch_size": 60}
    passing["method"] = MAP(epochs=300, lr=0.1, prior_scale=1e6)  # too weak to pull these to zero
    found = only(diagnose(nn.Linear(23, 2), (blank, y), **passing))
    assert found.varying_correlation > 0.9999
    assert found.correlation < found.varying_correlation - 1e-3
    assert found.distance > 0.05
    assert found.similarity == found.varying_correlation
    assert max(found.disagreements) < 1e-2


def test_layers_come_in_order_without_norms(net, data):
    seen = []
    found = diagnose(net, data, starts=2, method=QUICK, on_fit=lambda *each: seen.append(each))
    assert [each.name for each in found.layers] == ["0", "3"]
    assert [each.shapes for each in found.layers] == [((6, 4), (6,)), ((3, 6), (3,))]
    assert found.left_out == ("2",)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_layer_is_diagnosed_in_the_same_way_whatever_others_are(net, data):
    every = diagnose(net, data, starts=2, method=QUICK, seed=1)
    assert (
        only(diagnose(net, data, starts=2, method=QUICK, seed=1, layers=["3"])) == every.layers[1]
    )


def test_the_seed_decides(net, data):
    passing = {"starts": 2, "method": QUICK, "layers": ["3"]}
    state = torch.get_rng_state()
    first = diagnose(net, data, seed=1, **passing)
    assert torch.equal(torch.get_rng_state(), state)
    torch.randn(3)
    assert diagnose(net, data, seed=1, **passing) == first
    assert diagnose(net, data, seed=2, **passing) != first


def test_the_model_is_not_touched(net, data):
    net.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    diagnose(net, data, starts=2, method=QUICK)
    assert all(torch.equal(each, before[name]) for name, each in net.state_dict().items())
    assert net.training
    assert not any(each.requires_grad for each in net.parameters())


def test_norms_and_convolutions_can_be_diagnosed():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))
    data = torch.randn(20, 1, 4, 4), torch.arange(20) % 2
    passing = {"starts": 2, "method": QUICK}
    conv, linear = diagnose(model, data, **passing).layers
    assert conv.varying_correlations == ()
    assert conv.similarity == conv.correlation
    assert linear.similarity == linear.varying_correlation
    assert only(diagnose(model, data, layers=["1"], **passing)).num_weights == 6


@pytest.mark.parametrize(
    ("likelihood", "score", "task"),
    [("gaussian", "rmse", "regression"), ("bernoulli", "label_accuracy", "multilabel")],
)
def test_other_tasks(likelihood, score, task):
    x = torch.randn(40, 4)
    y = (x[:, :2] > 0).float()
    validation = x[:9], y[:9]
    model = nn.Linear(4, 2)
    found = diagnose(
        model, (x, y), validation=validation, starts=2, method=QUICK, likelihood=likelihood
    )
    assert (found.task, found.score_name) == (task, score)
    with torch.no_grad():
        raw = model(validation[0])
    residual = (raw - validation[1]).square().mean().sqrt()
    right = ((raw > 0) == (validation[1] > 0)).float().mean()
    assert found.given == pytest.approx((residual if score == "rmse" else right).item())


def test_the_least_similar_layer_is_named_and_the_call_suggested_works(net, data):
    found = diagnose(net, data, starts=2, method=QUICK)
    least = min(found.layers, key=lambda each: each.similarity)
    assert found.most_disparate == least
    call = found.suggestion[found.suggestion.index("bayesify.STF(") :].partition(": of")[0]
    method = eval(call)
    assert method == bayesify.STF(pretrain=None, where=least.where)
    assert tuple(method.where(net, data[0])) == least.names
    assert "rule of thumb" in found.suggestion
    assert "compare on held-out data" in found.suggestion


def test_an_undefined_correlation_is_never_the_least(data):
    model = nn.Sequential(nn.Linear(4, 1, bias=False), nn.Linear(1, 1, bias=False), nn.Linear(1, 3))
    found = diagnose(model, data, starts=2, method=QUICK)
    assert math.isnan(found.layers[1].correlation)
    assert found.most_disparate is not found.layers[1]
    row = str(found).splitlines()[3].split()
    assert row[:2] == ["1", "1"]
    assert "-" in row
    assert found.to_json()["layers"][1]["correlations"] == [None]


def test_the_table_is_aligned_and_marks_one_layer(net, data):
    found = diagnose(net, data, starts=2, method=QUICK)
    title, head, *rows, left_out, last = str(found).splitlines()
    assert title.startswith("classification, each layer retrained alone 2 times")
    assert head.split()[:4] == ["layer", "weights", "accuracy", "nll"]
    assert [row.split()[0] for row in rows] == ["0", "3"]
    marked = [row for row in rows if row.endswith("<- most disparate")]
    assert [row.split()[0] for row in marked] == [found.most_disparate.name]
    ends = {
        row.index(f"{layer.distance:.4f}") for row, layer in zip(rows, found.layers, strict=True)
    }
    assert len(ends) == 1
    assert left_out == "left out: 2"
    assert last == found.suggestion


def test_the_json_holds_all_numbers_and_is_strict(net, data):
    found = diagnose(net, data, starts=3, method=QUICK)
    written = found.to_json()
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    assert written["most_disparate"] == found.most_disparate.name
    assert (written["starts"], written["given"]) == (3, found.given)
    layer, first = written["layers"][0], found.layers[0]
    assert layer["distances"] == list(first.distances)
    assert layer["mean"]["distance"] == first.distance
    assert (layer["num_weights"], layer["shapes"]) == (30, [[6, 4], [6]])
    assert layer["where"] == ["0.*"]


def test_impossible_wishes_are_refused_before_training(net, data):
    with pytest.raises(OptionError, match="starts=1: expected at least 2"):
        diagnose(net, data, starts=1)
    with pytest.raises(OptionError, match=r"layers: '33' is no module .* names like '3'"):
        diagnose(net, data, layers=["33"])
    with pytest.raises(OptionError, match="expected one name at least"):
        diagnose(net, data, layers=[])
    with pytest.raises(OptionError, match="expected an instance such as"):
        diagnose(net, data, method=MAP)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnsupportedModelError, match="no layer that owns a matrix"):
        diagnose(nn.BatchNorm1d(4), data)


@pytest.mark.slow
def test_on_digits_the_first_layer_is_the_most_disparate():
    digits = bayesify.data.splits("digits")
    model = mlp((1, 8, 8), 10, hidden=(100, 100))
    assign_(model, bayesify.fit(model, digits.train, MAP(epochs=30), batch_size=128).point())
    found = diagnose(model, digits.train, validation=digits.test, starts=3, batch_size=128)
    assert isinstance(found, Diagnosis)
    first, second, third = found.layers
    assert first.similarity < second.similarity < third.similarity
    assert first.similarity < third.similarity - 0.2
    assert first.distance > second.distance > third.distance
    assert found.most_disparate is first
    for layer in found.layers:  # as good as one another, and nearly as good as all layers trained
        assert min(layer.scores) > found.given - 0.03
        assert layer.disagreement < 0.04
    assert list(redrawable_layers(model)) == [each.name for each in found.layers]
