import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm

from bayesify.core.errors import DivergenceError, OptionError
from bayesify.core.options import from_json
from bayesify.experiments import run as running
from bayesify.experiments.aspects import Aspects
from bayesify.experiments.literature import Literature
from bayesify.experiments.problems import arenas, build
from bayesify.experiments.report.groups import groups
from bayesify.experiments.report.records import read
from bayesify.experiments.results import Results
from bayesify.experiments.run import Watcher, run
from bayesify.training.fit import fit


class Listener(Watcher):
    def __init__(self):
        self.heard, self.started = [], None

    def on_message(self, text):
        self.heard.append(text)

    def on_start(self, total, done):
        self.started = (total, done)


@pytest.fixture
def fits(monkeypatch):
    """Counts the fits, warm-ups not among them."""
    counted = []

    def counting(model, data, method, **rest):
        counted.append(type(method).__name__)
        return original(model, data, method, **rest)

    original = running.fit
    monkeypatch.setattr(running, "fit", counting)
    return counted


def test_a_record_holds_everything(suite, tmp_path):
    asked = suite()
    outcome = run(asked, tmp_path / "out")
    assert outcome.total == len(outcome.records) == 3
    assert not outcome.failed
    assert not outcome.interrupted
    assert read(tmp_path / "out") == outcome.records
    plain, scaled, stf = outcome.records
    assert [r["method"] for r in outcome.records] == ["map", "map+ts", "stf"]
    assert from_json(plain["options"]) == asked.methods[0].method
    assert {"accuracy", "nll", "ece", "brier"} <= set(plain["metrics"])
    assert plain["metrics"]["accuracy"] == scaled["metrics"]["accuracy"]
    assert plain["metrics"]["nll"] != scaled["metrics"]["nll"]
    for name in ("trainable_parameters", "stored_parameters"):
        assert scaled["cost"][name] == plain["cost"][name] + 1
    assert scaled["cost"]["fit_seconds"] > plain["cost"]["fit_seconds"]
    assert stf["cost"]["trainable_parameters"] == 2 * (3 * 64 + 64)
    assert stf["ood"] is None
    assert stf["setup"]["num_samples"] == 2
    assert {"versions", "git_revision", "finished", "command", "cell", "curves"} <= set(stf)
    (group,) = groups(outcome.records)
    assert [row.label for row in group.rows] == ["map", "map+ts", "stf"]


def test_one_fit_serves_a_method_and_its_scaled_twin(suite, tmp_path, fits):
    run(suite("map,map+ts"), tmp_path)
    assert fits == ["MAP"]


def test_finished_cells_are_skipped_and_changed_ones_are_not(suite, tmp_path, fits):
    first = run(suite(), tmp_path)
    listener = Listener()
    again = run(suite(), tmp_path, watcher=listener)
    assert listener.started == (3, 3)
    assert again.records == first.records
    del fits[:]
    run(suite(settings={"map": {"epochs": 2}}), tmp_path)
    assert fits == ["MAP"]
    assert len(read(tmp_path)) == 5


def test_fresh_moves_the_old_results_aside(suite, tmp_path, fits):
    run(suite("map"), tmp_path)
    listener = Listener()
    run(suite("map"), tmp_path, fresh=True, watcher=listener)
    assert fits == ["MAP", "MAP"]
    assert len(read(tmp_path)) == 1
    assert "results.jsonl.old" in listener.heard[0]


def test_a_broken_last_line_is_cut_and_its_cell_runs_again(suite, tmp_path, fits):
    run(suite("map,stf"), tmp_path)
    file = Results(tmp_path).file
    file.write_bytes(file.read_bytes()[:-40])
    listener = Listener()
    outcome = run(suite("map,stf"), tmp_path, watcher=listener)
    assert fits == ["MAP", "STF", "STF"]
    assert len(outcome.records) == len(read(tmp_path)) == 2
    assert "unfinished last line" in listener.heard[0]


def test_an_interrupt_keeps_what_is_done(suite, tmp_path, monkeypatch):
    def stop(model, data, method, **rest):
        if type(method).__name__ == "STF":
            raise KeyboardInterrupt
        return original(model, data, method, **rest)

    original = running.fit
    monkeypatch.setattr(running, "fit", stop)
    outcome = run(suite(), tmp_path)
    assert outcome.interrupted
    assert [record["method"] for record in outcome.records] == ["map", "map+ts"]
    assert read(tmp_path) == outcome.records
    monkeypatch.undo()
    assert len(run(suite(), tmp_path).records) == 3


def test_a_failing_cell_does_not_stop_the_others(suite, tmp_path, monkeypatch):
    def diverge(model, data, method, **rest):
        if type(method).__name__ == "MAP":
            raise DivergenceError("training diverged at step 3")
        return original(model, data, method, **rest)

    original = running.fit
    monkeypatch.setattr(running, "fit", diverge)
    outcome = run(suite(), tmp_path)
    assert [name for name, _ in outcome.failed] == [
        f"{m} · {suite().data[0]}, mlp · seed 0" for m in ("map", "map+ts")
    ]
    assert outcome.failed[0][1] == "training diverged at step 3"
    assert [record["method"] for record in outcome.records] == ["stf"]


def test_of_all_methods_those_that_cannot_treat_the_model_are_left_out(suite, tmp_path):
    asked = suite("map,mc-dropout")
    assert [name.split()[0] for name, _ in run(asked, tmp_path / "a").failed] == ["mc-dropout"]
    rows = tuple(replace(each, if_possible=True) for each in asked.methods)
    outcome = run(replace(asked, methods=rows), tmp_path / "b")
    assert not outcome.failed
    ((name, reason),) = outcome.left_out
    assert name.startswith("mc-dropout")
    assert "no dropout layer" in reason
    assert [record["method"] for record in outcome.records] == ["map"]


def test_a_run_that_diverges_fails_however_it_was_asked_for(suite, tmp_path, monkeypatch):
    def diverge(model, data, method, **rest):
        raise DivergenceError("training diverged at step 3")

    monkeypatch.setattr(running, "fit", diverge)
    asked = suite("map")
    rows = tuple(replace(each, if_possible=True) for each in asked.methods)
    outcome = run(replace(asked, methods=rows), tmp_path)
    assert (len(outcome.failed), outcome.left_out) == (1, [])


def test_scaling_fails_where_it_has_no_meaning_and_the_rest_goes_on(suite, tmp_path):
    rows = "\n".join(f"{n},{n / 7}" for n in range(80))
    (tmp_path / "t.csv").write_text("a,b\n" + rows)
    asked = suite("map,map+ts", data=(str(tmp_path / "t.csv"),), target="b")
    outcome = run(asked, tmp_path / "out")
    assert [record["task"] for record in outcome.records] == ["regression"]
    assert "categorical" in outcome.failed[0][1]


def test_numbers_of_regression_are_in_the_units_of_the_target(suite, folded, tmp_path):
    asked = suite("map", {"map": {"epochs": 40, "lr": 0.03}}, data=(folded,), validation_share=0.0)
    (arena,) = arenas(asked)
    posterior = fit(
        build(asked, arena, "mlp", seed=0),
        arena.splits.train,
        asked.methods[0].method,
        likelihood="gaussian",
        batch_size=asked.batch_size,
    )
    with np.load(folded) as file:
        test = file["test_index"][0]
        x, y = file["x"], file["y"]
    train = np.setdiff1d(np.arange(60), test)
    inputs = torch.tensor((x[test] - x[train].mean(0)) / x[train].std(0)).float()
    predictive = posterior.predict(inputs)
    loc = predictive.mean.double().numpy()[:, 0] * y[train].std() + y[train].mean()
    scale = predictive.variance.sqrt().double().numpy()[:, 0] * y[train].std()
    (record,) = run(asked, tmp_path / "out").records
    metrics = record["metrics"]
    assert metrics["rmse"] == pytest.approx(np.sqrt(np.mean((loc - y[test]) ** 2)), rel=1e-4)
    assert metrics["nll"] == pytest.approx(-norm.logpdf(y[test], loc, scale).mean(), rel=1e-4)
    assert metrics["rmse"] > 5  # in standard deviations it would be below one


def test_every_fold_is_a_run_and_they_are_averaged(suite, folded, tmp_path, fits):
    asked = suite("map", data=(folded,), folds="all")
    records = run(asked, tmp_path).records
    assert fits == ["MAP"] * 3
    assert [record["fold"] for record in records] == [0, 1, 2]
    assert len({record["metrics"]["rmse"] for record in records}) == 3
    ((row,),) = (group.rows for group in groups(records))
    assert row.folds == [0, 1, 2]
    run(suite("map", data=(folded,), folds=(1, 2)), tmp_path)
    assert fits == ["MAP"] * 3


def test_options_of_a_likelihood_reach_the_fit_and_the_record(suite, folded, tmp_path):
    settings = {"map": {"epochs": 1, "likelihood.scale": 3.0}}
    (record,) = run(suite("map", settings, data=(folded,)), tmp_path).records
    assert record["setup"]["likelihood"] == {"scale": 3.0}
    with np.load(folded) as file:
        spread = np.delete(file["y"], file["test_index"][0]).std()
    assert record["metrics"]["sharpness"] == pytest.approx(3 * spread, rel=0.1)


def test_published_numbers_stand_in_the_results_once_and_are_no_runs(suite, folded, tmp_path):
    paper = Literature("PBP", "A paper, Table 1", "", {"folded": {"rmse": (20.5, 0.5)}})
    asked = suite("map", data=(folded,), literature=(paper,))
    for _ in range(2):
        outcome = run(asked, tmp_path)
        assert (outcome.total, len(outcome.records)) == (1, 1)
    published, record = read(tmp_path)
    assert outcome.literature == [published]
    assert (published["literature"], published["data"]) == ("PBP", record["data"])
    (group,) = groups([published, record])
    assert [each.values for each in group.published] == [{"rmse": (20.5, 0.5)}]


def test_published_numbers_are_for_the_test_part_only(suite, folded, tmp_path):
    paper = Literature("PBP", "A paper, Table 1", "", {"folded": {"rmse": (20.5, 0.5)}})
    asked = suite("map", data=(folded,), literature=(paper,), split="validation")
    assert run(asked, tmp_path).literature == []


def test_nothing_is_fitted_where_nothing_can_be_written(suite, tmp_path, fits):
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="cannot write"):
        run(suite(), tmp_path / "file")
    assert fits == []


def test_a_bad_model_stops_before_the_folder_is_emptied(suite, tmp_path, fits):
    run(suite("map"), tmp_path)
    with pytest.raises(OptionError, match="unknown model"):
        run(suite(models=("mlp", "mpl")), tmp_path, fresh=True)
    assert len(read(tmp_path)) == 1
    assert fits == ["MAP"]


def test_images_get_foreign_data_and_curves(suite, tmp_path):
    (record,) = run(suite("map", data=("digits",)), tmp_path).records
    assert record["ood"] == "photos"
    assert set(record["curves"]) == {"reliability", "risk_coverage", "roc", "roc_max_prob"}
    assert 0 <= record["metrics"]["ood_auroc"] <= 1
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_methods_get_the_validation_part_if_there_is_one(suite, tmp_path, monkeypatch):
    seen = []

    def noting(model, data, method, *, validation, **rest):
        seen.append(validation and len(validation))
        return original(model, data, method, validation=validation, **rest)

    original = running.fit
    monkeypatch.setattr(running, "fit", noting)
    asked = suite("map")
    run(asked, tmp_path / "with")
    assert seen == [len(arenas(asked)[0].splits.validation)]
    run(replace(asked, validation_share=0.0), tmp_path / "without")
    assert seen[1:] == [None]


def test_more_is_measured_and_the_surrogate_is_fitted_once(suite, tmp_path, monkeypatch):
    fits = []

    def counted(model, data, method, **more):
        fits.append((type(method).__name__, getattr(method, "epochs", None)))
        return fit(model, data, method, **more)

    monkeypatch.setattr(running, "fit", counted)
    options = {"attacks": {"eps": (0.1,), "steps": 1, "gradient_samples": 10}}
    aspects = Aspects().changed(["attacks", "membership"], options)
    outcome = run(suite("map,map+ts,stf", aspects=aspects), tmp_path)
    assert [name for name, _ in fits] == ["MAP", "STF"]
    plain, scaled, bayesian = outcome.records
    assert "transfer_nll" not in plain["metrics"]  # MAP is the surrogate itself
    for record in (scaled, bayesian):
        assert {"transfer_accuracy", "membership_auc"} <= set(record["metrics"])
        attacks = record["curves"]["robustness"]["attacks"]
        assert attacks.keys() == {"fgsm", "pgd", "transfer"}
    assert bayesian["metrics"]["transfer_nll"] != bayesian["metrics"]["pgd_nll"]


def test_shadow_posteriors_are_kept_and_not_fitted_again(suite, tmp_path):
    aspects = Aspects().changed(["shadows"], {"shadows": {"count": 4, "examples": 40}})
    asked = suite("map,map+ts", aspects=aspects)
    plain, scaled = run(asked, tmp_path).records
    assert "lira_auc" in plain["metrics"]
    assert "lira_auc" not in scaled["metrics"]
    assert len(list((tmp_path / "shadows").rglob("*.safetensors"))) == 4
