from itertools import pairwise

import matplotlib as mpl

from bayesify.experiments.report.style import PALETTE, new_figure, settings, styles, to_svg


def test_many_methods_all_look_different():
    drawn = styles([str(i) for i in range(64)])
    assert len(set(drawn.values())) == 64
    assert drawn["0"].color == drawn["8"].color == PALETTE[0]


def test_neighbours_differ_without_colour():
    drawn = list(styles([str(i) for i in range(16)]).values())
    for one, other in pairwise(drawn):
        assert one.marker != other.marker
        assert one.dash != other.dash
    assert len({(each.marker, each.dash) for each in drawn[:8]}) == 8


def test_the_settings_of_the_user_come_back():
    before = dict(mpl.rcParams)
    with settings():
        assert mpl.rcParams["svg.fonttype"] == "none"
    assert dict(mpl.rcParams) == before


def test_svg_is_deterministic_and_bare():
    def draw():
        with settings():
            figure = new_figure(2, 2)
            figure.add_subplot().plot([0, 1], [1, 0])
            return to_svg(figure, "test")

    svg = draw()
    assert svg == draw()
    assert svg.startswith("<svg")
    assert svg.endswith("</svg>")
    assert "<metadata>" not in svg
    assert 'id="axes_1"' not in svg
