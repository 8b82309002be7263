import pytest
import torch
from torch import Tensor, nn

from bayesify import MAP, STF, Gaussian, LastLayerVI, MeanFieldVI, evaluate, first_layer, fit
from bayesify.distributions.mean_field import MeanField
from bayesify.distributions.priors import NormalPrior
from bayesify.training.objective import negative_elbo
from bayesify.weights.named import weights_of
from bayesify.weights.noise_scope import noise_scopes

NOISE, PRIOR, SIZE = 1.0, 0.2, 300


def regression() -> tuple[Tensor, Tensor]:
    """Correlated features, so that a marginal and a conditional sd are far apart."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(SIZE, 1, generator=generator).double()
    x = 2 * common + torch.randn(SIZE, 3, generator=generator).double()
    y = x @ torch.tensor([[1.0], [-0.5], [0.3]]).double()
    return x, y + NOISE * torch.randn(SIZE, 1, generator=generator).double()


def exact(x: Tensor, y: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Posterior mean and precision of the weights, likelihood raised to 1 / temperature."""
    precision = x.T @ x / (temperature * NOISE**2) + torch.eye(3).double() / PRIOR**2
    return torch.linalg.solve(precision, x.T @ y / (temperature * NOISE**2))[:, 0], precision


def assert_optimal(q: MeanField, mean: Tensor, precision: Tensor) -> None:
    conditional = precision.diag().rsqrt()
    marginal = precision.inverse().diag().sqrt()
    assert (marginal > 1.5 * conditional).all()
    loc, scale = q.loc.named()["weight"][0], q.scale["weight"][0]
    torch.testing.assert_close(scale.detach(), conditional, rtol=0.08, atol=0)
    assert ((loc - mean).abs() < 0.1 * conditional).all()


def test_an_own_loop_reaches_the_analytic_optimum(generator):
    x, y = regression()
    net = nn.Linear(3, 1, bias=False).double()
    q, prior = MeanField.around(net, scale=0.1), NormalPrior(PRIOR)
    optimiser = torch.optim.Adam(q.parameter_groups(lr=0.05, scale_lr=0.05))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 1000)
    noise = {"generator": generator, "scopes": noise_scopes(net, x, q.names)}
    for _ in range(1000):
        loss = negative_elbo(net, q, Gaussian(NOISE), prior, x, y, num_data=SIZE, **noise)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    assert_optimal(q, *exact(x, y))


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_fit_reaches_the_analytic_optimum_at_any_temperature(temperature):
    method = MeanFieldVI(
        pretrain=None,
        epochs=1000,
        lr=0.05,
        scale_lr=0.03,
        prior_scale=PRIOR,
        prior_relative=False,
        prior_loc="zero",
        temperature=temperature,
    )
    x, y = regression()
    net = nn.Linear(3, 1, bias=False).double()
    posterior = fit(net, (x, y), method, likelihood=Gaussian(NOISE), batch_size=SIZE)
    assert_optimal(posterior.q, *exact(x, y, temperature))


def scales_at(temperature: float, *, scale_lr: float) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, generator=generator)
    y = (x[:, 0] > 0).long()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    method = MeanFieldVI(
        pretrain=None,
        epochs=100,
        lr=1e-3,
        scale_lr=scale_lr,
        initial_scale=0.1,
        prior_scale=1.0,
        prior_relative=False,
        prior_loc="zero",
        temperature=temperature,
    )
    q = fit(net, (x, y), method, batch_size=32).q
    return torch.cat([each.flatten() for each in q.scale.values()]).detach()


def test_temperature_moves_the_scales():
    cold, warm = scales_at(0.01, scale_lr=0.05), scales_at(1.0, scale_lr=0.05)
    assert warm.log().mean() > cold.log().mean() + 0.7  # a factor of two


def test_the_trap_scales_at_a_tiny_rate_do_not_feel_the_temperature():
    cold, warm = scales_at(0.01, scale_lr=1e-4), scales_at(1.0, scale_lr=1e-4)
    torch.testing.assert_close(cold, warm, rtol=0.03, atol=0)


def test_from_random_weights_it_learns_what_the_start_of_the_trained_does_not():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 4, generator=generator)
    data = x, (x[:, 0] * x[:, 1] > 0).long()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    methods = MeanFieldVI.from_scratch(), MeanFieldVI(pretrain=None, epochs=100)
    posteriors = [fit(net, data, each) for each in methods]
    scratch, warm = (evaluate(each, data).metrics["nll"] for each in posteriors)
    assert scratch < 0.3 < 0.5 < warm
    assert posteriors[0].q.names == list(weights_of(net))


def test_the_prior_is_centred_and_scaled_as_asked():
    start = {"a": torch.full((2,), 3.0), "b": torch.full((4,), 0.5)}
    plain = MeanFieldVI(prior_scale=2.0, prior_relative=False, prior_loc="zero").prior(start)
    assert (plain.scale_of("a"), plain.loc_of("a")) == (2.0, 0.0)
    relative = MeanFieldVI(prior_scale=2.0, prior_relative=True, prior_loc="start").prior(start)
    assert relative.scale_of("a") == pytest.approx(6.0)
    assert relative.scale_of("b") == pytest.approx(1.0)
    assert torch.equal(relative.loc_of("b"), start["b"])


def test_weights_that_are_not_random_stay_and_batch_norm_rests():
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(40, 4)
    method = MeanFieldVI(pretrain=None, where=first_layer, epochs=2)
    posterior = fit(net, (x, (x[:, 0] > 0).long()), method)
    assert posterior.q.names == ["0.weight", "0.bias"]
    for name, each in posterior.model.state_dict().items():
        assert torch.equal(each, net.state_dict()[name])
    assert not any(each.requires_grad for each in posterior.model.parameters())


def test_pretraining_is_where_the_means_start():
    x = torch.randn(40, 4)
    data, net = (x, (x[:, 0] > 0).long()), nn.Linear(4, 2)
    trained = fit(net, data, MAP(epochs=3), seed=1).point()
    posterior = fit(net, data, MeanFieldVI(pretrain=MAP(epochs=3), epochs=1, lr=1e-12), seed=1)
    for name, each in posterior.point().items():
        torch.testing.assert_close(each, trained[name], rtol=0, atol=1e-6)
    phases = [entry["phase"] for entry in posterior.record.history]
    assert phases == ["MAP"] * 3 + ["MeanFieldVI"]


def test_the_log_holds_both_terms_and_their_sum():
    x = torch.randn(40, 4)
    method = MeanFieldVI(pretrain=None, epochs=1, temperature=0.3)
    posterior = fit(nn.Linear(4, 2), (x, (x[:, 0] > 0).long()), method)
    (entry,) = posterior.record.history
    assert entry["loss"] == pytest.approx(entry["nll"] + 0.3 * entry["kl"] / 40, rel=1e-5)


def test_the_trained_numbers_are_two_a_random_weight():
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(40, 4)
    method = MeanFieldVI(pretrain=None, where=first_layer, epochs=1)
    posterior = fit(net, (x, (x[:, 0] > 0).long()), method)
    assert posterior.trainable_parameters == 2 * 30
    rest = sum(each.numel() for each in weights_of(net).values()) - 30
    assert posterior.stored_parameters == 2 * 30 + rest


def test_a_temperature_that_is_not_given_follows_the_task():
    for kind in (MeanFieldVI, STF, LastLayerVI):
        colder = kind().temperature_for("classification")
        assert kind().temperature_for("regression") == 1.0
        assert colder == 1.0 if kind is STF else colder < 1.0
        assert kind(temperature=0.5).temperature_for("regression") == 0.5
    x = torch.randn(20, 3)
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    left, given = (
        fit(net, (x, torch.arange(20) % 2), MeanFieldVI(None, epochs=2, temperature=each)).q
        for each in (None, MeanFieldVI.temperatures.classes)
    )
    assert all(torch.equal(each, given.scale[name]) for name, each in left.scale.items())
