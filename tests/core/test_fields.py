from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from typing import Literal

import pytest

from bayesify.core.errors import OptionError
from bayesify.core.fields import field_of, fields_of, method_of, name_of, shown
from bayesify.core.options import Bounds, option
from bayesify.core.types import Where
from bayesify.likelihoods import Gaussian
from bayesify.methods import METHODS
from bayesify.methods.laplace.diagonal import DiagonalLaplace
from bayesify.methods.members.map import MAP
from bayesify.training.method import Method, Pretrain
from bayesify.weights.select import all_weights, first_layer, last_layer, matching, matrices


@dataclass(frozen=True)
class Later:
    """Options of every type."""

    count: int = option(1, help="how many", at_least=1)
    rate: float | None = option(None, help="how fast")
    flag: bool = True
    word: str = "a"
    widths: tuple[int, ...] = (1,)
    names: tuple[str, ...] = field(default_factory=tuple)
    folds: tuple[int, ...] | Literal["all"] | None = None
    where: Where = first_layer
    pretrain: Pretrain = None
    build: Callable[[], None] | None = None


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("count", "3", 3),
        ("count", 3.0, 3),
        ("rate", "0.5", 0.5),
        ("rate", "8/255", 8 / 255),
        ("rate", 1, 1.0),
        ("rate", "none", None),
        ("rate", None, None),
        ("flag", "off", False),
        ("flag", "Yes", True),
        ("flag", False, False),
        ("word", "none", "none"),
        ("widths", "3, 4", (3, 4)),
        ("widths", [3, "4"], (3, 4)),
        ("widths", 3, (3,)),
        ("names", "a,b", ("a", "b")),
        ("names", ["a,b"], ("a,b",)),
        ("names", ",", ()),
        ("folds", "all", "all"),
        ("folds", "1", (1,)),
        ("folds", "none", None),
        ("where", "last_layer", last_layer),
        ("where", "all_weights", all_weights),
        ("where", "matrices", matrices),
        ("where", "*.a,*.b", matching("*.a", "*.b")),
        ("where", "matching", matching("matching")),
        ("pretrain", "map", MAP()),
        ("pretrain", MAP(epochs=2), MAP(epochs=2)),
        ("pretrain", "auto", "auto"),
        ("pretrain", "none", None),
    ],
)
def test_text_and_typed_values_are_read(name, given, value):
    read = fields_of(Later)[name].read(given, "later: expected")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("count", "many", "later: expected a whole number, got 'many'"),
        ("count", True, "a whole number, got True"),
        ("count", 1.5, "a whole number, got 1.5"),
        ("rate", "fast", "a number or none, got 'fast'"),
        ("rate", True, "a number or none, got True"),
        ("flag", "perhaps", "true or false, got 'perhaps'"),
        ("flag", 1, "true or false, got 1"),
        ("word", 3, "text, got 3"),
        ("widths", "a,b", "whole numbers with commas between them, got 'a,b'"),
        ("folds", "some", "whole numbers with commas between them or all or none, got 'some'"),
        ("where", 3, "first_layer, last_layer, all_weights or patterns"),
        ("pretrain", 3, "auto or a method's name or none, got 3"),
        ("pretrain", "mapp", "unknown method 'mapp'.*did you mean 'map'"),
        ("build", "net", "what Python alone can give or none, got 'net'"),
    ],
)
def test_values_of_another_type_are_refused_with_what_was_expected(name, given, said):
    with pytest.raises(OptionError, match=said):
        fields_of(Later)[name].read(given, "later: expected")


def test_a_field_knows_its_help_bounds_and_default():
    fields = fields_of(Later)
    assert (fields["count"].help, fields["count"].bounds) == ("how many", Bounds(at_least=1))
    assert (fields["count"].default, fields["names"].default) == (1, ())
    assert [name for name, each in fields.items() if each.several] == ["widths", "names"]


def test_the_arguments_of_a_constructor_are_fields_too():
    assert fields_of(Gaussian)["scale"].default is MISSING
    assert fields_of(Gaussian)["scale"].read("0.5", "expected") == 0.5


def test_an_unknown_option_is_told_what_there_is():
    with pytest.raises(OptionError, match=r"map has no option 'epoch': it has epochs.*'epochs'"):
        field_of(MAP, "epoch")
    with pytest.raises(OptionError, match="Later has no option 'x': it has count, "):
        field_of(Later, "x")  # a class outside the table of methods goes by its own name
    with pytest.raises(OptionError, match=r"nothing has no option 'x': it has none\."):
        field_of(object, "x", "nothing")


@pytest.mark.parametrize("name", METHODS)
def test_methods_have_names(name):
    assert method_of(name) is METHODS[name]
    assert name_of(METHODS[name]) == name
    assert shown(METHODS[name]()) == name
    assert Method in METHODS[name].__mro__


@pytest.mark.parametrize("name", METHODS)
def test_every_default_is_shown_as_it_is_read(name):
    for each in fields_of(METHODS[name]).values():
        read = each.read(shown(each.default), "expected")
        assert read == each.default or type(read) is type(each.default) is DiagonalLaplace
