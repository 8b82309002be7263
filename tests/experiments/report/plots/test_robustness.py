import numpy as np
import pytest

from bayesify.experiments.report.groups import groups
from bayesify.experiments.report.plots.lines import lines
from bayesify.experiments.report.plots.robustness import (
    _averaged,
    attack_curves,
    family_curves,
    severity_curves,
)
from bayesify.experiments.report.style import PALETTE

from ..fake import FAMILIES, full_records, records
from .drawing import colours_of, drawn_by, texts_of

ALL = (attack_curves, severity_curves, family_curves)


@pytest.mark.parametrize("figure", ALL)
def test_every_method_is_named_in_its_colour(figure):
    svg = drawn_by(figure, full_records(2, ("map", "stf")))
    assert svg == drawn_by(figure, full_records(2, ("map", "stf")))
    assert {"map", "stf"} <= set(texts_of(svg))
    assert set(PALETTE[:2]) <= colours_of(svg)


@pytest.mark.parametrize("figure", ALL)
def test_there_is_nothing_to_draw_without_the_part(figure):
    assert drawn_by(figure, records(1)) is None


def test_attacks_have_a_panel_each_and_sizes_in_255ths():
    texts = texts_of(drawn_by(attack_curves, full_records(1, ("map", "stf"))))
    assert {"FGSM", "PGD", "transfer", "size of the attack, eps in 1/255", "8"} <= set(texts)


def test_an_attack_that_was_not_made_has_no_panel():
    made = full_records(1, ("map", "stf"))
    for record in made:
        del record["curves"]["robustness"]["attacks"]["transfer"]
    texts = texts_of(drawn_by(attack_curves, made))
    assert "PGD" in texts
    assert "transfer" not in texts


def test_one_method_alone_may_have_an_attack():
    made = full_records(1, ("map", "stf"))
    del made[0]["curves"]["robustness"]["attacks"]["transfer"]
    assert "transfer" in texts_of(drawn_by(attack_curves, made))


@pytest.mark.parametrize("eps", [[0, 0.1, 0.2], [0, 0.3]])
def test_sizes_that_are_no_255ths_are_written_as_they_are(eps):
    made = full_records(1, ("map",))
    curve = made[0]["curves"]["robustness"]
    curve["eps"] = eps
    for attack in curve["attacks"].values():
        attack |= {name: values[: len(eps)] for name, values in attack.items()}
    assert "size of the attack, eps" in texts_of(drawn_by(attack_curves, made))


def test_an_infinite_nll_leaves_a_gap():
    made = full_records(2, ("map", "stf"))
    for record in made:
        for attack in record["curves"]["robustness"]["attacks"].values():
            attack["nll"][-1] = None
    assert {"map", "stf"} <= set(texts_of(drawn_by(attack_curves, made)))


def test_families_are_averaged_with_equal_weights():
    (group,) = groups(full_records(1, ("map",)))
    families = group.rows[0].runs[0]["curves"]["corruption"]["families"]
    (line,) = lines(group, "corruption", _averaged("nll"))
    by_hand = np.mean([families[name]["nll"] for name in FAMILIES], axis=0)
    np.testing.assert_allclose(line.y, by_hand)
    assert line.x.tolist() == [0, 1, 2, 3, 4, 5]


def test_every_family_has_a_panel():
    texts = texts_of(drawn_by(family_curves, full_records(1, ("map",))))
    assert {name.replace("_", " ") for name in FAMILIES} <= set(texts)
