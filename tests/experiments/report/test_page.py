import re
from html.parser import HTMLParser

import pytest

from bayesify.core.errors import DataError
from bayesify.experiments.report.groups import groups
from bayesify.experiments.report.page import command, render, write

from .fake import (
    folded_records,
    full_records,
    full_regression_records,
    pair_records,
    published,
    records,
    regression_records,
)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """A page with every part, and the folder it stands in."""
    made = full_records(2, ("map", "stf")) + full_regression_records(1) + pair_records(1)
    path = write(made, tmp_path_factory.mktemp("page") / "report.html")
    return path.read_text(), path.parent


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
    assert sorted(each.name for each in path.parent.iterdir()) == ["report.html", "tables"]


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


def test_a_full_page_is_balanced_and_fetches_nothing(full):
    page, folder = full
    balance = Balance()
    balance.feed(page)
    assert balance.open == []
    assert "<script" not in page
    assert not re.findall(r"url\((?!#)", page)
    links = [each for each in re.findall(r'href="([^"]*)"', page) if not each.startswith("#")]
    assert links
    assert all((folder / link).is_file() for link in links)


def test_every_table_of_a_full_page_is_linked_as_a_file(full):
    page, folder = full
    linked = set(re.findall(r'href="(tables/[^"]*)"', page))
    assert linked == {f"tables/{each.name}" for each in (folder / "tables").iterdir()}
    assert page.count("<table") == len(linked) / 2


def test_anchors_are_unique_and_reached(full):
    page, _ = full
    ids = re.findall(r'<(?:section|div|h3)[^>]* id="([^"]*)"', page)
    assert len(set(ids)) == len(ids)
    assert {each[1:] for each in re.findall(r'<a href="(#[^"]*)"', page)} <= set(ids)
    figures = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    clips = re.findall(r'<clipPath id="([^"]*)"', figures)
    assert len(set(clips)) == len(clips)


def test_topics_come_in_order_with_their_figures(full):
    page, _ = full
    section = page[page.index('id="section-1"') : page.index('id="section-2"')]
    titles = re.findall(r"<h3[^>]*>([^<]*)</h3>", section)
    assert titles == [
        "Quality",
        "Differences to map (paired over seeds)",
        "Foreign data",
        "Attacks",
        "Corrupted data",
        "Membership: what leaks",
        "Certificates and far away",
        "Cost",
        "Run it again",
    ]
    assert section.count("<figure") == 9


def test_only_sections_of_many_figures_have_contents(full):
    page, _ = full
    assert page.count('class="contents"') == 1
    assert page.index('class="contents"') < page.index('id="section-2"')


def test_pairs_stand_at_the_top(full):
    page, _ = full
    assert page.index("trained on digits, judged on letters") < page.index('id="section-1"')
    assert "trained on letters, judged on digits" in page
    assert 'id="pairs"' not in render(records(1, ("map",)))


def test_all_text_in_figures_follows_the_scheme_of_the_page(full):
    page, _ = full
    svgs = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    texts = re.findall(r"<text[^>]*>", svgs)
    assert texts
    assert [each for each in texts if "fill: var(--" not in each] == []
    assert not re.findall(r"(?:fill|stroke): #[0-9a-f]{6}", svgs)


def test_definitions_are_sorted_by_topic(full):
    page, _ = full
    told = page[page.index('id="columns"') :]
    assert told.index("<code>nll</code>") < told.index("<code>pgd_nll</code>")
    assert told.index("<code>pgd_nll</code>") < told.index("<code>flops_per_step</code>")
    assert "_se</code>" not in told


def test_unfinished_methods_are_named_once_a_section():
    made = records(2, ("map", "stf"))[:-1]
    assert render(made).count("Means of fewer runs than the 2 of the others: stf 1") == 1


def test_folds_are_the_units_of_paired_differences():
    values = {(fold, 0): float(fold) for fold in range(3)}
    page = render(folded_records(values) + folded_records(values, "stf"))
    assert "Differences to map (paired over folds)" in page
