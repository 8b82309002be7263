from dataclasses import dataclass

import pytest

from bayesify.core.errors import OptionError
from bayesify.experiments.choices import flat, grid, likelihood_of, likelihood_options, make
from bayesify.likelihoods import LIKELIHOOD_OF_TASK, LIKELIHOODS, Gaussian
from bayesify.methods import METHODS
from bayesify.methods.members.map import MAP
from bayesify.weights.select import first_layer, last_layer, matching


@pytest.mark.parametrize("name", METHODS)
def test_no_options_are_the_defaults(name):
    assert make(name, {}) == METHODS[name]()


def test_text_and_typed_values_mean_the_same():
    typed = make("stf", {"epochs": 3, "lr": 0.5, "prior_relative": True})
    assert make("stf", {"epochs": "3", "lr": "0.5", "prior_relative": "true"}) == typed
    assert (typed.epochs, typed.lr, typed.prior_relative) == (3, 0.5, True)


def test_dotted_and_nested_options_reach_the_method_inside():
    dotted = make("stf", {"pretrain.epochs": 7})
    assert dotted.pretrain.epochs == 7
    assert make("stf", {"pretrain": {"epochs": 7}}) == dotted
    assert make("stf", {"pretrain": {"name": "map", "epochs": 7}}) == dotted


def test_the_method_inside_can_be_none_or_another():
    assert make("stf", {"pretrain": "none"}).pretrain is None
    assert make("stf", {"pretrain": "map"}).pretrain == MAP()
    assert make("stf", {"pretrain": "auto"}).pretrain == make("stf", {}).pretrain == "auto"
    inner = make("stf", {"pretrain": "mean-field-vi", "pretrain.pretrain.epochs": 2})
    assert inner.pretrain.pretrain.epochs == 2


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("first_layer", first_layer),
        ("last_layer", last_layer),
        ("*.a,*.b", matching("*.a", "*.b")),
    ],
)
def test_weights_are_chosen_by_text(text, where):
    assert make("mean-field-vi", {"where": text}).where == where


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("maps", {}, "unknown method 'maps'.*did you mean 'map'"),
        ("map", {"epoch": 1}, "map has no option 'epoch'.*did you mean 'epochs'"),
        ("map", {"epochs": "many"}, "epochs to be a whole number, got 'many'"),
        ("map", {"epochs": 1.5}, "a whole number, got 1.5"),
        ("map", {"epochs": True}, "a whole number, got True"),
        ("map", {"lr": "fast"}, "lr to be a number"),
        ("map", {"lr": True}, "lr to be a number"),
        ("map", {"lr": -1}, "above 0"),
        ("stf", {"prior_relative": "perhaps"}, "true or false"),
        ("stf", {"prior_loc": "middle"}, "'zero', 'start'"),
        ("stf", {"prior_loc": 3}, "prior_loc to be text"),
        ("stf", {"pretrain": "mapp"}, "unknown method 'mapp'"),
        ("stf", {"pretrain": "none", "pretrain.epochs": 3}, "pretrain is none"),
        ("stf", {"pretrain": "auto", "pretrain.epochs": 3}, "pretrain is auto"),
        ("stf", {"where.x": 1}, "where is no method"),
        ("stf", {"pretrain.epoch": 3}, "map has no option 'epoch'"),
        ("stf", {"petrain.epochs": 3}, "did you mean 'pretrain'"),
    ],
)
def test_mistakes_are_named(name, options, message):
    with pytest.raises(OptionError, match=message):
        make(name, options)


def test_lists_are_a_grid():
    made = grid("stf", {"temperature": [0.1, 1], "pretrain.epochs": [1, 2], "epochs": 3})
    assert [varied for varied, _ in made] == [
        "temperature=0.1 pretrain.epochs=1",
        "temperature=0.1 pretrain.epochs=2",
        "temperature=1 pretrain.epochs=1",
        "temperature=1 pretrain.epochs=2",
    ]
    assert {(m.temperature, m.pretrain.epochs, m.epochs) for _, m in made} == {
        (0.1, 1, 3),
        (0.1, 2, 3),
        (1.0, 1, 3),
        (1.0, 2, 3),
    }


def test_a_list_of_one_is_no_variation():
    assert [varied for varied, _ in grid("map", {"epochs": [2]})] == [""]


def test_an_empty_grid_is_refused():
    with pytest.raises(OptionError, match="epochs is an empty list"):
        grid("map", {"epochs": []})


def test_flat_keeps_what_is_flat():
    assert flat({"a": 1, "b": {"c": {"d": 2}}}) == {"a": 1, "b.c.d": 2}


@dataclass(frozen=True)
class Later:
    """A method of some day: options of types that none has yet."""

    widths: tuple[int, ...] = (1,)
    decay: float | None = None


def test_tuples_and_optional_numbers(monkeypatch):
    monkeypatch.setitem(METHODS, "later", Later)  # type: ignore[arg-type]
    assert make("later", {"widths": "3,4", "decay": "0.5"}) == Later((3, 4), 0.5)
    assert make("later", {"decay": "none"}) == Later()
    assert [m.widths for _, m in grid("later", {"widths": [1, 2]})] == [(1, 2)]
    assert [m.widths for _, m in grid("later", {"widths": [[1, 2], [3]]})] == [(1, 2), (3,)]
    assert make("later", {"decay": None}) == Later()
    with pytest.raises(OptionError, match="decay to be a number or none"):
        make("later", {"decay": "soon"})
    with pytest.raises(OptionError, match="whole numbers with commas"):
        make("later", {"widths": "a,b"})


@pytest.mark.parametrize("task", LIKELIHOOD_OF_TASK)
def test_without_options_a_likelihood_is_the_usual_one(task):
    assert likelihood_options(task, {}) == {}
    made, usual = likelihood_of(task, {}), LIKELIHOODS[LIKELIHOOD_OF_TASK[task]]()
    assert type(made) is type(usual)
    assert made.options() == usual.options()


def test_options_of_a_likelihood_are_arguments_of_its_constructor():
    made = likelihood_of("regression", likelihood_options("regression", {"scale": "output"}))
    assert isinstance(made, Gaussian)
    assert made.kind == "output"
    assert likelihood_options("classification", {"logit_temperature": "2"}) == {
        "logit_temperature": 2.0
    }


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("regression", {"scal": 1}, "gaussian likelihood has no option 'scal'.*mean 'scale'"),
        ("regression", {"scale": -1}, "expected a number above 0"),
        ("regression", {"scale": True}, "expected scale to be a number or text, got True"),
        ("classification", {"logit_temperature": "hot"}, "logit_temperature to be a number"),
        ("multilabel", {"scale": 1}, "bernoulli likelihood has no option 'scale': it has none"),
    ],
)
def test_mistakes_in_a_likelihood_are_named(task, options, message):
    with pytest.raises(OptionError, match=message):
        likelihood_options(task, options)
