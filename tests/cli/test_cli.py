import csv
import inspect
import json
import shutil
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
from PIL import Image

import bayesify
from bayesify.cli import main
from bayesify.cli.app import COMMANDS as COMMANDS_BY_NAME
from bayesify.cli.saved import open_run
from bayesify.core.fields import fields_of, shown
from bayesify.experiments import run as running
from bayesify.methods import METHODS

COMMANDS = ("compare", "fit", "evaluate", "predict", "compress", "diagnose", "report", "data")
QUICK = ("--set", "map.epochs=1", "--set", "stf.epochs=1", "--set", "stf.pretrain.epochs=1")


@pytest.fixture(scope="session")
def place(tmp_path_factory):
    """Small data sets of every kind."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    np.savez(root / "blobs.npz", x=rng.normal(size=(120, 3)) + 2 * y[:, None], y=y)
    folds = np.arange(30).reshape(3, 10)
    np.savez(
        root / "folds.npz", x=rng.normal(size=(60, 2)), y=rng.normal(size=60), test_index=folds
    )
    np.savez(root / "new.npz", x=rng.normal(size=(4, 3)))
    np.savez(root / "wide.npz", x=rng.normal(size=(4, 5)))
    np.savez(root / "labels.npz", x=rng.normal(size=(90, 3)), y=rng.integers(0, 2, (90, 2)))
    rows = [f"{n},{['red', 'green', 'blue'][n % 3]},{2 * n + 100.5}" for n in range(90)]
    (root / "t.csv").write_text("\n".join(["size,colour,weight", *rows]))
    (root / "new.csv").write_text("colour,size\nred,4\nblue,80\n")
    (root / "pink.csv").write_text("colour,size\npink,4\n")
    (root / "short.csv").write_text("size\n4\n")
    for name, level in (("dark", 40), ("light", 200)):
        (root / "images" / name).mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(level - 30, level + 30, (6, 6), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / name / f"{number}.png")
    Image.fromarray(np.full((9, 12), 40, np.uint8)).save(root / "large.png")
    return root


@pytest.fixture(scope="session")
def fitted(place, tmp_path_factory):
    """Folders of posteriors by kind of data; each is fitted when first asked for."""
    root = tmp_path_factory.mktemp("runs")
    flags = {
        "blobs.npz": ["--method", "stf", "--set", "pretrain.epochs=3"],
        "labels.npz": ["--method", "map"],
        "t.csv": ["--method", "map", "--target", "weight"],
        "images": ["--method", "map"],
    }

    def fitted(name):
        out = root / name
        if not out.exists():
            source = str(place / name)
            epochs = ["--epochs", "5", "--out", str(out)]
            assert main(["fit", "--data", source, *flags[name], *epochs]) == 0
        return str(out)

    return fitted


@pytest.fixture
def bayesify_(capsys):
    """Runs a command line in this process: exit code, standard output, error stream."""

    def run(*arguments):
        capsys.readouterr()
        code = main([str(each) for each in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def refused(bayesify_):
    """Asserts that a command line is refused in one sentence with exit code 2; returns that."""

    def refused(*arguments):
        code, out, err = bayesify_(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("Error: ")
        assert err.count("\n") == 1
        return err

    return refused


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(bayesify_, command):
    code, out, _ = bayesify_(command, "--help")
    assert code == 0
    assert f"Example: bayesify {command}" in out
    assert "--json" in out


def test_help_lists_the_commands(bayesify_):
    for arguments in ([], ["--help"]):
        code, out, _ = bayesify_(*arguments)
        assert code == 0
        assert all(f" {command} " in out for command in COMMANDS)


def test_the_version(bayesify_):
    assert bayesify_("--version") == (0, f"bayesify {bayesify.__version__}\n", "")


def test_help_loads_nothing_heavy_beside_torch():
    heavy = ["sklearn", "scipy", "pandas", "matplotlib", "jinja2", "PIL"]
    code = (
        "import sys; from bayesify.cli import main; main(['fit', '--help']);"
        f"print([each for each in {heavy} if each in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_list_of_commands_needs_no_torch():
    code = (
        "import sys; from bayesify.cli import main; main(['--help']), main(['--version']), main();"
        "print([each for each in ('torch', 'numpy', 'jinja2') if each in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_list_of_commands_says_what_each_says_itself():
    for name, (module, line, _) in COMMANDS_BY_NAME.items():
        function = getattr(import_module(f"bayesify.cli.{module}"), name)
        assert inspect.getdoc(function).partition("\n\n")[0] == line


@pytest.mark.parametrize("name", METHODS)
def test_the_help_of_a_method_has_its_options_and_no_other(bayesify_, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, _ = bayesify_("fit", name, "--help")
    listed = {word for word in out.split() if word.startswith("--")}
    listed -= {"--data:", "--data", "--out"}  # of the sentence and the example around them
    fields = fields_of(METHODS[name])
    assert code == 0
    assert listed == {"--help", "--help."} | {f"--{each.replace('_', '-')}" for each in fields}
    told = " ".join(out.replace("│", " ").split())
    for each in fields.values():
        assert each.help[1:] in told
        assert each.bounds.choices or each.bounds.describe() in told
        if each.default is not None:
            assert f"default {shown(each.default)}" in told
    assert len(out.splitlines()) <= 80  # two screens
    assert bayesify_("fit", "--method", name, "--help")[1] == out


def test_help_and_bounds_are_those_of_the_method_not_of_another(bayesify_):
    assert "How many networks (at least 2)" in bayesify_("fit", "ensemble", "--help")[1]
    assert "(at least 2)" not in bayesify_("fit", "bali", "--help")[1]
    assert "Adam, falls" in " ".join(bayesify_("fit", "map", "--help")[1].replace("│", "").split())
    assert "rate of Adam" not in bayesify_("fit", "swag", "--help")[1]


def test_help_of_fit_lists_the_methods_and_what_every_fit_takes(bayesify_):
    _, out, _ = bayesify_("fit", "--help")
    lines = [line.strip() for line in out.splitlines()]
    for name in METHODS:
        assert any(line.startswith(f"{name} ") for line in lines)
    for flag in ("--data", "--seed", "--batch-size", "--set", "--overwrite"):
        assert f"{flag} " in out
    assert "--members" not in out


# compare


def test_compare_makes_a_table_a_page_and_records(bayesify_, place, tmp_path):
    asked = ["compare", "--data", place / "blobs.npz", "--methods", "map,map+ts,stf", *QUICK]
    asked += ["--seeds", "0,1", "--num-samples", "2", "--out", tmp_path / "a"]
    code, out, err = bayesify_(*asked)
    assert code == 0
    assert "map+ts" in out
    assert "NLL" in out
    assert len([line for line in err.splitlines() if "seed" in line]) == 6
    assert "report.html" in err
    assert "<svg" in (tmp_path / "a" / "report.html").read_text()
    assert len((tmp_path / "a" / "results.jsonl").read_text().splitlines()) == 6

    code, out, err = bayesify_(*asked, "--json")
    assert code == 0
    assert "6 of 6 runs were done before" in err
    records = [json.loads(line) for line in out.splitlines()]
    assert {record["method"] for record in records} == {"map", "map+ts", "stf"}
    assert records[0]["command"].startswith("bayesify compare --data ")

    code, out, err = bayesify_("report", tmp_path / "a", "--json")
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == records
    assert "map+ts" in err
    code, out, _ = bayesify_("report", tmp_path / "a" / "results.jsonl")
    assert code == 0
    assert "map+ts" in out


def test_compare_takes_a_file_and_flags_win(bayesify_, place, tmp_path):
    (tmp_path / "s.toml").write_text(
        f'data = "{place / "blobs.npz"}"\nseeds = [0, 1]\n'
        '[[method]]\nname = "map"\nepochs = [1, 2]\n'
    )
    asked = ["compare", "--suite", tmp_path / "s.toml", "--seeds", "5", "--print-config"]
    code, out, _ = bayesify_(*asked)
    config = json.loads(out)
    assert code == 0
    assert config["seeds"] == [5]
    assert [each["label"] for each in config["methods"]] == ["map epochs=1", "map epochs=2"]


def test_compare_averages_over_folds_beside_published_numbers(bayesify_, place, tmp_path):
    (tmp_path / "s.toml").write_text(
        'data = "folds.npz"\nmodels = "mlp-5"\nfolds = "all"\nvalidation_share = 0\nseeds = 0\n'
        '[[method]]\nname = "map"\nepochs = 1\n'
        '[[literature]]\nlabel = "PBP"\nsource = "A paper"\ndata.folds.nll = [2.5, 0.25]\n'
    )
    asked = ["compare", "--suite", tmp_path / "s.toml", "--data-dir", place, "--out", tmp_path]
    code, out, err = bayesify_(*asked, "--print-config")
    config = json.loads(out)
    assert (config["folds"], config["validation_share"]) == ("all", 0)
    assert config["literature"][0]["values"] == {"folds": {"nll": [2.5, 0.25]}}
    code, out, err = bayesify_(*asked)
    assert code == 0
    assert "3 folds · 1 seed" in out
    assert "2.50±0.25" in out
    assert "* From the literature, not measured here: A paper" in out
    assert "fold 2 · seed 0" in err
    code, out, err = bayesify_(*asked, "--folds", "2,0", "--json")
    assert "2 of 2 runs were done before" in err
    records = [json.loads(line) for line in out.splitlines()]
    assert [record.get("fold") for record in records] == [2, 0, None]
    assert records[-1]["literature"] == "PBP"


def test_the_usual_comparison(bayesify_):
    _, out, _ = bayesify_("compare", "--print-config")
    config = json.loads(out)
    assert (config["data"], config["models"], config["seeds"]) == (["digits"], ["mlp"], [0, 1, 2])
    labels = [each["label"] for each in config["methods"]]
    assert labels == ["map", "map+ts", "ensemble", "stf"]


def test_ctrl_c_says_how_to_go_on(bayesify_, place, tmp_path, monkeypatch):
    def stop(model, data, method, **rest):
        if type(method).__name__ == "STF":
            raise KeyboardInterrupt
        return original(model, data, method, **rest)

    original = running.fit
    monkeypatch.setattr(running, "fit", stop)
    asked = ["compare", "--data", place / "blobs.npz", "--methods", "map,stf", *QUICK, "--seeds=0"]
    code, _, err = bayesify_(*asked, "--out", tmp_path, "--fresh")
    assert code == 130
    assert "1 of 2 runs are done and kept. To go on: bayesify compare --data" in err
    assert "--fresh" not in err
    assert len((tmp_path / "results.jsonl").read_text().splitlines()) == 1


def test_a_failed_run_is_reported_and_the_others_are_kept(bayesify_, place, tmp_path):
    asked = ["compare", "--data", place / "blobs.npz", "--methods", "map,stf", *QUICK, "--seeds=0"]
    code, out, err = bayesify_(*asked, "--set", "stf.where=nothing.*", "--out", tmp_path)
    assert code == 2
    assert "map" in out
    assert "failed  stf" in err
    assert "found no weight" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "digitz"], "did you mean 'digits'"),
        (["--model", "mpl"], "did you mean 'mlp'"),
        (["--methods", "maps"], "did you mean 'map'"),
        (["--methods", ","], "methods: expected at least one"),
        (["--seeds", "a"], "--seeds: expected whole numbers"),
        (["--folds", "a"], "--folds: expected whole numbers"),
        (["--folds", "1"], "digits takes no fold"),
        (["--fold", "1"], "No such option"),
        (["--literature", "1"], "No such option"),
        (["--command", "1"], "No such option"),
        (["--model", "mlp-x"], "widths of the hidden layers"),
        (["--validation-share", "0"], "map+ts: expected a validation part"),
        (["--validation-share", "1"], "from 0 to less than 1"),
        (["--set", "map.likelihood.warmth=1"], "likelihood has no option 'warmth'"),
        (["--set", "stf"], "expected NAME=VALUE"),
        (["--set", "epochs=1"], "expected METHOD.OPTION=VALUE"),
        (["--set", "map.epoch=1"], "did you mean 'epochs'"),
        (["--set", "map.epochs=0"], "at least 1"),
        (["--set", "mean-field-vi.epochs=1"], "which is not compared"),
        (["--suite", "none.toml"], "expected a suite in TOML"),
        (["--num-samples", "0"], "--num-samples: expected a value at least 1, got '0'"),
        (["--num-samples", "many"], "--num-samples: expected a whole number, got 'many'"),
        (["--split", "train"], "expected one of 'test', 'validation'"),
        (["--fresh=1"], "does not take a value"),
        (["--device", "tpu"], "cannot be used here"),
        (["--sedes", "1"], "No such option"),
        (["--evaluate", "attack"], "did you mean 'attacks'"),
        (["--set", "attacks.steps=3"], "among what to evaluate"),
        (["--evaluate", "attacks", "--set", "attacks.steps=0"], "at least 1"),
        (["--gradient-samples", "5"], "among what to evaluate"),
        (["--ood", "each-other"], "expected two data sets"),
        (["--target", "x"], "digits takes no target"),
        (["--out", "/proc/version/x"], "cannot write to"),
    ],
)
def test_mistakes_in_compare(refused, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused("compare", *arguments)


# fit, evaluate, predict


def test_fit_says_what_came_out_and_what_to_do_next(bayesify_, place, tmp_path):
    out_folder = tmp_path / "a"
    asked = ["fit", "--method", "map", "--data", place / "blobs.npz", "--epochs", "2"]
    code, out, _ = bayesify_(*asked, "--out", out_folder)
    assert code == 0
    assert "accuracy" in out
    assert f"bayesify evaluate {out_folder}" in out
    code, out, err = bayesify_(*asked, "--out", out_folder, "--overwrite", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["options"]["epochs"] == 2
    assert "nll" in told["validation"]


def test_the_method_may_come_first_or_last_or_as_a_flag(bayesify_, tmp_path):
    rest = ["--data", "digits", "--out", tmp_path / "x", "--print-config", "--epochs", "3"]
    orders = [["stf", *rest], [*rest, "stf"], ["--method", "stf", *rest], [*rest, "--method=stf"]]
    orders += [["stf", "--method", "stf", *rest]]
    told = {bayesify_("fit", *order)[:2] for order in orders}
    assert len(told) == 1
    config = json.loads(told.pop()[1])
    assert (config["method"], config["options"]["epochs"]) == ("stf", 3)


def test_a_posterior_that_is_fitted_again_leaves_other_files_alone(bayesify_, place, tmp_path):
    run = tmp_path / "a"
    fit = ("fit", "--method", "map", "--data", place / "blobs.npz", "--epochs", "1", "--out", run)
    assert bayesify_(*fit)[0] == bayesify_("evaluate", run)[0] == 0
    (run / "thesis.txt").write_text("years of work")
    found = (run / "results.jsonl").read_text()
    _, out, _ = bayesify_(*fit, "--overwrite")
    assert f"is now in {run / 'results.jsonl.old'}" in out.replace("\n", "")
    (run / "results.jsonl").write_text("{}\n")
    bayesify_(*fit, "--overwrite", "--json")
    assert (run / "results.jsonl.old").read_text() == found  # of an earlier one, kept too
    assert (run / "results.jsonl.old1").read_text() == "{}\n"
    assert (run / "thesis.txt").read_text() == "years of work"


def test_a_fit_can_take_all_examples_that_are_not_for_testing(bayesify_, refused, place, tmp_path):
    asked = [
        "fit",
        "--method",
        "map",
        "--data",
        place / "folds.npz",
        "--fold",
        "1",
        "--epochs",
        "1",
    ]
    more = ["--model", "mlp-5", "--validation-share", "0", "--out", tmp_path / "a"]
    code, out, _ = bayesify_(*asked, *more)
    assert code == 0
    assert "validation" not in out
    code, out, _ = bayesify_(*asked, *more, "--overwrite", "--json")
    assert json.loads(out)["validation"] is None
    _, out, _ = bayesify_("evaluate", tmp_path / "a", "--split", "train", "--json")
    assert json.loads(out)["metrics"]["rmse"] > 0
    assert "that part is empty" in refused("evaluate", tmp_path / "a", "--split", "validation")


def test_the_configuration_can_be_seen(bayesify_, tmp_path):
    asked = ["fit", "--method", "stf", "--data", "digits", "--epochs", "3", "--seed", "7"]
    more = ["--set", "pretrain.epochs=2", "--where", "*.bias", "--prior-relative", "true"]
    _, out, _ = bayesify_(*asked, *more, "--out", tmp_path / "x", "--print-config")
    config = json.loads(out)
    assert config["options"]["pretrain"]["epochs"] == 2
    assert config["options"]["where"] == {"kind": "Matching", "patterns": ["*.bias"]}
    assert config["options"]["prior_relative"] is True
    assert (config["options"]["epochs"], config["seed"]) == (3, 7)
    assert not (tmp_path / "x").exists()


def test_compress_writes_a_smaller_posterior_that_the_other_commands_read(
    bayesify_, fitted, tmp_path
):
    out = tmp_path / "small"
    how = ("--codes", "4", "--outliers", "0.02", "--out", str(out))
    code, told, _ = bayesify_("compress", fitted("blobs.npz"), *how)
    assert code == 0
    assert f"See what it costs in accuracy: bayesify evaluate {out}" in told
    assert bayesify_("evaluate", str(out))[0] == 0
    code, said, _ = bayesify_("compress", fitted("blobs.npz"), *how, "--overwrite", "--json")
    sizes = json.loads(said)
    held = [file for file in out.iterdir() if file.name != "results.jsonl.old"]
    assert (code, sizes["saved"]) == (0, sum(file.stat().st_size for file in held))
    assert sizes["of_pair"] < sizes["of_network"]
    assert f"{sizes['gaussians']} gaussians, {sizes['outliers']} outliers, 0 blended" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--codes", "0"], "expected 1 to 32768 codes"),
        (["--outliers", "0.9"], "a share of outliers from 0 to 0.5"),
    ],
)
def test_mistakes_in_compress(refused, fitted, tmp_path, arguments, message):
    out = ("--out", str(tmp_path / "small"))
    assert message in refused("compress", fitted("blobs.npz"), *out, *arguments)


def test_only_gaussian_weights_can_be_compressed(refused, fitted, tmp_path):
    said = refused("compress", fitted("labels.npz"), "--out", str(tmp_path / "small"))
    assert "got Particles; fit one of these first" in said


FEW = ("--starts", "2", "--epochs", "1")


def test_a_run_with_dropout_can_be_judged_and_diagnosed_but_not_compressed(
    bayesify_, refused, place, tmp_path
):
    run, how = tmp_path / "run", ("--model", "mlp-dropout", "--set", "pretrain.epochs=2")
    fit = ("fit", "--data", place / "blobs.npz", "--method", "mc-dropout", *how, "--out", run)
    assert bayesify_(*fit)[0] == 0
    assert bayesify_("evaluate", run)[0] == 0
    assert bayesify_("diagnose", run, *FEW, "--json")[0] == 0
    said = refused("compress", run, "--out", tmp_path / "small")
    assert "dropout is its noise" in said


def test_diagnose_tells_which_layer_to_make_bayesian(bayesify_, fitted, tmp_path):
    run, plot = fitted("blobs.npz"), tmp_path / "seen.svg"
    code, told, err = bayesify_("diagnose", run, *FEW, "--out", plot)
    assert (code, err) == (0, "")  # no progress where there is no terminal
    assert "judged on the validation part" in told
    assert "try bayesify.STF(pretrain=None" in told
    assert f"Plot: {plot}" in told
    kept = json.loads((tmp_path / "seen.json").read_text())
    names = [layer["name"] for layer in kept["layers"]]
    assert all(f"\n{name} " in told for name in names)
    assert kept["suggestion"] in told
    assert plot.read_text().startswith("<svg")
    assert all(f">{name}<" in plot.read_text() for name in names)
    code, said, err = bayesify_("diagnose", run, *FEW, "--out", plot, "--json")
    assert (code, err) == (0, "")
    assert json.loads(said) == kept | {"plot": str(plot)}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["seen.json", "seen.svg"]


def test_diagnose_is_that_of_the_trained_network(bayesify_, fitted, tmp_path):
    run = fitted("blobs.npz")
    out = ("--out", tmp_path / "d.svg", "--json")
    _, said, _ = bayesify_("diagnose", run, "--starts", "2", "--epochs", "2", "--seed", "3", *out)
    posterior, notes = open_run(run)
    splits = notes.splits(None, None)
    model = posterior.model
    model.load_state_dict({**model.state_dict(), **posterior.point()})
    direct = bayesify.diagnose(
        model,
        splits.train,
        validation=splits.validation,
        starts=2,
        method=bayesify.MAP(epochs=2),
        seed=3,
    )
    assert json.loads(said).items() >= direct.to_json().items()


def test_diagnose_draws_beside_the_posterior_and_the_other_commands_go_on(
    bayesify_, fitted, tmp_path
):
    run = tmp_path / "run"
    shutil.copytree(fitted("t.csv"), run)
    code, told, _ = bayesify_("diagnose", run, *FEW)
    assert code == 0
    assert "standard deviations of the training targets" in told
    assert "RMSE" in (run / "diagnosis.svg").read_text()
    assert (run / "diagnosis.json").exists()
    assert bayesify_("evaluate", run)[0] == 0


def test_diagnose_of_chosen_layers(bayesify_, fitted, tmp_path):
    asked = ["diagnose", fitted("blobs.npz"), *FEW, "--out", tmp_path / "d.svg", "--json"]
    every = [layer["name"] for layer in json.loads(bayesify_(*asked)[1])["layers"]]
    chosen = [every[0], every[-1]]
    code, said, _ = bayesify_(*asked, "--layers", ", ".join(reversed(chosen)))
    told = json.loads(said)
    assert code == 0
    assert [layer["name"] for layer in told["layers"]] == chosen  # as they run
    assert told["left_out"] == every[1:-1]


def test_diagnose_without_a_validation_part_says_so(bayesify_, place, tmp_path):
    asked = ["fit", "--method", "map", "--data", place / "blobs.npz", "--epochs", "1"]
    asked += ["--model", "mlp-5", "--validation-share", "0", "--out", tmp_path / "a"]
    assert bayesify_(*asked)[0] == 0
    code, told, _ = bayesify_("diagnose", tmp_path / "a", *FEW)
    assert code == 0
    assert "judged on the test part" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--starts", "1"], "expected at least 2"),
        (["--epochs", "0"], "at least 1"),
        (["--layers", "linear9"], "expected names like 'linear"),
        (["--layers", ","], "expected one name at least"),
        (["--out", "nowhere/d.svg"], "choose a folder that exists"),
        (["--out", "d.png"], "ends in .svg"),
        (["--device", "tpu"], "cannot be used here"),
    ],
)
def test_mistakes_in_diagnose(refused, fitted, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    out = [] if "--out" in arguments else ["--out", "d.svg"]
    assert message in refused("diagnose", fitted("blobs.npz"), *arguments, *out)
    assert list(tmp_path.iterdir()) == []


def test_diagnose_needs_one_trained_network(refused, place, tmp_path):
    assert "holds no posterior" in refused("diagnose", tmp_path)
    assert "holds no posterior" in refused("diagnose", tmp_path / "nowhere")
    asked = ["fit", "--method", "ensemble", "--data", str(place / "blobs.npz"), "--members", "2"]
    assert main([*asked, "--epochs", "1", "--out", str(tmp_path / "a")]) == 0
    assert "holds 2 networks" in refused("diagnose", tmp_path / "a", *FEW)


def test_evaluate_judges_the_saved_posterior(bayesify_, fitted):
    run = fitted("blobs.npz")
    code, out, _ = bayesify_("evaluate", run, "--num-samples", "4")
    assert code == 0
    assert "accuracy" in out
    code, out, _ = bayesify_("evaluate", run, "--split", "validation", "--json")
    told = json.loads(out)
    assert (told["split"], told["ood"]) == ("validation", "none")
    assert told["metrics"]["accuracy"] > 0.5


def test_evaluate_measures_more_where_it_is_asked_to(bayesify_, fitted):
    run = fitted("images")
    few = ["--set", "attacks.examples=6", "--set", "attacks.steps=1", "--set", "attacks.eps=8/255"]
    few += ["--set", "corruptions.examples=6", "--set", "corruptions.severities=3"]
    asked = ["evaluate", run, "--evaluate", "all", *few, "--transfer-from", run]
    code, out, err = bayesify_(*asked, "--json")
    assert code == 0
    told = json.loads(out)
    for name in ("pgd_accuracy", "transfer_accuracy", "corrupted_nll", "membership_auc"):
        assert name in told["metrics"]
    assert "far_confidence" in told["metrics"] or "far-away: left out" in err
    assert told["curves"]["robustness"]["eps"] == [0, pytest.approx(8 / 255)]


def test_what_was_found_is_kept_for_a_report(bayesify_, fitted, tmp_path):
    runs = [fitted("blobs.npz"), fitted("images")]
    for run in runs:
        bayesify_("evaluate", run, "--num-samples", "2")
        _, out, _ = bayesify_("evaluate", run, "--num-samples", "2")  # again: it counts once
        assert "Kept in" in out
    page = tmp_path / "page.html"
    code, out, err = bayesify_("report", *runs, "--out", page, "--json")
    assert code == 0
    assert str(page) in " ".join(err.split())
    records = [json.loads(line) for line in out.splitlines()]
    assert {record["method"] for record in records} == {"stf", "map"}
    fresh = [r for r in records if r["setup"]["num_samples"] == 2 and r["split"] == "test"]
    assert len(fresh) == 2
    assert "images" in page.read_text()


def test_a_saved_posterior_that_cannot_be_written_to_is_judged(bayesify_, fitted, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(fitted("blobs.npz"), run)
    (run / "results.jsonl").unlink(missing_ok=True)
    (run / "results.jsonl").mkdir()
    code, out, err = bayesify_("evaluate", run)
    assert code == 0
    assert "accuracy" in out
    assert "Not kept" in err


def test_evaluate_on_images_has_foreign_data(bayesify_, fitted):
    _, out, _ = bayesify_("evaluate", fitted("images"), "--json")
    assert "ood_auroc" in json.loads(out)["metrics"]


def test_evaluate_takes_the_same_data_from_elsewhere(bayesify_, place, fitted, tmp_path):
    run = fitted("t.csv")
    shutil.copy(place / "t.csv", tmp_path / "moved.csv")
    _, before, _ = bayesify_("evaluate", run, "--json")
    _, after, _ = bayesify_("evaluate", run, "--json", "--data", tmp_path / "moved.csv")
    assert json.loads(after)["metrics"] == json.loads(before)["metrics"]


def test_evaluate_uses_the_statistics_of_the_training_data(bayesify_, fitted, tmp_path):
    run = fitted("t.csv")
    rows = [f"{n},{['red', 'green', 'blue'][n % 3]},{2 * n + 100.5}" for n in range(30, 60)]
    (tmp_path / "other.csv").write_text("\n".join(["size,colour,weight", *rows]))
    split = ["--split", "train", "--json"]
    _, out, _ = bayesify_("evaluate", run, "--data", tmp_path / "other.csv", *split)
    other = json.loads(out)["metrics"]
    _, out, _ = bayesify_("evaluate", run, *split)
    assert other["sharpness"] == pytest.approx(json.loads(out)["metrics"]["sharpness"], rel=0.02)


def test_predictions_of_classes(bayesify_, place, fitted, tmp_path):
    run, out_file = fitted("blobs.npz"), tmp_path / "below" / "p.csv"
    code, out, _ = bayesify_("predict", run, place / "new.npz", "--out", out_file)
    assert (code, out) == (0, f"Wrote 4 predictions to {out_file}.\n")
    with out_file.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert set(rows[0]) == {"input", "class", "probability", "entropy", "mutual_information"}
    assert all(row["class"] in ("0", "1") for row in rows)
    assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)
    _, out, _ = bayesify_("predict", run, place / "new.npz", "--json")
    exact = [json.loads(line) for line in out.splitlines()]
    assert [float(r["probability"]) for r in rows] == pytest.approx(
        [r["probability"] for r in exact], rel=1e-5
    )


def test_predictions_of_numbers_are_in_the_units_of_the_target(bayesify_, place, fitted):
    code, out, _ = bayesify_("predict", fitted("t.csv"), place / "new.csv")
    assert code == 0
    rows = list(csv.DictReader(out.splitlines()))
    assert 90 < float(rows[0]["mean"]) < 290  # the targets' range; standardised ones are near 0
    assert float(rows[0]["standard_deviation"]) > 1


def test_predictions_are_those_of_the_training_pipeline(bayesify_, place, fitted):

    posterior, notes = open_run(fitted("t.csv"))
    _, x = notes.intake.read(place / "t.csv")
    splits = notes.splits(None, None)
    rows = {tuple(row.tolist()) for row in x}
    seen, _ = splits.train[[0, 1, 2]]
    assert all(tuple(row.tolist()) in rows for row in seen)
    assert posterior.predict(x).mean.shape == (90, 1)  # type: ignore[attr-defined]


def test_predictions_of_labels(bayesify_, place, fitted):
    code, out, _ = bayesify_("predict", fitted("labels.npz"), place / "new.npz")
    assert code == 0
    assert out.splitlines()[0] == "input,0,1"


def test_predictions_of_images(bayesify_, place, fitted):
    run = fitted("images")
    code, out, _ = bayesify_("predict", run, place / "large.png", "--json")
    assert code == 0
    assert json.loads(out)["input"] == "large.png"
    code, out, _ = bayesify_("predict", run, place / "images", "--json")
    assert code == 0
    assert len(out.splitlines()) == 40
    assert json.loads(out.splitlines()[0])["input"].startswith("dark")


def test_a_table_on_a_terminal(bayesify_, place, fitted, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    _, out, _ = bayesify_("predict", fitted("images"), place / "images")
    assert "and 20 more" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["map", "--members", "3"], "map has no option --members: it has --epochs, --lr, --prior"),
        (["map", "--epoch", "3"], "did you mean 'epochs'"),
        (["--ovrwrite", "map"], "expected METHOD"),
        (["map", "--ovrwrite"], "did you mean 'overwrite'"),
        (["--method", "map", "--members=3"], "map has no option --members"),
        (["map", "--set", "members=3"], "map has no option 'members': it has epochs, lr, prior"),
        (["map", "--method", "stf"], "expected one method, got map and --method stf"),
        (["mapp"], "did you mean 'map'"),
        (["--method", "mapp"], "did you mean 'map'"),
        (["--method", "map", "--epochs", "0"], "at least 1"),
        (["--method", "map", "--epochs", "few"], "a whole number, got 'few'"),
        (["--method", "map", "--lr", "-1"], "above 0"),
        (["--method", "stf", "--pretrain", "none", "--set", "pretrain.epochs=1"], "is none"),
        (["--method", "map", "--weights", "none.safetensors"], "safetensors"),
        (["--method", "map", "--model", "nowhere:net"], "cannot import"),
        (["--method", "map", "--batch-size", "0"], "--batch-size: expected a value at least 1"),
        (["map", "--batch-size", "few"], "--batch-size: expected a whole number, got 'few'"),
        (["map", "extra"], "unexpected extra argument"),
        ([], "expected METHOD, one of map, ensemble"),
    ],
)
def test_mistakes_in_fit(refused, place, tmp_path, arguments, message):
    out = tmp_path / "a"
    assert message in refused("fit", "--data", place / "blobs.npz", "--out", out, *arguments)
    assert not out.exists()


def test_fit_refuses_what_exists(refused, place, tmp_path):
    asked = ["fit", "--method", "map", "--data", place / "blobs.npz", "--out"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "file").write_text("")
    assert "exists already" in refused(*asked, tmp_path / "mine")
    assert "is no saved posterior" in refused(*asked, tmp_path / "mine", "--overwrite")
    assert "cannot write to" in refused(*asked, tmp_path / "file" / "a")
    assert (tmp_path / "mine").is_dir()


def test_mistakes_in_evaluate(refused, place, fitted, tmp_path):
    run = fitted("blobs.npz")
    assert "holds no posterior" in refused("evaluate", tmp_path)
    assert "expected one of test" in refused("evaluate", run, "--split", "all")
    assert "a value at least 1, got '0'" in refused("evaluate", run, "--num-samples", "0")
    assert "expected one data set" in refused("evaluate", run, "--ood", "each-other")
    assert "input shape" in refused("evaluate", run, "--data", "digits")
    assert "images" in refused("evaluate", run, "--ood", "photos")
    assert "use `bayesify compare`" in refused("evaluate", run, "--evaluate", "shadows")
    assert "options of its fit" in refused("evaluate", run, "--set", "stf.epochs=3")
    assert "holds no posterior" in refused("evaluate", run, "--transfer-from", tmp_path)
    for elsewhere in (["--split", "train"], ["--data", place / "blobs.npz"]):
        asked = ["evaluate", run, "--evaluate", "membership", *elsewhere]
        assert "training data of the fit" in refused(*asked)


def test_a_posterior_saved_without_notes_says_so(refused, tmp_path):
    net = bayesify.models.build("mlp", (3,), 2, seed=0)
    likelihood = bayesify.Categorical()
    posterior = bayesify.WeightPosterior(net, bayesify.MeanField.around(net), likelihood)
    bayesify.save(posterior, tmp_path / "a")
    assert "bayesify.load(path, model)" in refused("evaluate", tmp_path / "a")


@pytest.mark.parametrize(
    ("run", "inputs", "message"),
    [
        ("blobs.npz", "nowhere.npz", "no such file"),
        ("blobs.npz", "wide.npz", "expected examples of shape (3,)"),
        ("blobs.npz", "new.csv", "expected an .npz file with x"),
        ("t.csv", "pink.csv", "'pink', which the training data did not"),
        ("t.csv", "short.csv", "colour is missing"),
        ("t.csv", "new.npz", "expected a .csv file"),
        ("images", "t.csv", "expected an image"),
    ],
)
def test_mistakes_in_predict(refused, place, fitted, run, inputs, message):
    assert message in refused("predict", fitted(run), place / inputs)


def test_an_output_that_cannot_be_written(refused, place, fitted, tmp_path):
    (tmp_path / "file").write_text("")
    asked = ["predict", fitted("blobs.npz"), place / "new.npz"]
    assert "cannot be written" in refused(*asked, "--out", tmp_path / "file" / "p.csv")


# the rest


def test_the_list_of_data(bayesify_):
    code, out, _ = bayesify_("data")
    assert code == 0
    assert "digits" in out
    assert "apt-get install" in out.replace("\n", " ")
    _, out, _ = bayesify_("data", "--json")
    names = [json.loads(line)["name"] for line in out.splitlines()]
    assert names[0] == "digits"


def test_a_report_needs_results(refused, tmp_path):
    assert "no such file" in refused("report", tmp_path)
    assert "Missing argument" in refused("report")


def test_several_folders_need_a_page_to_write(refused, bayesify_, fitted):
    runs = [fitted("blobs.npz"), fitted("images")]
    for run in runs:
        bayesify_("evaluate", run)
    assert "expected --out FILE" in refused("report", *runs)


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(bayesify.DataError):
        main(["report", str(tmp_path), "--debug"])


def test_a_process_exits_with_the_code(tmp_path):
    code = "import sys; from bayesify.cli import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "report", str(tmp_path)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
