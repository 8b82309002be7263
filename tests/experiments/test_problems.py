from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from bayesify import models
from bayesify.core.errors import DataError, LoadError, OptionError
from bayesify.experiments.aspects import Aspects
from bayesify.experiments.problems import arenas, build, cells, some_of, usable_device


def identities(suite):
    return [cell.identity for arena in arenas(suite) for cell in cells(suite, arena)]


def test_cells_are_methods_times_seeds_and_those_that_share_a_fit_are_neighbours(suite):
    asked = suite("map,stf,map+ts", seeds=(0, 1))
    (arena,) = arenas(asked)
    made = [(cell.entry.label, cell.seed) for cell in cells(asked, arena)]
    assert made == [(m, s) for s in (0, 1) for m in ("map", "map+ts", "stf")]


def test_an_identity_is_the_same_whenever_and_in_whatever_company(suite):
    first, second, third = identities(suite())
    assert identities(suite()) == [first, second, third]
    assert identities(suite("stf")) == [third]
    assert len({first, second, third}) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": (1,)},
        {"num_samples": 3},
        {"batch_size": 32},
        {"split": "validation"},
        {"split_seed": 1},
        {"validation_share": 0.2},
        {"validation_share": 0},
        {"settings": {"map": {"epochs": 2}}},
    ],
)
def test_what_decides_a_result_changes_the_identity(suite, change):
    assert not set(identities(suite("map", **change))) & set(identities(suite("map")))


def test_other_data_under_the_same_name_are_other_cells(suite, blobs):
    before = identities(suite())
    rng = np.random.default_rng(1)
    np.savez(blobs, x=rng.normal(size=(60, 3)), y=np.arange(60) % 2)
    assert not set(identities(suite())) & set(before)


def test_a_command_and_a_device_do_not_change_the_identity(suite):
    assert identities(replace(suite(), command="other")) == identities(suite())


def test_foreign_data_are_photographs_for_images_only(suite):
    (blobs,) = arenas(suite())
    assert blobs.ood is None
    (digits,) = arenas(suite(data=("digits",)))
    assert digits.ood_name == "photos"
    assert len(digits.ood) == 1000
    (alone,) = arenas(suite(data=("digits",), ood=None))
    assert alone.ood is None


def test_weights_are_loaded_and_are_part_of_the_identity(suite, tmp_path):
    net = models.build("mlp", (3,), 2, seed=9)
    path = tmp_path / "w.safetensors"
    save_file(net.state_dict(), path)
    asked = suite(weights=str(path))
    (arena,) = arenas(asked)
    built = build(asked, arena, "mlp", seed=0)
    torch.testing.assert_close(built.state_dict(), net.state_dict(), rtol=0, atol=0)
    assert not set(identities(asked)) & set(identities(suite()))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"data": ("nowhere.npz",)}, DataError),
        ({"models": ("mlpp",)}, OptionError),
        ({"ood": "photoz"}, DataError),
        ({"device": "tpu9"}, OptionError),
        ({"weights": "nowhere.safetensors"}, LoadError),
        ({"data": ("digits",), "folds": (1,)}, OptionError),
        ({"settings": {"map": {"likelihood.warmth": 1}}}, OptionError),
    ],
)
def test_mistakes_come_out_before_anything_is_run(suite, change, error):
    with pytest.raises(error):
        arenas(suite(**change))


def test_folds_are_asked_for_by_number_or_all_at_once(suite, folded, blobs):
    def chosen(folds, *data):
        return [(each.name, each.fold) for each in arenas(suite("map", data=data, folds=folds))]

    assert chosen((2, 0), folded) == [(folded, 2), (folded, 0)]
    assert chosen(None, folded) == [(folded, None)]
    assert chosen("all", folded, blobs, "digits") == [
        *((folded, fold) for fold in range(3)),
        (blobs, None),
        ("digits", None),
    ]


def test_a_fold_has_its_own_test_part_and_its_own_identity(suite, folded):
    asked = suite("map", data=(folded,), folds="all")
    ready = arenas(asked)
    with np.load(folded) as file:
        for arena in ready:
            wanted = torch.tensor(file["x"][file["test_index"][arena.fold]])
            assert torch.equal(arena.splits.test.x, wanted)
    made = [cell for arena in ready for cell in cells(asked, arena)]
    assert [cell.fold for cell in made] == [0, 1, 2]
    assert len({cell.identity for cell in made}) == 3
    assert len({str(cell.setup) for cell in made}) == 1  # so that tables average over them


def test_all_rows_that_are_not_for_testing_can_be_trained_on(suite, folded):
    (arena,) = arenas(suite("map", data=(folded,), validation_share=0.0))
    assert [len(part) for part in (arena.splits.train, arena.splits.validation)] == [50, 0]


def test_the_usual_share_leaves_the_identity_as_it_was(suite):
    (arena,) = arenas(suite("map"))
    (cell,) = cells(suite("map"), arena)
    assert set(cell.setup) == {"num_samples", "batch_size", "split_seed", "data_digest"}


def test_options_of_the_likelihood_are_read_once_and_decide_the_identity(suite, folded):
    def made(value):
        asked = suite("map", {"map": {"likelihood.scale": value}}, data=(folded,))
        (cell,) = cells(asked, *arenas(asked))
        return cell

    assert made("0.5").setup["likelihood"] == {"scale": 0.5}
    assert made("0.5").identity == made(0.5).identity
    assert made(0.5).identity != made(0.25).identity


def test_the_name_of_data_says_which_column(suite, tmp_path):
    rows = "\n".join(f"{n},{n % 7 / 3},{n / 5}" for n in range(60))
    (tmp_path / "t.csv").write_text("a,b,c\n" + rows)
    (arena,) = arenas(suite(data=(str(tmp_path / "t.csv"),), target="c"))
    assert arena.name.endswith("t.csv (target c)")


def test_some_examples_are_spread_over_all(suite):
    (arena,) = arenas(suite())
    assert len(some_of(arena.splits.train, 5)) == 5
    assert len(some_of(arena.splits.train, 10_000)) == len(arena.splits.train)


def test_the_cpu_is_usable():
    assert usable_device(None) == "cpu"


def test_each_is_foreign_to_the_other(suite, tmp_path):
    files = []
    for name, level in (("a", 0), ("b", 1)):
        files.append(tmp_path / f"{name}.npz")
        x = np.full((40, 1, 4, 4), level, np.float32)
        np.savez(files[-1], x=x, y=np.arange(40) % 2)
    names = tuple(map(str, files))
    first, second = arenas(suite("map", data=names, ood="each-other"))
    assert (first.ood_name, second.ood_name) == (names[1], names[0])
    assert first.ood.x.min() == 1


def test_what_is_measured_beside_quality_makes_another_cell(suite):
    asked = suite("map", aspects=Aspects().changed(["membership"], {}))
    assert identities(asked) != identities(suite("map"))
    (arena,) = arenas(asked)
    assert next(cells(asked, arena)).setup["evaluate"] == {"membership": {}}
