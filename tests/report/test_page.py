import re
from html.parser import HTMLParser

import pytest

from bayesify.errors import DataError
from bayesify.report.groups import groups
from bayesify.report.page import command, render, write

from .fake import folded_records, published, records, regression_records

VOID = {"meta", "br", "img", "hr", "link", "input"}


class Balance(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_written_with_every_method(tmp_path):
    path = write(records(3), tmp_path / "new" / "report.html")
    page = path.read_text()
    assert all(label in page for label in ("map+ts", "ensemble", "stf", "bella", "bali"))
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    "made",
    [
        records(1),
        records(3) + regression_records(),
        records(2, ood=None),
        regression_records(1),
        records(1, ("map",)),
        [published(), *regression_records(1)],
    ],
    ids=["one seed", "two tasks", "no ood", "regression", "one method", "published"],
)
def test_tags_are_balanced_whatever_was_run(made):
    balance = Balance()
    balance.feed(render(made))
    assert balance.open == []


def test_the_page_fetches_nothing():
    page = render(records(2))
    links = re.findall(r'(?:src|href|action)\s*=\s*"([^"]*)"', page)
    assert all(link.startswith("#") for link in links)
    assert "<script" not in page
    assert "@import" not in page
    assert not re.findall(r"url\((?!#)", page)


def test_the_same_records_give_the_same_page():
    assert render(records(2)) == render(records(2))


def test_colours_in_figures_follow_the_scheme_of_the_page():
    svgs = re.findall(r"<svg.*?</svg>", render(records(1)), flags=re.DOTALL)
    assert len(svgs) == 3
    assert all("var(--c0)" in svg for svg in svgs)
    assert not re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", "".join(svgs))


def test_names_from_records_are_escaped():
    made = records(1, ("map", "stf"))
    for record in made:
        record["data"] = "<script>alert(1)</script>"
        record["method"] += " <b>&"
    page = render(made)
    assert "<script" not in page
    assert "stf <b>&" not in page


def test_provenance_lists_versions_revision_and_date():
    page = render(records(2))
    for fact in ("2.13.0", "d79d1da", "2026-11-02T12:00:00Z"):
        assert fact in page


def test_a_record_of_the_bare_minimum_is_enough():
    kept = ("method", "model", "data", "seed", "split", "task", "metrics")
    assert "0.12" in render([{name: each[name] for name in kept} for each in records(1)])


def test_the_command_names_every_cell():
    (group,) = groups(records(2, ("map", "map+ts", "stf")))
    assert command(group) == (
        "bayesify compare --data digits --ood photos --model mlp --methods map,stf --seeds 0,1"
    )


def test_a_recorded_command_is_repeated_as_it_is():
    (record,) = records(1, ("map",))
    record["command"] = "bayesify compare --suite small.toml"
    assert command(groups([record])[0]) == record["command"]


def test_commands_that_differ_are_all_shown():
    made = records(2, ("map", "stf"))
    for record in made:
        record["command"] = f"bayesify compare --methods {record['method']}"
    (group,) = groups(made)
    assert command(group).splitlines() == [
        "bayesify compare --methods map",
        "bayesify compare --methods stf",
    ]


def test_the_setup_is_shown_beside_the_options():
    made = records(1, ("map",))
    made[0]["setup"] = {"batch_size": 17}
    assert "&#34;batch_size&#34;: 17" in render(made)


def test_published_numbers_are_marked_and_are_no_runs():
    page = render([published(source="A <paper>"), *regression_records(1)])
    assert "PBP *" in page
    assert "* From the literature, not measured here: A &lt;paper&gt;" in page
    assert "3 methods, 3 runs" in page
    assert "3.01" in page


def test_published_numbers_alone_make_no_page():
    with pytest.raises(DataError, match="published numbers only"):
        render([published()])


def test_folds_are_told_and_repeated():
    made = folded_records({(0, 0): 1.0, (3, 0): 2.0})
    assert "folds 0, 3; seeds 0" in render(made)
    assert command(groups(made)[0]).endswith("--seeds 0 --folds 0,3")


def test_no_records_make_no_page(tmp_path):
    with pytest.raises(DataError, match="at least one"):
        write([], tmp_path / "report.html")
    with pytest.raises(DataError, match="record 1"):
        render([{"method": "map"}])
