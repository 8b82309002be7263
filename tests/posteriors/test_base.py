import pytest

from bayesify.posteriors.base import FitRecord, Posterior


def test_a_record_is_plain_values():
    record = FitRecord(options={"kind": "MAP"}, seed=1, num_data=2)
    assert FitRecord(**record.to_json()) == record


def test_the_abstract_posterior_cannot_be_made():
    with pytest.raises(TypeError, match="abstract"):
        Posterior()
