from bayesify.compare.cell import Cell
from bayesify.compare.suite import Entry
from bayesify.methods.map import MAP


def cell(label="map", scaled=False, seed=0):
    return Cell(Entry(label, MAP(), scaled), "mlp", "digits", seed, "test", None, {"a": 1})


def test_a_scaled_cell_shares_the_fit_but_is_another_cell():
    assert cell().fit_identity == cell("map+ts", scaled=True).fit_identity
    assert cell().identity != cell("map+ts", scaled=True).identity


def test_seeds_are_other_fits():
    assert cell().fit_identity != cell(seed=1).fit_identity


def test_an_identity_is_fixed_for_good():
    assert cell().identity == cell().identity
    assert len(cell().identity) == 16


def test_a_name_says_all():
    assert cell().name == "map · digits, mlp · seed 0"
