import pytest

from bayesify.core.errors import OptionError
from bayesify.evaluation.robustness.curves import Attacks
from bayesify.experiments.aspects import ALL, Aspects


def test_nothing_is_measured_by_default():
    assert Aspects().to_json() == {}


def test_all_is_what_fits_no_more_posteriors():
    assert Aspects().changed(["all"], {}).names == ALL
    assert "shadows" not in ALL
    assert Aspects().changed(["all", "shadows"], {}).names == (*ALL, "shadows")


def test_options_come_from_text_or_values():
    settings = {"attacks": {"eps": "2/255,0.1", "steps": 3}}
    options = Aspects().changed(["attacks"], settings).options
    assert options["attacks"] == Attacks(eps=(2 / 255, 0.1), steps=3)


def test_a_change_keeps_the_rest():
    first = Aspects().changed(["attacks", "membership"], {"attacks": {"steps": 3}})
    again = first.changed(None, {"attacks": {"restarts": 2}})
    assert again.names == first.names
    assert again.options["attacks"] == Attacks(steps=3, restarts=2)
    assert "attacks" not in first.changed(["membership"], {})
    assert first.changed(["none"], {}) == Aspects()


@pytest.mark.parametrize(
    ("names", "settings", "message"),
    [
        (["attack"], {}, "did you mean 'attacks'"),
        (["attacks"], {"attacks": {"step": 3}}, "did you mean 'steps'"),
        (["attacks"], {"attacks": {"steps": 0}}, "at least 1"),
        (["attacks"], {"attacks": {"eps": "a"}}, "expected eps to be"),
        (["attacks"], {"shadows": {"count": 4}}, "expected .shadows. among"),
        (["membership"], {"membership": {"seed": 1}}, "membership has no options"),
    ],
)
def test_mistakes_are_named(names, settings, message):
    with pytest.raises(OptionError, match=message):
        Aspects().changed(names, settings)
