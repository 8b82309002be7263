import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bayesify
from bayesify import MAP, WeightPosterior
from bayesify.core.errors import OptionError, UnsupportedModelError
from bayesify.distributions.mean_field import MeanField
from bayesify.distributions.particles import Particles
from bayesify.likelihoods import Categorical, Gaussian
from bayesify.posteriors.dropout import LAYERS, DropoutPosterior, dropout_layers, dropped

S = 2000


def around(net: nn.Module, likelihood=None) -> DropoutPosterior:
    return DropoutPosterior(net, likelihood or Categorical())


def mlp(p: float = 0.3) -> nn.Sequential:
    return nn.Sequential(
        nn.Dropout(p), nn.Linear(4, 8), nn.Tanh(), nn.Dropout(p), nn.Linear(8, 3)
    ).double()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Masks(nn.Module):
    """Returns what dropout makes of ones: the masks of a network that calls it at these widths."""

    def __init__(self, p: float, widths: list[int]) -> None:
        super().__init__()
        self.weight, self.widths = nn.Parameter(torch.zeros(())), widths
        self.drop = nn.ModuleList([nn.Dropout(p) for _ in widths])

    def forward(self, x: Tensor) -> Tensor:
        parts = [f(torch.ones(len(x), n).double()) for f, n in zip(self.drop, self.widths)]  # noqa: B905
        return torch.cat(parts, 1) + self.weight


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
def test_in_front_of_a_linear_layer_mean_and_variance_are_the_closed_ones(p):
    linear, x = nn.Linear(6, 2).double(), torch.randn(3, 6).double()
    with torch.no_grad():
        out = around(nn.Sequential(nn.Dropout(p), linear)).outputs(x, num_samples=S)
        mean, variance = linear(x), p / (1 - p) * x.square() @ linear.weight.square().T
    error = (variance / S).sqrt()
    assert ((out.mean(0) - mean).abs() < 5 * error).all()
    # the error of the variance, from the fourth moment of the samples themselves
    spread = ((out - mean).square().var(0) / S).sqrt()
    assert ((out - mean).square().mean(0) - variance).abs().lt(5 * spread).all()


@pytest.mark.parametrize("batch", [1, 5])
def test_averages_are_those_of_torchs_own_layers_in_train_mode(batch):
    net, x = mlp(), 3 * torch.randn(batch, 4).double()
    with torch.no_grad():
        ours = around(net).predict(x, num_samples=S).logits.softmax(-1)
        net.train()
        torchs = torch.stack([net(x).softmax(-1) for _ in range(S)])
    error = (ours.var(0) / S + torchs.var(0) / S).sqrt()
    assert ((ours.mean(0) - torchs.mean(0)).abs() < 5 * error).all()
    assert (ours.std(0) / torchs.std(0) - 1).abs().max() < 0.2
    # truth enough to tell them from the network without dropout
    assert ((ours.mean(0) - net.eval()(x).softmax(-1)).abs() > 5 * error).any()


def test_a_sample_is_one_network_whose_masks_depend_on_the_order_of_calls_alone():
    net, x = mlp(), torch.randn(5, 4).double().requires_grad_()
    masks = around(Masks(0.3, [4, 8])).outputs(torch.zeros(1, 1), num_samples=6)[:, 0].detach()
    assert set(masks.unique().tolist()) == {0.0, 1 / (1 - 0.3)}
    got = around(net).outputs(x, num_samples=6)
    for mask, out in zip(masks, got, strict=True):
        weights = net[1].weight * mask[:4], net[4].weight * mask[4:]
        want = F.linear(F.linear(x, weights[0], net[1].bias).tanh(), weights[1], net[4].bias)
        torch.testing.assert_close(out, want)
        slopes = [
            torch.autograd.grad(each[:, 0].sum(), x, retain_graph=True)[0] for each in (out, want)
        ]
        torch.testing.assert_close(*slopes)
        assert slopes[0].abs().max() > 0


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("p", [0.25, 1.0])
def test_each_layer_makes_of_a_number_what_torchs_does(kind, p):
    shape = (1, 3, 2, 2, 2) if kind is nn.Dropout3d else (1, 3, 4)
    layer, x = kind(p), torch.randn(shape).double()
    x = torch.randn(1, 3, 2, 2).double() if kind is nn.Dropout2d else x
    theirs = torch.stack([layer(x) for _ in range(100)])
    ours = torch.stack([dropped(layer, x, generator=seeded(seed)) for seed in range(100)])
    values = 1 if p == 1 else 2
    for mine, torchs in zip(ours.flatten(1).T, theirs.flatten(1).T, strict=True):
        assert len(distinct(mine)) == values
        torch.testing.assert_close(distinct(mine), distinct(torchs))


def distinct(values: Tensor) -> Tensor:
    return values.abs().add(values * 1e-3).mul(1e6).round().unique()


@pytest.mark.parametrize("kind", LAYERS)
def test_masks_are_of_channels_where_torchs_are_and_keep_one_less_p(kind):
    layer, x = kind(0.25), torch.full((2, 50, 4, 4), 3.0)
    x = x.flatten(2) if kind is nn.Dropout1d else x
    x = x.unsqueeze(-1) if kind is nn.Dropout3d else x
    kept, shares = [], []
    for out in (dropped(layer, x, generator=seeded(0)), layer(x)):
        keep = (out == out.max()).flatten(2)
        kept.append((keep.any(2) == keep.all(2)).all().item())
        shares.append(keep.double().mean().item())
    assert kept == [("d" in kind.__name__ or "Feature" in kind.__name__)] * 2
    assert shares[0] == pytest.approx(0.75, abs=5 * math.sqrt(0.25 * 0.75 / 50))


def test_all_examples_share_the_mask_and_samples_do_not():
    x = torch.randn(1, 4).double()
    out = around(mlp()).outputs(x.repeat(3, 1), num_samples=5).detach()
    for sample in range(5):
        torch.testing.assert_close(out[sample], out[sample, :1].expand(3, -1))
        for other in range(sample):
            assert not torch.allclose(out[sample], out[other])


def test_predictions_are_a_function_of_x_and_a_generator_gives_fresh_masks():
    posterior, x = around(mlp()), torch.randn(7, 4).double()
    state = torch.get_rng_state()
    whole = posterior.outputs(x, num_samples=5)
    parts = [posterior.outputs(part, num_samples=5) for part in x.split(3)]
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(posterior.outputs(x, num_samples=2, chunk_size=2), whole[:2])
    first, again, other = (
        posterior.outputs(x, num_samples=5, generator=seeded(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first, whole)
    generator = seeded(1)
    two = [posterior.outputs(x, num_samples=n, generator=generator) for n in (2, 3)]
    assert torch.equal(torch.cat(two), first)
    assert torch.equal(torch.get_rng_state(), state)


class Tagger(nn.Module):
    """Averages over the tokens that are there."""

    def __init__(self, **how) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, **{"batch_first": True, **how})

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        hidden = self.encoder(x, src_key_padding_mask=~there) * there[..., None]
        return hidden.sum(1) / there.sum(1, keepdim=True)


def test_a_padded_text_is_predicted_as_without_padding():
    net, x = Tagger(), torch.randn(2, 5, 8)
    there = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    posterior = around(net)
    with torch.no_grad():
        together = posterior.outputs((x, there), num_samples=4)
        alone = posterior.outputs((x[1:, :3], there[1:, :3]), num_samples=4)
    torch.testing.assert_close(alone[:, 0], together[:, 1], rtol=1e-4, atol=1e-5)


def test_batch_norm_stays_in_eval_mode_and_every_module_in_the_mode_it_was():
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    net(5 + 2 * torch.randn(64, 4))  # statistics of other inputs than those below
    net[2].eval()
    posterior, x = around(net), torch.randn(3, 4)
    before, modes = copy.deepcopy(net.state_dict()), [each.training for each in net.modules()]
    assert modes == [True, True, True, False, True]
    with torch.no_grad():
        out = posterior.outputs(x, num_samples=S)
        want = net.eval()(x)
    assert ((out.mean(0) - want).abs() < 5 * out.std(0) / S**0.5 + 1e-6).all()
    net.train()[2].eval()
    posterior.outputs(x, num_samples=1)
    assert [each.training for each in net.modules()] == modes
    assert all(torch.equal(each, before[name]) for name, each in net.state_dict().items())
    assert not any(each._forward_hooks for each in net.modules())


def test_after_an_error_no_hook_stays():
    net = mlp()
    with pytest.raises(RuntimeError, match="shapes"):
        around(net).outputs(torch.randn(3, 5).double())
    assert not any(each._forward_hooks for each in net.modules())
    assert net.training


def test_a_layer_that_is_called_twice_draws_twice():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.scale = nn.Dropout(0.5), nn.Parameter(torch.ones(()))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale * torch.cat([self.drop(x), self.drop(x)], 1)

    first, second = around(Twice()).outputs(torch.ones(1, 50), num_samples=1)[0, 0].split(50)
    assert not torch.equal(first, second)


def test_dropout_of_attention_weights_stays_off():
    net, x = Tagger(dropout=0.5).eval(), (torch.randn(2, 5, 8), torch.ones(2, 5).bool())
    for each in (net.encoder.dropout, net.encoder.dropout1, net.encoder.dropout2):
        each.p = 1e-9  # on, and drops nothing
    with torch.no_grad():
        out = around(net).outputs(x, num_samples=3)
    torch.testing.assert_close(out, net(*x).expand(3, -1, -1), rtol=1e-4, atol=1e-5)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.dropout(x, 0.5, self.training))


@pytest.mark.parametrize(
    "net",
    [
        nn.Linear(4, 3),
        nn.Sequential(nn.Dropout(0.0), nn.Linear(4, 3)),
        nn.MultiheadAttention(4, 2, dropout=0.5),
        nn.LSTM(4, 3, num_layers=2, dropout=0.5),
        Functional(),
    ],
    ids=["none", "p = 0", "attention", "lstm", "functional"],
)
def test_a_network_without_dropout_layers_is_refused(net):
    with pytest.raises(UnsupportedModelError, match=r"add nn\.Dropout .* bayesify\.STF"):
        around(net)


def test_layers_that_no_call_reaches_are_refused():
    net = Functional()
    net.unused = nn.Dropout(0.5)
    with pytest.raises(UnsupportedModelError, match=r"calls none of its dropout layers \(unused\)"):
        around(net).outputs(torch.randn(2, 4))


def test_an_activation_whose_first_axis_is_not_the_batch_is_refused():
    class SequenceFirst(Tagger):
        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(x.transpose(0, 1)).mean(0)

    posterior = around(SequenceFirst(batch_first=False))
    with pytest.raises(UnsupportedModelError, match=r"`encoder.dropout1` .*\(5, 2, 8\).* of 2"):
        posterior.outputs(torch.randn(2, 5, 8))


def test_a_posterior_with_samples_of_its_own_is_refused():
    net = mlp()
    two = Particles.of_models([net, copy.deepcopy(net)])
    for q in (two, MeanField.around(net)):
        with pytest.raises(UnsupportedModelError, match="posterior of one network"):
            DropoutPosterior.around(WeightPosterior(net, q, Categorical()))


@pytest.mark.parametrize("how", [{"num_samples": 0}, {"chunk_size": 0}])
def test_numbers_below_one_are_refused(how):
    with pytest.raises(OptionError, match="expected at least 1"):
        around(mlp()).outputs(torch.randn(2, 4).double(), **how)


def test_it_has_the_point_and_the_numbers_of_the_trained_network():
    net = mlp()
    posterior = around(net, Gaussian("learnt"))
    for name, each in posterior.point().items():
        assert torch.equal(each, net.state_dict()[name])
    numbers = sum(each.numel() for each in net.parameters())
    assert posterior.trainable_parameters == posterior.stored_parameters == numbers + 1
    assert posterior.member_parameters == 0
    assert "2 dropout layers" in repr(posterior)
    assert "one by one" in repr(posterior)
    assert list(dropout_layers(net)) == ["0", "3"]


def test_a_temperature_is_its_own_and_a_copy_predicts_the_same():
    posterior, x = around(mlp()), torch.randn(60, 4).double()
    scaled = bayesify.temperature_scaled(posterior, (x, torch.randint(3, (60,))))
    assert scaled.likelihood.logit_temperature != 1
    assert posterior.likelihood.logit_temperature == 1
    assert scaled.without_dropout().likelihood is scaled.likelihood
    torch.testing.assert_close(scaled.without_dropout().outputs(x)[0], posterior.model.eval()(x))
    assert torch.equal(copy.deepcopy(scaled).predict(x).probs, scaled.predict(x).probs)


@pytest.mark.parametrize("base", [True, False])
def test_saved_and_loaded_it_predicts_the_same_to_the_bit(base, tmp_path):
    x, y = torch.randn(32, 4).double(), torch.randint(3, (32,))
    posterior = bayesify.fit(mlp(), (x, y), bayesify.MCDropout(MAP(epochs=1)))
    scaled = bayesify.temperature_scaled(posterior, (x, y))
    folder = bayesify.save(scaled, tmp_path / "saved", base=base)
    again = bayesify.load(folder, mlp())
    assert isinstance(again, DropoutPosterior)
    assert torch.equal(again.predict(x).probs, scaled.predict(x).probs)
    assert again.likelihood.logit_temperature == scaled.likelihood.logit_temperature
    assert again.record == posterior.record
    assert bayesify.save(again, tmp_path / "twin", base=base)
    with pytest.raises(UnsupportedModelError, match="no dropout layer"):
        bayesify.load(folder, nn.Sequential(*[nn.Identity(), *mlp()[1:3], nn.Identity(), mlp()[4]]))
