import json
import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from bayesify.evaluation.diagnosis.open_layers import Diagnosis, LayerDiagnosis
from bayesify.experiments.report.plots.diagnosis import diagnosis_plot
from bayesify.experiments.report.style import INK, PALETTE, PAPER
from bayesify.weights.select import Matching

from .drawing import colours_of, texts_of

BLUE, MARKED = PALETTE[0], PALETTE[1]
NAMES = ("stem", "body", "head")


def layer(name, similarity=0.5, *, starts=3, scores=None, varying=True, seed=0):
    draw = np.random.default_rng(seed)
    pairs = tuple(similarity + draw.uniform(-0.05, 0.05, math.comb(starts, 2)))
    scores = scores or tuple(draw.integers(97, 100, starts) / 100)
    return LayerDiagnosis(
        name=name,
        names=(f"{name}.weight",),
        shapes=((4, 4),),
        where=Matching((f"{name}.*",)),
        scores=scores,
        nlls=(0.1,) * starts,
        correlations=tuple(each / 2 for each in pairs) if varying else pairs,
        varying_correlations=pairs if varying else (),
        correlations_with_given=tuple(draw.uniform(0.6, 0.7, starts)),
        distances=(1.0,) * len(pairs),
        distances_to_given=(1.0,) * starts,
        disagreements=(0.01,) * len(pairs),
    )


def diagnosis(layers, task="classification", given=0.985, starts=3):
    return Diagnosis(task, starts, given, tuple(layers)).to_json()


@pytest.fixture
def three():
    similarities = (0.2, 0.4, 0.8)
    scores = (0.97, 0.99, 0.98)
    made = [layer(n, s, scores=scores) for n, s in zip(NAMES, similarities, strict=True)]
    return diagnosis(made)


def tag(each):
    return each.tag.rpartition("}")[2]


def marks(svg, colour):
    """Where markers filled with that colour stand, as (x, y) in the order they were drawn."""
    found = [each for each in ET.fromstring(svg).iter() if tag(each) == "use"]
    return [
        (float(each.get("x")), float(each.get("y")))
        for each in found
        if re.search(f"fill: {colour}(; fill-opacity|; stroke: {INK}|$)", each.get("style", ""))
    ]


def places(svg, colour=None):
    """Of words: text -> (x, y), of the last that was drawn."""
    found = {}
    for each in ET.fromstring(svg).iter():
        if tag(each) == "text" and (colour is None or f"fill: {colour}" in each.get("style")):
            told = each.get("transform") or ""
            moved = re.search(r"translate\(([-\d.]+) ([-\d.]+)\)", told)
            x, y = moved.groups() if moved else (each.get("x"), each.get("y"))
            found[each.text] = (float(x), float(y))
    return found


def size(svg):
    return tuple(map(float, ET.fromstring(svg).get("viewBox").split()[2:]))


def test_every_layer_has_a_row_in_the_order_in_which_it_runs(three):
    svg = diagnosis_plot(three)
    assert [each for each in texts_of(svg) if each in NAMES] == list(NAMES)
    found = places(svg)
    assert found["stem"][1] < found["body"][1] < found["head"][1]  # downwards


def test_it_is_the_same_bytes_each_time(three):
    assert diagnosis_plot(three) == diagnosis_plot(json.loads(json.dumps(three)))


def test_it_stands_alone_on_white(three):
    svg = diagnosis_plot(three)
    root = ET.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(--" not in svg
    first = next(each for each in root.iter() if tag(each) == "path")
    assert f"fill: {PAPER}" in first.get("style")
    assert "opacity: 0" not in first.get("style")
    width, height = size(svg)
    corners = re.findall(r"[-\d.]+ [-\d.]+", first.get("d"))
    assert {(0.0, height), (width, height), (width, 0.0), (0.0, 0.0)} == {
        tuple(map(float, each.split())) for each in corners
    }


@pytest.mark.parametrize("starts", [2, 3, 5])
def test_each_pair_and_each_retraining_has_its_dot(starts):
    made = diagnosis([layer("a", 0.2, starts=starts), layer("b", starts=starts)], starts=starts)
    svg = diagnosis_plot(made)
    each = math.comb(starts, 2) + starts
    assert len(marks(svg, MARKED)) == each
    assert len(marks(svg, BLUE)) == each + 1  # one in the legend


def test_dots_stand_where_the_numbers_are(three):
    """Distances on the page are in proportion to those of the numbers, in both panels."""
    svg = diagnosis_plot(three)
    dots, stem = np.array(marks(svg, MARKED)), three["layers"][0]
    for found, wanted in ((dots[:3], stem["varying_correlations"]), (dots[3:], stem["scores"])):
        x, wanted = found[:, 0], np.array(wanted)
        slope, start = np.polyfit(wanted, x, 1)
        assert slope > 0
        assert x == pytest.approx(slope * wanted + start, abs=1e-3)


def test_equal_scores_do_not_hide_each_other():
    svg = diagnosis_plot(diagnosis([layer("a", 0.1, scores=(0.98,) * 3), layer("b")]))
    equal = marks(svg, MARKED)[3:]
    assert len({x for x, _ in equal}) == 1
    assert len({y for _, y in equal}) == 3


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_most_disparate_layer_is_marked_by_more_than_its_colour(place):
    similarities = [0.9, 0.9, 0.9]
    similarities[place] = 0.1
    made = [layer(n, s) for n, s in zip(NAMES, similarities, strict=True)]
    svg = diagnosis_plot(diagnosis(made))
    assert list(places(svg, MARKED)) == [NAMES[place]]
    bold = [each for each in ET.fromstring(svg).iter() if "font-weight" in each.get("style", "")]
    assert NAMES[place] in [each.text for each in bold]
    assert not {NAMES[i] for i in range(3) if i != place} & {each.text for each in bold}


def test_means_are_written_beside_their_rows(three):
    texts = texts_of(diagnosis_plot(three))
    for each in three["layers"]:
        assert f"{each['mean']['varying_correlation']:.3f}" in texts
        assert f"{each['mean']['score']:.3f}" in texts


def test_similarity_is_of_all_weights_where_the_inputs_are_not_known():
    made = diagnosis([layer("conv", 0.3, varying=False), layer("other", varying=False)])
    texts = texts_of(diagnosis_plot(made))
    assert f"{made['layers'][0]['mean']['correlation']:.3f}" in texts
    assert not any("inputs vary" in text for text in texts)
    made = diagnosis([layer("conv", 0.3, varying=False), layer("linear")])
    assert any("inputs vary" in text for text in texts_of(diagnosis_plot(made)))


def test_an_undefined_correlation_leaves_a_row_without_dots():
    nothing = layer("a")
    nothing = LayerDiagnosis(**vars(nothing) | {"varying_correlations": (math.nan,) * 3})
    svg = diagnosis_plot(diagnosis([nothing, layer("b")]))
    assert "-" in texts_of(svg)
    assert len(marks(svg, BLUE)) == 3 + 1  # the scores, and the legend
    assert len(marks(svg, MARKED)) == 6


def test_nothing_finite_can_be_drawn_too():
    gone = {"scores": (math.nan,) * 3, "varying_correlations": (math.nan,) * 3}
    gone |= {"correlations_with_given": (math.nan,) * 3}
    made = diagnosis([LayerDiagnosis(**vars(layer("a")) | gone)], given=math.nan)
    assert texts_of(diagnosis_plot(made)).count("-") == 2


def axis_numbers(svg, title):
    """Numbers under the panel with that title, the second one."""
    x, _ = places(svg)[title]
    below = [each for each in ET.fromstring(svg).iter() if tag(each) == "text"]
    found = []
    for each in below:
        if "text-anchor: middle" in each.get("style") and float(each.get("x") or 0) >= x - 20:
            try:
                found.append(float(each.text.replace("\N{MINUS SIGN}", "-")))
            except ValueError:
                continue
    return found


def test_small_differences_of_accuracy_look_small():
    svg = diagnosis_plot(diagnosis([layer("a", 0.2, scores=(0.98, 0.981, 0.982)), layer("b")]))
    ticks = axis_numbers(svg, "Accuracy")
    assert max(ticks) - min(ticks) >= 0.08
    assert max(ticks) <= 1


def test_errors_start_at_zero_and_say_what_is_better():
    made = diagnosis([layer("a", scores=(0.4, 0.41, 0.42)), layer("b", 0.1)], "regression", 0.4)
    svg = diagnosis_plot(made | {"split": "test"})
    assert min(axis_numbers(svg, "RMSE")) == 0
    assert "RMSE on the test part; lower is better" in texts_of(svg)


def test_labels_have_their_score():
    made = diagnosis([layer("a"), layer("b", 0.1)], "multilabel")
    assert "Label accuracy" in texts_of(diagnosis_plot(made))


def test_the_model_itself_has_a_name():
    assert "(model)" in texts_of(diagnosis_plot(diagnosis([layer("")])))


def test_long_names_and_many_layers_stay_on_the_page():
    names = [f"base_model.encoder.layer.{i}.attention.self.query_key_value" for i in range(20)]
    svg = diagnosis_plot(diagnosis([layer(n, 0.3 + i / 50) for i, n in enumerate(names)]))
    found = places(svg)
    assert set(names) <= set(found)
    for name in names:
        right, y = found[name]  # its end
        assert right > 0.55 * 8 * len(name)  # DejaVu Sans at 8 points: .55 em a letter
        assert 0 < y < size(svg)[1]
    rows = sorted(found[name][1] for name in names)
    assert min(np.diff(rows)) > 12  # points, for letters of 8


def test_the_network_as_given_is_a_line_and_a_diamond_per_layer(three):
    svg = diagnosis_plot(three)
    assert len(marks(svg, PAPER)) == 3 + 1
    dashed = [each for each in re.findall(r'style="[^"]*"', svg) if "stroke-dasharray: 4" in each]
    assert len(dashed) == 2  # and in the legend
    assert INK in dashed[0]
    assert {BLUE, MARKED, INK, PAPER} <= colours_of(svg)
