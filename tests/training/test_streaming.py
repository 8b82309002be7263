import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bayesify import (
    BALI,
    MAP,
    DataError,
    Gaussian,
    OptionError,
    ShapeError,
    fit,
    load,
    resume,
    save,
)
from bayesify.methods.bali.run import LayerwiseRun
from zoo import NETS

NOISE, TAU = 0.3, 0.5


def linear_problem(size: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, generator=generator).double()
    slope = torch.tensor([[1.0], [-2.0], [0.5]]).double()
    return x, x @ slope + NOISE * torch.randn(size, 1, generator=generator).double()


def fitted_linear(x: Tensor, y: Tensor):
    method = BALI(
        rate=1.0, final_rate=1.0, warmup=0, cap=1e9, forward_noise=False, epochs=1, min_steps=1,
        prior_precision=TAU,
    )  # fmt: skip
    net = nn.Linear(3, 1, bias=False).double()
    return fit(net, (x, y), method, likelihood=Gaussian(NOISE), batch_size=len(x))


def fitted(net: str, **options):
    method = BALI(epochs=2, min_steps=1, rest="all", **options)
    return fit(NETS[net].model(), NETS[net].data(), method, batch_size=16)


def test_an_update_is_regression_with_the_past_forgotten_at_the_stated_rate():
    """P <- (1 - r) P + r tau I + H^T H and the same for P M: each new example counts once."""
    x, y = linear_problem(40, 0)
    posterior = fitted_linear(x, y)
    run = resume(posterior, x[:2])
    precision = x.T @ x + TAU * torch.eye(3).double()
    shift = x.T @ y
    for seed in range(1, 6):
        x, y = linear_problem(8, seed)
        run.update(x, y, forgetting=0.2)
        precision = 0.8 * precision + 0.2 * TAU * torch.eye(3).double() + x.T @ x
        shift = 0.8 * shift + x.T @ y
    q = run.posterior().q
    row = q.row.named()["weight"][0].detach()
    torch.testing.assert_close(row @ row.T, precision, rtol=0, atol=1e-9)
    mean = torch.linalg.solve(precision, shift)
    torch.testing.assert_close(q.point()["weight"].T, mean, rtol=0, atol=1e-9)


def test_the_posterior_rests_on_the_last_examples_in_the_long_run():
    x, y = linear_problem(400, 0)
    run = resume(fitted_linear(x, y), x[:2])
    ones = torch.ones(10, 3).double()
    for _ in range(300):
        run.update(ones, ones[:, :1], forgetting=0.1)
    precision = run.layers[0].regression.precision[0]  # type: ignore[attr-defined]
    rest = TAU * torch.eye(3).double()
    # 10 examples each, and 1 / 0.1 batches are remembered
    torch.testing.assert_close(precision, 100 * torch.ones(3, 3).double() + rest, rtol=1e-9, atol=0)


def test_the_first_posterior_stays_and_the_newer_one_follows_a_drift():
    x, y = linear_problem(200, 0)
    posterior = fitted_linear(x, y)
    before = {name: each.clone() for name, each in posterior.q.state_dict().items()}
    run = resume(posterior, x[:2])
    for _ in range(20):
        run.update(x, -y, forgetting=0.3)
    assert all(torch.equal(each, before[name]) for name, each in posterior.q.state_dict().items())
    assert posterior.predict(x).log_prob(-y).mean() < -10
    assert run.posterior().predict(x).log_prob(-y).mean() > -0.5


@pytest.mark.parametrize("net", ["mlp", "cnn", "lstm"])
@pytest.mark.parametrize("members", [1, 3])
def test_it_begins_where_the_fit_ended(net, members):
    posterior = fitted(net, members=members)
    run = resume(posterior, NETS[net].inputs(2))
    x = NETS[net].inputs(5)
    torch.testing.assert_close(
        run.posterior().outputs(x), posterior.outputs(x), rtol=1e-4, atol=1e-4
    )
    y = torch.tensor([0, 1, 2, 0, 1])
    first = run.posterior().outputs(x)
    run.update(x, y)
    assert not torch.allclose(run.posterior().outputs(x), first, atol=1e-3)


def test_what_was_known_of_the_curvature_is_not_forgotten_at_once():
    posterior = fitted("mlp")
    x, y = NETS["mlp"].inputs(8), torch.arange(8) % 3
    run = resume(posterior, x)
    before = [layer.regression.fisher.clone() for layer in run.layers]  # type: ignore[attr-defined]
    run.update(x, y, forgetting=1e-6)
    for layer, was in zip(run.layers, before, strict=True):  # type: ignore[attr-defined]
        torch.testing.assert_close(layer.regression.fisher, was, rtol=1e-3, atol=1e-4)


def test_a_loaded_posterior_can_be_resumed(tmp_path):
    posterior = fitted("mlp")
    save(posterior, tmp_path / "a")
    x, y = NETS["mlp"].inputs(5), torch.tensor([0, 1, 2, 0, 1])
    runs = [resume(each, x) for each in (posterior, load(tmp_path / "a", NETS["mlp"].model()))]
    for run in runs:
        run.update(x, y)
    want, got = (run.posterior().outputs(x) for run in runs)
    torch.testing.assert_close(want, got)  # strides differ, and with them rounding


def test_a_newer_posterior_can_be_saved_and_resumed_too(tmp_path):
    x, y = NETS["mlp"].inputs(6), torch.arange(6) % 3
    run = resume(fitted("mlp"), x)
    run.update(x, y)
    save(run.posterior(), tmp_path / "a")
    again = resume(load(tmp_path / "a", NETS["mlp"].model()), x)
    torch.testing.assert_close(
        again.posterior().outputs(x), run.posterior().outputs(x), rtol=1e-4, atol=1e-4
    )


def test_one_example_at_a_time_is_a_stream_too():
    x, y = NETS["cnn"].inputs(3), torch.arange(3)
    run = resume(fitted("cnn"), x)
    for i in range(3):
        assert run.update(x[i : i + 1], y[i : i + 1])["rolled_back"] == 0


@pytest.mark.parametrize("net", ["mlp", "cnn", "lstm"])
def test_statistics_saved_in_the_middle_go_on_to_the_bit(net, tmp_path):
    batches = [(NETS[net].inputs(8, seed), torch.arange(8) % 3) for seed in range(4)]
    posterior = fitted(net, members=2)
    run, other = (resume(posterior, batches[0][0]) for _ in range(2))
    assert isinstance(run, LayerwiseRun)
    for x, y in batches[:2]:
        run.update(x, y)
    save_file(run.state_dict(), tmp_path / "run.safetensors")
    for x, y in batches[2:]:
        run.update(x, y)
    other.load_state_dict(load_file(tmp_path / "run.safetensors"))
    for x, y in batches[2:]:
        other.update(x, y)
    want, got = run.posterior().q.state_dict(), other.posterior().q.state_dict()
    assert list(want) == list(got)
    assert all(torch.equal(each, got[name]) for name, each in want.items())


def test_learnt_noise_follows_the_stream():
    x, y = linear_problem(100, 0)
    net = nn.Linear(3, 1).double()
    posterior = fit(net, (x, y), BALI(epochs=1, min_steps=200), likelihood=Gaussian("learnt"))
    run = resume(posterior, x[:2])
    generator = torch.Generator().manual_seed(0)
    for _ in range(150):
        run.update(x, y + 3 * torch.randn(100, 1, generator=generator).double(), forgetting=0.1)
    scale = run.posterior().likelihood.log_scale.exp().item()
    assert scale == pytest.approx((9 + NOISE**2) ** 0.5, rel=0.15)
    assert posterior.likelihood.log_scale.exp().item() < 1.0


def test_bad_batches_are_refused_before_anything_is_learnt():
    posterior = fitted("mlp")
    x, y = NETS["mlp"].inputs(4), torch.tensor([0, 1, 2, 0])
    run = resume(posterior, x)
    before = run.state_dict()
    with pytest.raises(DataError, match="NaN or infinite"):
        run.update(x / 0, y)
    with pytest.raises(DataError, match="labels reach from 0 to 7"):
        run.update(x, torch.tensor([0, 1, 7, 0]))
    with pytest.raises(ShapeError, match="4 inputs, but 2 targets"):
        run.update(x, y[:2])
    with pytest.raises(DataError, match="at least one example"):
        run.update(x[:0], y[:0])
    for rate in (0.0, 1.5, -0.1):
        with pytest.raises(OptionError, match="forgetting"):
            run.update(x, y, forgetting=rate)
    assert all(torch.equal(each, before[name]) for name, each in run.state_dict().items())


def test_other_methods_say_that_they_cannot():
    posterior = fit(NETS["mlp"].model(), NETS["mlp"].data(), MAP(epochs=1))
    with pytest.raises(OptionError, match="MAP"):
        resume(posterior, NETS["mlp"].inputs(2))
    posterior.record = None
    with pytest.raises(OptionError, match="no recorded method"):
        resume(posterior, NETS["mlp"].inputs(2))
