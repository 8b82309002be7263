from bayesify.core.options import to_json
from bayesify.experiments.cell import Cell, digest
from bayesify.experiments.suite import Entry
from bayesify.methods.members.map import MAP


def cell(label="map", scaled=False, seed=0, fold=None):
    return Cell(Entry(label, MAP(), scaled), "mlp", "digits", fold, seed, "test", None, {"a": 1})


def test_a_scaled_cell_shares_the_fit_but_is_another_cell():
    assert cell().fit_identity == cell("map+ts", scaled=True).fit_identity
    assert cell().identity != cell("map+ts", scaled=True).identity


def test_seeds_are_other_fits():
    assert cell().fit_identity != cell(seed=1).fit_identity


def test_folds_are_other_fits():
    identities = {cell(fold=fold).fit_identity for fold in (None, 0, 1)}
    assert len(identities) == 3


def test_without_a_fold_the_identity_is_as_it_was_before_there_were_folds():
    fitted = {"options": to_json(MAP()), "model": "mlp", "data": "digits", "seed": 0}
    assert cell().fit_identity == digest(
        {**fitted, "split": "test", "ood": None, "setup": {"a": 1}}
    )


def test_an_identity_is_fixed_for_good():
    assert cell().identity == cell().identity
    assert len(cell().identity) == 16


def test_a_name_says_all():
    assert cell().name == "map · digits, mlp · seed 0"
    assert cell(fold=3).name == "map · digits, mlp · fold 3 · seed 0"
