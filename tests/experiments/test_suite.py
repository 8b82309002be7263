from pathlib import Path

import pytest

from bayesify.core.errors import DataError, OptionError
from bayesify.experiments.suite import DEFAULT_METHODS, Suite, entries, read
from bayesify.methods import METHODS
from bayesify.methods.members.map import MAP


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "suite.toml"
        path.write_text(text)
        return path

    return write


def test_names_become_rows():
    rows = entries(DEFAULT_METHODS, {})
    assert [row.label for row in rows] == list(DEFAULT_METHODS)
    assert [row.scaled for row in rows] == [False, True, False, False]
    assert rows[0].method == rows[1].method == MAP()


def test_all_is_every_method_and_the_scaled_baseline():
    rows = entries(["all"], {})
    assert {row.label for row in rows} == {*METHODS, "map+ts"}
    assert all(row.if_possible for row in rows)


def test_who_is_asked_for_by_name_is_not_left_out():
    rows = {row.label: row for row in entries(["all", "mc-dropout"], {})}
    assert not rows["mc-dropout"].if_possible
    assert rows["stf"].if_possible


def test_every_method_can_be_scaled():
    for row in entries([f"{name}+ts" for name in METHODS], {}):
        assert row.scaled
        assert row.method == METHODS[row.label.removesuffix("+ts")]()


def test_settings_reach_the_method_and_its_scaled_twin():
    rows = entries(["map", "map+ts"], {"map": {"epochs": "2"}})
    assert [row.method.epochs for row in rows] == [2, 2]


def test_settings_for_a_method_that_is_not_compared_are_refused():
    with pytest.raises(OptionError, match="'stf' is given, which is not compared"):
        entries(["map"], {"stf": {"epochs": "2"}})


def test_a_file(write):
    path = write(
        """
        data = "digits"
        models = ["mlp", "cnn"]
        seeds = [3, 4]
        split = "validation"
        ood = "none"
        num_samples = 8
        augment = true

        [[method]]
        name = "map+ts"
        epochs = 2

        [[method]]
        name = "stf"
        label = "long"
        temperature = [0.1, 1.0]
        "pretrain.epochs" = 20
        where = "first_layer"

        [[method]]
        name = "stf"
        pretrain = "none"
        """
    )
    suite = read(path, num_samples=4)
    assert (suite.data, suite.models, suite.seeds) == (("digits",), ("mlp", "cnn"), (3, 4))
    assert (suite.split, suite.ood, suite.num_samples) == ("validation", None, 4)
    assert suite.augment
    labels = ["map+ts", "long temperature=0.1", "long temperature=1.0", "stf"]
    assert [row.label for row in suite.methods] == labels
    assert suite.methods[1].method.pretrain.epochs == 20
    assert suite.methods[3].method.pretrain is None


def test_folds_shares_and_published_numbers_of_a_file(write):
    suite = read(
        write(
            """
            data = ["uci/boston.npz"]
            folds = [0, 4]
            validation_share = 0
            [[method]]
            name = "map"
            [[literature]]
            label = "PBP"
            source = "A paper"
            data.boston = { rmse = [3.01, 0.18] }
            """
        )
    )
    assert (suite.folds, suite.validation_share) == ((0, 4), 0.0)
    assert [(each.label, dict(each.values)) for each in suite.literature] == [
        ("PBP", {"boston": {"rmse": (3.01, 0.18)}})
    ]
    assert read(write("folds = 'all'")).folds == "all"
    assert read(write("folds = 2")).folds == (2,)


def test_options_of_the_likelihood_are_kept_apart_from_those_of_the_method(write):
    suite = read(
        write(
            """
            [[method]]
            name = "map"
            epochs = [1, 2]
            likelihood = { scale = [0.5, 1.0] }
            """
        )
    )
    assert [(row.label, row.method.epochs, row.likelihood) for row in suite.methods] == [
        ("map epochs=1 likelihood.scale=0.5", 1, {"scale": 0.5}),
        ("map epochs=1 likelihood.scale=1.0", 1, {"scale": 1.0}),
        ("map epochs=2 likelihood.scale=0.5", 2, {"scale": 0.5}),
        ("map epochs=2 likelihood.scale=1.0", 2, {"scale": 1.0}),
    ]


SUITES = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("path", sorted(SUITES.rglob("*.toml")), ids=lambda path: path.stem)
def test_the_suites_that_we_ship_can_be_read(path):
    assert read(path).methods


def test_a_file_without_methods_has_the_usual_ones(write):
    assert [row.label for row in read(write("seeds = 0")).methods] == list(DEFAULT_METHODS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = 1", "unknown key 'seed'.*did you mean 'seeds'"),
        ("seeds = ['a']", r"seeds: expected whole numbers .*, got \['a'\]"),
        ("seeds = [true]", r"expected whole numbers .*, got \[True\]"),
        ("seeds = []", "seeds: expected at least one"),
        ("num_samples = 0", r"suite\.toml: num_samples: expected a value at least 1, got 0"),
        ("augment = 1", "expected true or false"),
        ("split = 'train'", "expected one of 'test', 'validation'"),
        ("seeds = -1", "whole numbers from 0 to"),
        ("fold = 1", "unknown key 'fold'.*did you mean 'folds'"),
        ("folds = []", "folds: expected at least one"),
        ("folds = 'some'", "folds: expected whole numbers .* or all or none, got 'some'"),
        ("validation_share = 1.0", "validation_share=1.0: expected a number from 0 to less"),
        ("validation_share = -0.1", "expected a number from 0"),
        ("validation_share = true", "expected a number, got True"),
        ("validation_share = 0.0", r"map\+ts: expected a validation part"),
        (
            "split = 'validation'\nvalidation_share = 0\n[[method]]\nname = 'map'",
            "split='validation': expected a validation part",
        ),
        ("[[method]]\nname = 'map'\nlikelihood.scale = []", "likelihood.scale is an empty list"),
        ("literature = 3", r"as \[\[literature\]\] tables"),
        ("method = 'map'", r"as \[\[method\]\] tables"),
        ("[[method]]\nepochs = 1", "to have a name"),
        ("[[method]]\nname = 'bold'", "unknown method 'bold'"),
        ("[[method]]\nname = 'map'\n[[method]]\nname = 'map'", "map is asked for more than once"),
    ],
)
def test_mistakes_in_a_file_are_named(write, text, message):
    with pytest.raises(OptionError, match=message):
        read(write(text))


def test_a_file_that_is_none(write, tmp_path):
    with pytest.raises(DataError, match="No such file"):
        read(tmp_path / "none.toml")
    with pytest.raises(DataError, match="expected a suite in TOML"):
        read(write("a = "))


def test_a_suite_made_in_python_is_checked_too():
    with pytest.raises(OptionError, match=r"Suite\(batch_size=0\): expected a value at least 1"):
        Suite(batch_size=0, methods=entries(["map"], {}))


def test_a_comparison_needs_methods():
    with pytest.raises(OptionError, match="methods: expected at least one"):
        Suite()


def test_a_file_says_what_to_measure(write):
    path = write(
        """
        evaluate = ["attacks", "membership"]
        [attacks]
        eps = ["8/255", 0.1]
        """
    )
    aspects = read(path).aspects
    assert aspects.names == ("attacks", "membership")
    assert aspects.options["attacks"].eps == (8 / 255, 0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("evaluate = 3", "expected a list of names"),
        ('evaluate = "attack"', "did you mean 'attacks'"),
        ('evaluate = "attacks"\nattacks = 3', "expected attacks as a table"),
        ("[attacks]\nsteps = 3", "expected .attacks. among"),
    ],
)
def test_mistakes_in_what_to_measure_are_named(write, text, message):
    with pytest.raises(OptionError, match=message):
        read(write(text))


def test_the_surrogate_of_transferred_attacks_is_the_suites_own_map():
    assert Suite(methods=entries(["stf", "map"], {"map": {"epochs": 3}})).trained.method.epochs == 3
    assert Suite(methods=entries(["stf"], {})).trained.label == "map"


def test_each_other_needs_another():
    with pytest.raises(OptionError, match="expected two data sets"):
        Suite(ood="each-other", methods=entries(["map"], {}))
