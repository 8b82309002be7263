import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

import bayesify
from bayesify.core.errors import DataError, OptionError, UnsupportedModelError
from bayesify.evaluation.guarantees import certificates
from bayesify.evaluation.guarantees.certificates import sampled_risk
from bayesify.numerics.pac_bayes import bernoulli_kl
from bayesify.training.holdout import cut

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(240, 2, generator=GENERATOR)
Y = ((X[:, 0] + 0.3 * torch.randn(240, generator=GENERATOR)) > 0).long()
EARLY = bayesify.MAP(epochs=10)


def certify(posterior, data, *, num_samples=100, **more):
    return certificates.certify(posterior, data, num_samples=num_samples, **more)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.fixture(scope="module")
def split():
    return bayesify.fit(net(), (X, Y), bayesify.STF(pretrain=EARLY, epochs=5, certify_split=0.5))


@pytest.fixture(scope="module")
def plain():
    return bayesify.fit(net(), (X, Y), bayesify.STF(pretrain=EARLY, epochs=5))


def test_the_bound_is_above_what_was_seen(split):
    found = certify(split, (X, Y))
    assert found.sampled_risk < found.gibbs_bound < found.bound < 1
    assert found.bound <= found.mcallester


def test_the_bound_solves_its_equation(split):
    """Seeger's bound by its definition, with KL from torch.distributions."""
    found = certify(split, (X, Y), delta=0.1, num_samples=500)
    q, prior = split.q, split.prior
    kl = sum(
        torch.distributions.kl_divergence(
            torch.distributions.Normal(loc, q.scale[name]),
            torch.distributions.Normal(prior.loc_of(name), prior.scale_of(name)),
        ).sum()
        for name, loc in q.loc.named().items()
    ).item()
    assert found.kl == pytest.approx(kl, rel=1e-5)
    n = found.examples
    budget = (kl + math.log(2 * math.sqrt(n) / 0.05)) / n
    assert bernoulli_kl(found.gibbs_bound, found.bound) == pytest.approx(budget, rel=1e-5)
    slack = math.log(2 / 0.05) / 500
    assert bernoulli_kl(found.sampled_risk, found.gibbs_bound) == pytest.approx(slack, rel=1e-6)


def test_the_sampled_risk_counts_every_sample(split):
    top = split.outputs(X, num_samples=7).argmax(2)
    assert sampled_risk(split, (X, Y), num_samples=7) == pytest.approx(
        (top != Y).double().mean().item()
    )


def test_examples_of_its_own_for_every_sample_estimate_the_same_risk(split):
    """The standard error of m independent errors, each over k examples, is known from m runs."""
    exact = sampled_risk(split, (X, Y), num_samples=4000)
    runs = [
        sampled_risk(split, (X, Y), num_samples=200, examples_per_sample=10, seed=seed)
        for seed in range(10)
    ]
    mean, error = torch.tensor(runs).mean().item(), torch.tensor(runs).std().item() / 10**0.5
    assert abs(mean - exact) < 4 * error
    # pairs of a sample and an example, k n-th of them at a time: close to binomial
    assert 0.3 < error * 10**0.5 / (exact * (1 - exact) / 2000) ** 0.5 < 3


def test_batches_make_no_difference(split):
    assert certify(split, (X, Y), batch_size=7) == certify(split, (X, Y), batch_size=1000)


def test_the_part_certifies_alone(split):
    kept = cut((X, Y), 0.5, seed=0)[1]
    assert certify(split, kept) == certify(split, (X, Y))


def test_a_saved_posterior_certifies(split, tmp_path):
    again = bayesify.load(bayesify.save(split, tmp_path / "a"), net())
    assert certify(again, (X, Y)) == certify(split, (X, Y))


def test_what_the_network_has_seen_is_refused(plain, split):
    with pytest.raises(DataError, match="which keeps half of them"):
        certify(plain, (X, Y))
    rest = cut((X, Y), 0.5, seed=0)[0]
    with pytest.raises(DataError, match="kept for the certificate"):
        certify(split, rest)


def test_others_are_taken_on_the_users_word(plain, split):
    fresh = torch.randn(300, 2, generator=torch.Generator().manual_seed(7))
    labels = (fresh[:, 0] > 0).long()
    with pytest.raises(DataError, match="held_out=True"):
        certify(split, (fresh, labels))
    found = certify(plain, (fresh, labels), held_out=True)
    assert found.examples == 300
    assert found.sampled_risk < found.bound < 1


def test_a_prior_of_ones_own(plain):
    wide = bayesify.NormalPrior(1.0)
    with pytest.raises(DataError, match="may have seen"):
        certify(plain, (X, Y), prior=wide)
    with torch.no_grad():
        kl = bayesify.kl_divergence(plain.q, wide).item()
    assert certify(plain, (X, Y), prior=wide, held_out=True).kl == pytest.approx(kl)


def test_no_prior_no_certificate():
    ensemble = bayesify.fit(net(), (X, Y), bayesify.Ensemble(members=2, epochs=1))
    with pytest.raises(OptionError, match="knows its prior"):
        certify(ensemble, (X, Y), held_out=True)
    with pytest.raises(UnsupportedModelError, match="no closed form"):
        certify(ensemble, (X, Y), held_out=True, prior=bayesify.NormalPrior(1.0))


def test_classes_only():
    method = bayesify.STF(pretrain=bayesify.MAP(epochs=1), epochs=1, certify_split=0.5)
    line = bayesify.fit(nn.Linear(2, 1), (X, X[:, :1]), method, likelihood="gaussian")
    with pytest.raises(OptionError, match="categorical"):
        certify(line, (X, X[:, :1]))


@pytest.mark.parametrize(
    ("option", "value"),
    [("delta", 0.0), ("delta", 1.0), ("num_samples", 0), ("examples_per_sample", 0)],
)
def test_impossible_options(split, option, value):
    with pytest.raises(OptionError, match=option):
        certify(split, (X, Y), **{option: value})


def test_it_reads_well(split):
    text = str(certify(split, (X, Y)))
    assert text.startswith("With probability 0.95 the networks of the posterior are wrong, on av")
    assert "120 examples" in text


def test_findings_have_the_names_of_the_report(split):
    found = certify(split, (X, Y))
    assert found.findings().metrics["certificate"] == found.bound
    assert found.to_json()["kl"] == found.kl


def test_a_loader_certifies_with_all_of_its_examples(split):
    whole = DataLoader(TensorDataset(X, Y), batch_size=200, shuffle=True, drop_last=True)
    assert certify(split, whole) == certify(split, (X, Y))
    few = DataLoader(TensorDataset(X, Y), batch_size=10, sampler=SubsetRandomSampler(range(30)))
    with pytest.raises(DataError, match="sampler of its own"):
        certify(split, few, held_out=True)


@pytest.mark.parametrize("law", ["shared", "shared_loc", "fixed"])
def test_weights_that_are_not_free_have_no_divergence(law):
    source = bayesify.MeanFieldVI(pretrain=None, epochs=1)
    method = bayesify.WeightSharing(pretrain=EARLY, mean_field=source, codes=4, law=law)
    shared = bayesify.fit(net(), (X, Y), method, validation=(X, Y))
    with pytest.raises(UnsupportedModelError, match="shared or fixed"):
        certify(shared, (X, Y), held_out=True, prior=bayesify.NormalPrior(1.0))


@pytest.mark.parametrize("tangent", [False, True])
def test_certificates_are_of_single_weight_samples_however_these_are_averaged(tangent):
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3), torch.randn(200, 4)
    y, q = net(x).argmax(1), bayesify.MeanField.around(net, scale=3.0)
    plain = bayesify.WeightPosterior(net, q, bayesify.Categorical())
    wrong = (plain.outputs(x, num_samples=500).argmax(2) != y).double().mean().item()
    posterior = plain.replaced(tangent=tangent, average="probit")
    assert sampled_risk(posterior, (x, y), num_samples=500) == pytest.approx(wrong, abs=1e-6)
    how = {"prior": bayesify.NormalPrior(1.0), "held_out": True, "num_samples": 500}
    assert certify(posterior, (x, y), **how).bound == certify(plain, (x, y), **how).bound
    assert wrong > 0.4  # whereas the damped mean hardly errs
    rule = posterior.predict(x).probs.argmax(1)
    assert (rule == y).double().mean() > 0.9
