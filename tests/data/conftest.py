import pytest


@pytest.fixture(autouse=True)
def no_data_from_outside(monkeypatch):
    monkeypatch.delenv("BAYESIFY_DATA", raising=False)
