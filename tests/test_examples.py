import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


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


def test_the_readme_ends_in_a_printed_uncertainty():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    done = run(["-c", code])
    assert done.returncode == 0, done.stderr
    assert re.search(r"epistemic uncertainty: \d\.\d+ nats", done.stdout)


def test_examples_are_short():
    assert EXAMPLES
    assert all(len(path.read_text().splitlines()) < 60 for path in EXAMPLES)
