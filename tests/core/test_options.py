import json
import math
import subprocess
import sys
from dataclasses import dataclass

import pytest

from bayesify import MAP, STF, MeanFieldVI, matching
from bayesify.core.errors import OptionError
from bayesify.core.options import Bounds, check_options, from_json, option, register, to_json
from bayesify.methods import METHODS
from bayesify.weights.select import SELECTORS

NEEDED = {"Matching": {"patterns": ["*"]}}


@dataclass(frozen=True)
class Drink:
    litres: float = option(1.0, help="how much", above=0, at_most=2)
    cups: int = option(2, help="how many", at_least=1)
    hot: bool = option(True, help="whether it steams")
    kind: str = option("tea", help="of what", choices=("tea", "coffee"))
    note: str | None = option(None, help="anything")

    def __post_init__(self) -> None:
        check_options(self)


@pytest.mark.parametrize("good", [{"litres": 2}, {"litres": 2.0}, {"cups": 7}, {"kind": "coffee"}])
def test_values_inside_the_bounds_pass(good):
    Drink(**good)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"litres": 0}, r"Drink\(litres=0\): expected a value above 0 and at most 2; how much"),
        ({"litres": 2.1}, "at most 2"),
        ({"litres": math.nan}, "above 0"),
        ({"litres": math.inf}, "above 0"),
        ({"litres": "1"}, "expected a number, got str; how much"),
        ({"litres": True}, "expected a number, got bool"),
        ({"litres": None}, "expected a number, got NoneType"),
        ({"cups": 0}, "at least 1"),
        ({"cups": 1.0}, "expected a whole number, got float"),
        ({"cups": True}, "expected a whole number, got bool"),
        ({"hot": 1}, "expected True or False, got int"),
        ({"kind": "milk"}, "one of 'tea', 'coffee'; of what"),
    ],
)
def test_values_outside_are_refused_with_what_was_expected(bad, said):
    with pytest.raises(OptionError, match=said):
        Drink(**bad)


def test_bounds_in_words():
    assert Bounds(at_least=1, at_most=3).describe() == "at least 1 and at most 3"
    assert Bounds(choices=("a", "b")).describe() == "one of 'a', 'b'"


def test_nested_options_survive_json():
    method = MeanFieldVI(pretrain=MAP(epochs=3, lr=1e-3), where=matching("a.*", "b"))
    text = json.dumps(to_json(method))
    assert from_json(json.loads(text)) == method
    assert from_json(to_json(STF(pretrain=None))).pretrain is None


def test_what_json_does_not_know_is_refused():
    with pytest.raises(OptionError, match=r"cannot write .* as JSON: .* matching\('\*.weight'\)"):
        to_json(MeanFieldVI(where=lambda model, example: []))
    with pytest.raises(OptionError, match="cannot write <class"):
        to_json(MAP)


def test_foreign_and_unknown_kinds_are_refused():
    with pytest.raises(OptionError, match=r"unknown kind of options 'Nope'; known: .*MAP"):
        from_json({"kind": "Nope"})
    with pytest.raises(OptionError, match=r"MAP has no option \['momentum'\]; it has \['epochs'"):
        from_json({"kind": "MAP", "momentum": 0.9})


def test_options_are_read_before_anything_else_is_imported():
    code = "from bayesify.core.options import from_json; print(from_json({'kind': 'STF'}).epochs)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == STF().epochs


def test_values_read_from_json_are_checked():
    with pytest.raises(OptionError, match="epochs=0"):
        from_json({"kind": "MAP", "epochs": 0})


def test_registration_returns_the_class():
    class Local:
        pass

    assert register(dataclass(frozen=True)(Local)) is Local
    assert from_json({"kind": "Local"}) == Local()


def test_a_class_of_ones_own_cannot_take_the_name_of_one_of_ours():
    own = dataclass(frozen=True)(type("MAP", (), {"__annotations__": {"epochs": int}, "epochs": 9}))
    with pytest.raises(
        OptionError, match=r"MAP: .* another name, got that of .*map\.MAP, .*rename"
    ):
        register(own)
    with pytest.raises(OptionError, match="rename it"):
        register(type("Matching", (), {}))
    with pytest.raises(OptionError, match="rename it"):
        to_json(own())  # it would be read as ours
    assert from_json({"kind": "MAP"}) == MAP()


def test_a_class_of_ones_own_can_be_defined_again():
    for litres in (1, 2):

        @register
        @dataclass(frozen=True)
        class Cup:
            size: int = litres

    assert from_json({"kind": "Cup"}) == Cup(2)


def test_the_tables_are_literal_and_each_kind_has_one_name():
    kinds = [*METHODS.values(), *SELECTORS.values()]
    assert len({kind.__name__ for kind in kinds}) == len(kinds)
    for kind in kinds:
        assert from_json({"kind": kind.__name__, **NEEDED.get(kind.__name__, {})}).__class__ is kind
