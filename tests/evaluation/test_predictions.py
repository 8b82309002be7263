import pytest
import torch
from safetensors.torch import save_file

from bayesify.core.errors import DataError, LoadError, ShapeError
from bayesify.evaluation.predictions import (
    Predictions,
    collect,
    collect_unlabelled,
    flatten_positions,
)
from bayesify.likelihoods.predictive import ClassPredictive
from evaluation.stub import LinearPosterior


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


def batches(x, y, size):
    return list(zip(x.split(size), y.split(size), strict=True))


def test_collect_equals_predicting_everything_at_once(generator):
    x, y = torch.randn(10, 4, generator=generator), torch.arange(10) % 3
    posterior = LinearPosterior("classification")
    predictions = collect(posterior, batches(x, y, 4))
    whole = posterior.predict(x)
    torch.testing.assert_close(predictions.probs, whole.summary()["probs"])
    torch.testing.assert_close(predictions.entropy, whole.summary()["entropy"])
    torch.testing.assert_close(predictions.log_prob, whole.log_prob(y))
    assert predictions.task == "classification"
    assert len(predictions) == 10


def test_log_probs_are_the_logs_of_probs_and_always_finite(generator):
    x = torch.randn(5, 4, generator=generator) * 100
    predictions = collect(LinearPosterior("classification"), [(x, torch.zeros(5).long())])
    assert predictions.probs.min() == 0
    assert predictions.log_probs.isfinite().all()
    torch.testing.assert_close(predictions.log_probs.exp(), predictions.probs)


def test_every_position_of_a_segmentation_counts_as_an_example(generator):
    x, y = torch.randn(6, 5, 4, generator=generator), torch.arange(30).reshape(6, 5) % 3
    posterior = LinearPosterior("classification")
    predictions = collect(posterior, batches(x, y, 4))
    flat = collect(posterior, batches(x.reshape(30, 4), y.reshape(30), 7))
    for name, each in flat.values.items():
        torch.testing.assert_close(predictions.values[name], each)
    torch.testing.assert_close(predictions.log_prob, flat.log_prob)
    assert predictions.target.equal(flat.target)


def test_flattening_keeps_each_position_with_its_target():
    logits = torch.randn(1, 2, 3, 4, 5)
    target = logits[0].argmax(1)
    flat = flatten_positions({**ClassPredictive(logits).summary(), "target": target})
    assert flat["probs"].shape == (40, 3)
    assert flat["probs"].argmax(1).equal(flat["target"])


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_regression_targets_may_lack_the_axis_of_dimensions(shape, generator):
    x, y = torch.randn(6, 4, generator=generator), torch.randn(shape, generator=generator)
    predictions = collect(LinearPosterior("regression", outputs=1), batches(x, y, 4))
    assert predictions.target.shape == predictions.mean.shape == (6, 1)
    assert set(predictions.values) == {"mean", "variance", "epistemic"}


def test_scores_of_regression_targets_are_kept(generator):
    x, y = torch.randn(10, 4, generator=generator), torch.randn(10, 3, generator=generator)
    posterior = LinearPosterior("regression")
    predictions = collect(posterior, batches(x, y, 4))
    want = posterior.predict(x).scores(y)
    torch.testing.assert_close(predictions.log_prob, want.pop("log_prob"))
    assert set(predictions.scores) == set(want) == {"crps", "pit"}
    for name, each in want.items():
        torch.testing.assert_close(predictions.scores[name], each)
        assert each.shape == (10, 3)
    assert set(predictions.values) == {"mean", "variance", "epistemic"}


class Bare:
    """A predictive of somebody's own, no subclass of ours: a task, densities, a summary."""

    task = "regression"

    def __init__(self, inner):
        self.log_prob, self.summary = inner.log_prob, inner.summary


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_predictive_without_scores_is_collected_too(task, generator):
    class Foreign(LinearPosterior):
        def predict(self, x, **options):
            return Bare(super().predict(x, **options))

    x = torch.randn(6, 4, generator=generator)
    y = torch.arange(6) % 3 if task == "classification" else torch.randn(6, 3, generator=generator)
    predictions = collect(Foreign(task), batches(x, y, 4))
    assert predictions.scores == {}
    torch.testing.assert_close(predictions.log_prob, LinearPosterior(task).predict(x).log_prob(y))


def test_classes_have_no_scores_but_their_density():
    data = [(torch.ones(2, 4), torch.tensor([0, 1]))]
    assert collect(LinearPosterior("classification"), data).scores == {}


def test_mapping_batches_are_understood():
    x, y = torch.ones(2, 4), torch.tensor([0, 1])

    class Keyword(LinearPosterior):
        def predict(self, x, **options):
            return super().predict(x["pixels"], **options)

    predictions = collect(Keyword("classification"), [{"pixels": x, "labels": y}])
    assert predictions.target.equal(y)


def test_unlabelled_data_may_have_classes_the_model_does_not_know():
    x, y = torch.ones(2, 4), torch.tensor([7, 99])
    values = collect_unlabelled(LinearPosterior("classification"), [(x, y)])
    assert set(values) == {"probs", "entropy", "mutual_information"}


def test_progress_and_chunk_size_are_passed_on():
    posterior, sizes = LinearPosterior("classification"), []
    data = batches(torch.ones(5, 4), torch.zeros(5).long(), 2)
    collect(posterior, data, chunk_size=7, on_batch=sizes.append)
    assert sizes == [2, 2, 1]
    assert posterior.seen == [7, 7, 7]


def test_an_empty_loader_is_refused():
    with pytest.raises(DataError, match="empty loader"):
        collect(LinearPosterior("classification"), [])


def test_asking_for_what_the_task_has_not_says_what_there_is():
    predictions = collect(LinearPosterior("regression"), [(torch.ones(2, 4), torch.ones(2, 3))])
    with pytest.raises(ShapeError, match="epistemic, mean, variance"):
        _ = predictions.probs


def test_predictions_survive_the_disk(tmp_path):
    data = [(torch.ones(2, 4), torch.tensor([0, 2]))]
    predictions = collect(LinearPosterior("classification"), data)
    predictions.save(tmp_path / "new" / "test.safetensors")
    loaded = Predictions.load(tmp_path / "new" / "test.safetensors")
    assert loaded.task == predictions.task
    assert loaded.target.equal(predictions.target)
    assert loaded.log_prob.equal(predictions.log_prob)
    assert set(loaded.values) == set(predictions.values)
    assert all(loaded.values[name].equal(each) for name, each in predictions.values.items())
    assert [each.name for each in (tmp_path / "new").iterdir()] == ["test.safetensors"]


def test_scores_survive_the_disk_and_files_without_them_load(tmp_path):
    predictions = collect(LinearPosterior("regression"), [(torch.ones(2, 4), torch.ones(2, 3))])
    predictions.save(tmp_path / "new.safetensors")
    loaded = Predictions.load(tmp_path / "new.safetensors")
    assert set(loaded.values) == set(predictions.values)
    assert {name: each.tolist() for name, each in loaded.scores.items()} == {
        name: each.tolist() for name, each in predictions.scores.items()
    }
    old = {f"values/{name}": each for name, each in predictions.values.items()}
    old |= {"log_prob": predictions.log_prob, "target": predictions.target}
    save_file(old, tmp_path / "old.safetensors", metadata={"task": "regression"})
    before = Predictions.load(tmp_path / "old.safetensors")
    assert before.scores == {}
    assert before.mean.equal(predictions.mean)


@pytest.mark.parametrize("content", [None, b"", b"not a safetensors file at all"])
def test_a_missing_or_broken_file_is_named(tmp_path, content):
    path = tmp_path / "lost.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LoadError, match="lost"):
        Predictions.load(path)
