import numpy as np

from bayesify.experiments.report.groups import groups
from bayesify.experiments.report.plots.lines import lines
from bayesify.experiments.report.plots.privacy import LOWEST, RATES, _by_loss, membership_roc
from bayesify.experiments.report.style import MUTED

from ..fake import full_records, records
from .drawing import colours_of, drawn_by, texts_of


def test_both_attacks_have_a_panel_with_their_auc():
    made = full_records(1, ("map", "stf"))
    texts = texts_of(drawn_by(membership_roc, made))
    assert {"threshold on the loss", "likelihood ratio (LiRA)"} <= set(texts)
    metrics = made[0]["metrics"]
    for name in ("membership_auc", "lira_auc"):
        assert f"{100 * metrics[name]:.1f}  map" in texts


def test_axes_are_logarithmic_and_in_percent():
    svg = drawn_by(membership_roc, full_records(2, ("map",)))
    assert {"0.1 %", "1 %", "10 %", "100 %"} <= set(texts_of(svg))
    assert MUTED in colours_of(svg)


def test_without_shadow_models_there_is_one_panel():
    made = full_records(1, ("map",))
    del made[0]["curves"]["lira"]
    assert "likelihood ratio (LiRA)" not in texts_of(drawn_by(membership_roc, made))
    assert drawn_by(membership_roc, records(1)) is None


def test_a_guess_lies_on_the_diagonal():
    made = full_records(1, ("map",))
    made[0]["curves"]["membership"]["loss"] = {"fpr": [0, 0.3, 1], "tpr": [0, 0.3, 1]}
    (group,) = groups(made)
    (line,) = lines(group, "membership", _by_loss)
    np.testing.assert_allclose(line.y, RATES)
    assert line.x[0] == LOWEST


def test_an_attack_that_finds_nobody_can_be_drawn():
    made = full_records(2, ("map",))
    for record in made:
        record["curves"]["membership"]["loss"] = {"fpr": [0, 0.5, 1], "tpr": [0, 0, 1]}
    assert "map" in " ".join(texts_of(drawn_by(membership_roc, made)))
