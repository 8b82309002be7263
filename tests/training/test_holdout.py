import pytest
import torch
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

import bayesify
from bayesify.core.errors import DataError, OptionError
from bayesify.training.holdout import CertifyingPart, cut, digest

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(60, 4, generator=GENERATOR)
Y = (X[:, 0] > 0).long()


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))


def stf(share, **options):
    return bayesify.STF(pretrain=bayesify.MAP(epochs=2), epochs=2, certify_split=share, **options)


def test_the_parts_are_the_whole():
    rest, kept, part = cut((X, Y), 0.25, seed=3)
    both = torch.cat([rest[0], kept[0]])
    assert part.examples == len(kept[0]) == 15
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, X.tolist()))


def test_another_seed_cuts_elsewhere():
    assert cut((X, Y), 0.5, 0)[2].sha256 != cut((X, Y), 0.5, 1)[2].sha256


def test_the_part_is_found_in_the_whole_and_alone():
    _, kept, part = cut((X, Y), 0.25, seed=3)
    for given in ((X, Y), kept, TensorDataset(X, Y), DataLoader(TensorDataset(X, Y), 7)):
        found = part.of(given)
        assert digest(found) == part.sha256


def test_other_examples_are_refused():
    _, kept, part = cut((X, Y), 0.25, seed=3)
    for other in ((X + 1, Y), (kept[0], 1 - kept[1]), (X[:20], Y[:20]), (X.flip(0), Y.flip(0))):
        with pytest.raises(DataError, match="the 60 training examples of the fit"):
            part.of(other)


def test_the_digest_reads_through_augmentation_and_loaders():
    train = bayesify.data.splits("digits").train
    augmented = bayesify.data.augmented(bayesify.data.splits("digits")).train
    assert digest(train) == digest(augmented)
    shuffled = DataLoader(train, batch_size=100, shuffle=True)
    assert digest(shuffled) == digest(train)


def test_json_and_back():
    part = cut((X, Y), 0.25, seed=3)[2]
    assert CertifyingPart.from_json(part.to_json()) == part


@pytest.mark.parametrize("share", [0.001, 1.0])
def test_no_part_may_be_empty(share):
    with pytest.raises(OptionError, match="leaves examples on both sides"):
        cut((X, Y), share, seed=0)


def test_the_network_of_a_split_fit_is_that_of_the_rest_alone():
    rest, _, part = cut((X, Y), 0.5, seed=4)
    posterior = bayesify.fit(net(), (X, Y), stf(0.5), seed=4)
    alone = bayesify.fit(net(), rest, bayesify.MAP(epochs=2), seed=4)
    trained = alone.point()
    for name in ("2.weight", "2.bias"):
        torch.testing.assert_close(posterior.base()[name], trained[name])
    torch.testing.assert_close(posterior.prior.loc_of("0.weight"), trained["0.weight"])
    assert posterior.record.certifying == part.to_json()
    assert posterior.record.num_data == 60


def test_what_the_rest_holds_does_not_reach_the_posterior_but_by_the_network():
    """And what certifies does not reach the network: other labels there change q alone."""
    flipped = Y.clone()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(4))
    flipped[order[:30]] = 1 - flipped[order[:30]]
    one = bayesify.fit(net(), (X, Y), stf(0.5), seed=4)
    two = bayesify.fit(net(), (X, flipped), stf(0.5), seed=4)
    torch.testing.assert_close(one.base()["2.weight"], two.base()["2.weight"])
    assert not torch.allclose(one.point()["0.weight"], two.point()["0.weight"], atol=1e-5)


def test_a_network_trained_elsewhere_cannot_be_split():
    with pytest.raises(OptionError, match="held_out=True"):
        bayesify.fit(net(), (X, Y), bayesify.STF(pretrain=None, certify_split=0.5))


def test_without_a_split_nothing_is_kept():
    posterior = bayesify.fit(net(), (X, Y), stf(0.0), seed=4)
    assert posterior.record.certifying is None


def test_the_prior_is_saved_where_it_certifies(tmp_path):
    posterior = bayesify.fit(net(), (X, Y), stf(0.5), seed=4)
    again = bayesify.load(bayesify.save(posterior, tmp_path / "a"), net())
    assert again.record.certifying == posterior.record.certifying
    assert again.prior.scale == posterior.prior.scale
    one = bayesify.kl_divergence(again.q, again.prior)
    assert torch.equal(one, bayesify.kl_divergence(posterior.q, posterior.prior))
    plain = bayesify.fit(net(), (X, Y), stf(0.0), seed=4)
    assert bayesify.load(bayesify.save(plain, tmp_path / "b"), net()).prior is None


def test_recalibrated_statistics_have_seen_the_data():
    norm = torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
    )
    posterior = bayesify.fit(norm, (X, Y), stf(0.5), seed=4)
    assert posterior.prior is not None
    assert bayesify.recalibrated(posterior, (X, Y)).prior is None


def test_a_loader_that_leaves_examples_out_is_refused():
    few = DataLoader(TensorDataset(X, Y), 10, sampler=SubsetRandomSampler(range(30)))
    with pytest.raises(DataError, match="sampler of its own"):
        bayesify.fit(net(), few, stf(0.5))


def test_torchs_generator_is_left_as_it_was():
    model, before = net(), torch.get_rng_state()
    bayesify.fit(model, DataLoader(TensorDataset(X, Y), 10), stf(0.5))
    assert torch.equal(torch.get_rng_state(), before)
