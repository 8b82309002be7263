import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bayesify
from bayesify.core.errors import (
    DataError,
    LoadError,
    OptionError,
    ShapeError,
    UnsupportedModelError,
)
from bayesify.core.streams import stream
from bayesify.evaluation.privacy.likelihood_ratio import (
    likelihood_ratio_findings,
    true_class_logits,
)
from bayesify.evaluation.privacy.shadow import Shadows, shadow_attack

FOUR = Shadows(count=4)
QUICK = bayesify.MAP(epochs=1)
BY_HEART = bayesify.MAP(epochs=60, lr=1e-2, prior_scale=100.0)
BLIND = bayesify.MAP(epochs=1, lr=1e-30, prior_scale=1e6)


def build(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))


def noise(examples):
    """Labels that nothing but their own examples tell."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(examples, 8, generator=generator)
    return x, torch.randint(2, (examples,), generator=generator)


def phi_in(folder):
    return torch.stack([load_file(each)["phi"] for each in sorted(folder.iterdir())])


def test_labels_learnt_by_heart_leak():
    found = shadow_attack(build, BY_HEART, noise(80), shadows=Shadows(count=16)).metrics
    assert found["lira_auc"] > 0.8
    assert found["lira_auc"] > 0.5 + 5 * found["lira_auc_se"]
    assert found["lira_tpr1"] >= found["lira_tpr01"] > 0


def test_a_method_that_does_not_look_at_the_data_leaks_nothing():
    found = shadow_attack(build, BLIND, noise(400), shadows=Shadows(count=8)).metrics
    single = math.sqrt(2 / (12 * 200))  # the error of one target's area, were nothing known
    assert abs(found["lira_auc"] - 0.5) < 4 * single / math.sqrt(8 / 2)
    assert found["lira_tpr1"] < 0.05


def test_what_is_kept_is_what_each_posterior_says(tmp_path):
    x, y = noise(40)
    found = shadow_attack(build, QUICK, (x, y), shadows=FOUR, out=tmp_path, batch_size=16)
    files = [load_file(each) for each in sorted(tmp_path.iterdir())]
    inside = torch.stack([each["inside"] for each in files])
    assert (inside.sum(0) == 2).all()
    phi = phi_in(tmp_path)
    assert phi.shape == (4, 40)
    assert likelihood_ratio_findings(phi, inside) == found
    assert found.curves["lira"]["examples"] == 40


def test_each_shadow_is_a_fit_of_its_half_from_its_own_start(tmp_path):
    x, y = noise(40)
    shadow_attack(build, QUICK, (x, y), shadows=FOUR, out=tmp_path)
    generator = stream(FOUR.seed, "halves")
    order = torch.rand(4, 40, generator=generator, dtype=torch.float64).argsort(0)
    seeds = torch.randint(2**31, (4,), generator=generator).tolist()
    for shadow, file in enumerate(sorted(tmp_path.iterdir())):
        kept = load_file(file)
        half = order[shadow] < 2
        assert kept["inside"].equal(half)
        posterior = bayesify.fit(
            build(seeds[shadow]), (x[half], y[half]), QUICK, seed=seeds[shadow]
        )
        torch.testing.assert_close(kept["phi"], true_class_logits(posterior, (x, y)))


def test_a_network_is_every_fits_start_and_a_builder_gives_each_its_own(tmp_path):
    shadow_attack(build(3), BLIND, noise(20), shadows=FOUR, out=tmp_path / "network")
    shadow_attack(build, BLIND, noise(20), shadows=FOUR, out=tmp_path / "builder")
    same, own = phi_in(tmp_path / "network"), phi_in(tmp_path / "builder")
    torch.testing.assert_close(same, same[:1].expand(4, 20))
    assert (own.std(0) > 0.01).all()


def test_the_seed_decides_and_nothing_else():
    found = []
    for seed, elsewhere in ((1, 7), (1, 8), (2, 7)):
        torch.manual_seed(elsewhere)
        shadows = Shadows(count=4, seed=seed)
        found.append(shadow_attack(build, QUICK, noise(40), shadows=shadows).metrics)
    assert found[0] == found[1]
    assert found[0] != found[2]


# ---------------------------------------------------------------------------------------- going on


def test_what_is_there_is_not_fitted_again(tmp_path):
    fitted = []
    attack = partial(shadow_attack, build, QUICK, noise(40), shadows=FOUR, out=tmp_path)
    first = attack(on_fit=fitted.append)
    assert fitted == [0, 1, 2, 3]
    assert attack(on_fit=fitted.append) == first
    assert fitted == [0, 1, 2, 3]
    (tmp_path / "shadow-002.safetensors").unlink()
    assert attack(on_fit=fitted.append) == first
    assert fitted == [0, 1, 2, 3, 2]
    assert attack(out=None) == first
    assert len(list(tmp_path.iterdir())) == 4  # no drafts


@pytest.mark.parametrize(
    "other",
    [
        {"method": bayesify.MAP(epochs=2)},
        {"data": noise(42)},
        {"data": (noise(40)[0], 1 - noise(40)[1])},
        {"data": (noise(40)[0] + 1, noise(40)[1])},
        {"shadows": Shadows(count=4, seed=1)},
        {"shadows": Shadows(count=6)},
        {"batch_size": 10},
        {"num_samples": 3},
        {"model": nn.Linear(8, 2)},
    ],
    ids=lambda each: next(iter(each)),
)
def test_shadows_of_other_settings_are_refused_before_a_fit(other, tmp_path):
    settings = {"model": build, "method": QUICK, "data": noise(40), "shadows": FOUR}
    shadow_attack(**settings, out=tmp_path)
    (tmp_path / "shadow-000.safetensors").unlink()
    fitted = []
    with pytest.raises(LoadError, match="another method, model, data, seed or other options"):
        shadow_attack(**(settings | other), out=tmp_path, on_fit=fitted.append)
    assert fitted == []


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "shadow-001.safetensors").write_bytes(b"half")
    with pytest.raises(LoadError, match=r"shadow-001.*delete it"):
        shadow_attack(build, QUICK, noise(40), shadows=FOUR, out=tmp_path)


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="cannot write"):
        shadow_attack(build, QUICK, noise(40), shadows=FOUR, out=tmp_path / "file")


# -------------------------------------------------------------------------------------- the pool


class Pairs(torch.utils.data.Dataset):
    def __init__(self, x, y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index):
        return self.x[index], self.y[index]


def test_every_kind_of_data_set_gives_the_same():
    x, y = noise(40)
    plain = bayesify.data.Normalise(torch.zeros(8), torch.ones(8))
    kinds = [(x, y), TensorDataset(x, y), bayesify.data.Examples(x, y, plain)]
    found = [shadow_attack(build, QUICK, each, shadows=FOUR) for each in kinds]
    assert found[1] == found[2] == found[0]
    # read one by one; an epoch is one batch, so it is the same up to rounding
    other = shadow_attack(build, QUICK, Pairs(x, y), shadows=FOUR)
    assert other.metrics == pytest.approx(found[0].metrics, abs=0.01)


def test_augmentation_is_for_training_only(tmp_path):
    x, y = noise(40)
    plain = bayesify.data.Normalise(torch.zeros(8), torch.ones(8))
    examples = bayesify.data.Examples(x, y, plain)
    turned = replace(examples, augment=lambda raw: -raw)
    shadow_attack(build, BLIND, examples, shadows=FOUR, out=tmp_path / "plain")
    shadow_attack(build, BLIND, turned, shadows=FOUR, out=tmp_path / "turned")
    torch.testing.assert_close(phi_in(tmp_path / "plain"), phi_in(tmp_path / "turned"))


def test_the_pool_is_spread_evenly_over_the_data(tmp_path):
    x, y = noise(100)
    few = Shadows(count=4, examples=20)
    shadow_attack(build, QUICK, (x, y), shadows=few, out=tmp_path / "few")
    shadow_attack(build, QUICK, (x[::5], y[::5]), shadows=FOUR, out=tmp_path / "same")
    assert phi_in(tmp_path / "few").equal(phi_in(tmp_path / "same"))


# ------------------------------------------------------------------------------------ bad input


def test_bad_input_is_refused_in_words():
    attack = partial(shadow_attack, build, QUICK, shadows=FOUR)
    x, y = noise(40)
    with pytest.raises(DataError, match="give its data set"):
        attack(DataLoader(TensorDataset(x, y)))
    with pytest.raises(DataError, match="at least 10"):
        attack((x[:5], y[:5]))
    with pytest.raises(DataError, match="at least 50"):
        attack((x, y), shadows=Shadows(count=4, examples=50))
    with pytest.raises(ShapeError, match="one class index"):
        attack((x, y.unsqueeze(1)))
    with pytest.raises(OptionError, match="categorical"):
        attack((x, y.float()), likelihood="gaussian")
    with pytest.raises(UnsupportedModelError, match="a function of a seed"):
        shadow_attack(3, QUICK, (x, y))
    with pytest.raises(UnsupportedModelError, match="got int"):
        shadow_attack(lambda seed: seed, QUICK, (x, y))


@pytest.mark.parametrize("options", [{"count": 2}, {"count": 7}, {"examples": 1}, {"seed": -1}])
def test_bad_options_are_refused(options):
    with pytest.raises(OptionError):
        Shadows(**options)
