import numpy as np
import pytest

from bayesify.experiments.suite import Suite, entries


@pytest.fixture
def blobs(tmp_path):
    """A path of 120 points of two classes."""
    rng = np.random.default_rng(0)
    y = np.arange(120) % 2
    path = tmp_path / "blobs.npz"
    np.savez(path, x=rng.normal(size=(120, 3)) + 2 * y[:, None], y=y)
    return str(path)


@pytest.fixture
def folded(tmp_path):
    """A path of 60 numbers to regress on, far from standardised, with three test parts of 10."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(60, 2))
    y = 500 + 200 * x[:, 0] + 20 * rng.normal(size=60)
    path = tmp_path / "folded.npz"
    np.savez(path, x=x, y=y, test_index=np.arange(30).reshape(3, 10))
    return str(path)


@pytest.fixture
def suite(blobs):
    """Three quick cells; `suite(methods=..., seeds=...)` changes it."""

    def suite(methods="map,map+ts,stf", settings=None, **fields):
        quick = {"map": {"epochs": 1}, "stf": {"epochs": 1, "pretrain.epochs": 1}}
        names = methods.split(",")
        known = {name.removesuffix("+ts") for name in names}
        chosen = {name: each for name, each in quick.items() if name in known} | (settings or {})
        defaults = {"data": (blobs,), "seeds": (0,), "num_samples": 2}
        return Suite(**{**defaults, "methods": entries(names, chosen), **fields})

    return suite
