"""What a folder says, and who decides what runs: the truth is a marker that code would leave."""

import json
import shutil

import numpy as np
import pytest

from bayesify.cli import main
from bayesify.core.errors import OptionError
from bayesify.models import build

MODULE = """
from math import prod
from pathlib import Path
from torch import nn
Path("imported").touch()
def net(shape, outputs):
    Path("called").touch()
    return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), outputs))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to start in, with data and a run of a model of ours."""
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).normal(size=(60, 3))
    np.savez("d.npz", x=x, y=np.arange(60) % 2)
    np.savez("new.npz", x=x[:4])
    fitted = ["fit", "--data", "d.npz", "--method", "map", "--epochs", "1", "--model", "mlp-4"]
    assert main([*fitted, "--out", "run"]) == 0
    return tmp_path


def poison(run, **changes):
    file = run / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest["notes"] |= changes
    file.write_text(json.dumps(manifest))


def commands(run):
    return {
        "predict": ["predict", run, "new.npz"],
        "evaluate": ["evaluate", run],
        "transfer": ["evaluate", "run", "--evaluate", "attacks", "--transfer-from", run],
        "compress": ["compress", run, "--out", "small"],
        "diagnose": ["diagnose", run, "--starts", "2", "--epochs", "1", "--out", "d.svg"],
    }


@pytest.mark.parametrize("command", commands(""))
@pytest.mark.parametrize("model", ["subprocess:call", "evil_module_of_a_test:net"])
def test_a_folder_cannot_name_code_that_runs(here, capsys, command, model):
    (here / "evil_module_of_a_test.py").write_text(MODULE)
    shutil.copytree("run", "poisoned")
    # `subprocess.call` would be called with the shape of an input and the number of outputs
    shape = [["touch", "called"]] if model == "subprocess:call" else [3]
    intake = json.loads((here / "run" / "manifest.json").read_text())["notes"]["intake"]
    poison(here / "poisoned", model=model, intake=intake | {"input_shape": shape})
    assert main(commands("poisoned")[command]) == 2
    assert not (here / "called").exists()
    assert not (here / "imported").exists()
    said = capsys.readouterr().err
    assert "poisoned" in said
    if shape == [3]:
        assert f"'{model}'" in said
        assert "--model" in said


def test_code_that_the_user_names_is_run(here, capsys):
    (here / "good_module_of_a_test.py").write_text(MODULE)
    name = "good_module_of_a_test:net"
    fitted = ["fit", "--data", "d.npz", "--method", "stf", "--epochs", "1", "--model", name]
    assert main([*fitted, "--set", "pretrain.epochs=1", "--out", "own"]) == 0
    assert f"bayesify evaluate own --model {name}" in capsys.readouterr().out
    (here / "called").unlink()
    for command, arguments in commands("own").items():
        assert main(arguments) == 2
        assert not (here / "called").exists()
        if command != "diagnose":  # a network of one layer has none to retrain
            assert main([*arguments, "--model", name]) == 0
            (here / "called").unlink()
    assert main(["predict", "own", "new.npz", "--model", "mlp"]) == 2
    assert "expected module:function" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "mlp-300000-300000"}, "more than its files can hold"),
        ({"model": "mlp-" + "9" * 5000}, "whole numbers"),
        ({"model": ["mlp"]}, "does not say how to build"),
        ({"num_outputs": -1}, "does not say how to build"),
        ({"num_outputs": 2**30}, "more than its files can hold"),
        (
            {"intake": {"input_shape": [3], "loc": 0, "scale": 1, "dtype": "compile"}},
            "how to build",
        ),
    ],
)
def test_names_and_numbers_of_a_model_are_checked_before_it_is_made(here, capsys, changes, said):
    poison(here / "run", **changes)
    assert main(["predict", "run", "new.npz"]) == 2
    assert said in capsys.readouterr().err


def test_a_suite_cannot_name_code_that_runs(here, capsys):
    (here / "suite_module_of_a_test.py").write_text(MODULE)
    (here / "s.toml").write_text(
        'data = "d.npz"\nmodels = ["mlp-4", "suite_module_of_a_test:net"]\nseeds = 0\n'
        '[[method]]\nname = "map"\nepochs = 1\n'
    )
    assert main(["compare", "--suite", "s.toml", "--out", "c"]) == 2
    assert "name all models of the suite yourself, with --model" in capsys.readouterr().err
    assert not (here / "imported").exists()
    asked = ["compare", "--suite", "s.toml", "--out", "c", "--num-samples", "2"]
    assert main([*asked, "--model", "suite_module_of_a_test:net"]) == 0
    assert (here / "called").exists()


def test_a_width_is_a_whole_number_of_usual_size():
    with pytest.raises(OptionError, match="from 1 to 999999"):
        build("mlp-1000000", (3,), 2)
