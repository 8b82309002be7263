import pytest
import torch

from bayesify.core.errors import DataError, OptionError, ShapeError
from bayesify.likelihoods import (
    LIKELIHOOD_OF_TASK,
    LIKELIHOODS,
    Bernoulli,
    Categorical,
    Gaussian,
    resolve,
)

LABELS = torch.tensor([0, 2, 1, 2])


@pytest.mark.parametrize(
    ("likelihood", "output", "target", "error", "said"),
    [
        (Categorical(), (4, 3), torch.eye(3)[LABELS], ShapeError, "class indices, not one-hot"),
        (Categorical(), (4, 3), LABELS[:, None], ShapeError, r"targets \(4, 1\)"),
        (Categorical(), (4,), LABELS, ShapeError, r"outputs \(4,\)"),
        (Categorical(), (4, 3), LABELS.float(), DataError, "torch.float32; convert with"),
        (Categorical(), (4, 2), LABELS, DataError, "from 0 to 2, .* must lie in 0..1"),
        (Categorical(), (4, 3), LABELS - 1, DataError, "from -1 to 1"),
        (Categorical(), (4, 3, 2, 2), LABELS, ShapeError, r"\(4, 3, 2, 2\)"),
        (Bernoulli(), (4, 3), LABELS, ShapeError, "one shape"),
        (Bernoulli(), (4, 1), LABELS[:, None], DataError, "0 or 1, got values from 0 to 2"),
        (Gaussian(), (4, 1), LABELS, DataError, "torch.int64; use"),
        (Gaussian(), (4, 2), torch.randn(4), ShapeError, r"outputs \(4, 2\)"),
        (Gaussian("output"), (4, 3), torch.randn(4, 2), ShapeError, r"2 \* dims"),
        (Gaussian("output"), (4, 1), torch.randn(4), ShapeError, r"2 \* dims"),
        (Gaussian(), (4, 2, 2), torch.randn(4, 4), ShapeError, "expected outputs"),
    ],
)
def test_targets_that_do_not_fit_are_refused(likelihood, output, target, error, said):
    with pytest.raises(error, match=said):
        likelihood.check(torch.zeros(output), target)


@pytest.mark.parametrize(
    ("likelihood", "output", "target"),
    [
        (Categorical(), (4, 3), LABELS),
        (Categorical(), (4, 3, 2), torch.randint(3, (4, 2))),
        (Bernoulli(), (4, 3), torch.randint(2, (4, 3))),
        (Gaussian(), (4, 1), torch.randn(4)),
        (Gaussian(), (4,), torch.randn(4)),
        (Gaussian(), (4, 2), torch.randn(4, 2)),
        (Gaussian("output"), (4, 4), torch.randn(4, 2)),
    ],
)
def test_targets_that_fit_pass_and_have_a_log_density_per_example(likelihood, output, target):
    likelihood.check(torch.zeros(output), target)
    raw = torch.randn(5, *output)
    assert likelihood.log_prob(raw, target).shape == (5, 4)
    assert len(likelihood.predictive(raw).log_prob(target)) == 4


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_options_rebuild_it_and_tasks_find_it(name):
    likelihood = LIKELIHOODS[name]()
    assert type(likelihood)(**likelihood.options()).options() == likelihood.options()
    assert LIKELIHOOD_OF_TASK[likelihood.task] == name
    assert likelihood.predictive(torch.randn(2, 3, 2)).task == likelihood.task


def test_a_likelihood_is_found_by_name():
    own = Gaussian(2.0)
    assert resolve(own) is own
    assert isinstance(resolve("bernoulli"), Bernoulli)
    with pytest.raises(OptionError, match="'normal': expected one of categorical"):
        resolve("normal")


@pytest.mark.parametrize(
    ("likelihood", "outputs"),
    [
        (Categorical(), (5, 4, 3)),
        (Categorical(), (5, 4, 3, 2, 2)),
        (Bernoulli(), (5, 4, 3)),
        (Gaussian(0.5), (5, 4, 3)),
        (Gaussian("learnt"), (5, 4, 1)),
        (Gaussian("output"), (5, 4, 6)),
    ],
)
def test_draws_are_targets_of_their_own_outputs(likelihood, outputs):
    raw = torch.randn(outputs, requires_grad=True)
    drawn = likelihood.sample(raw)
    assert drawn.shape[:2] == (5, 4)
    assert not drawn.requires_grad
    likelihood.check(raw.flatten(0, 1), drawn.flatten(0, 1))
    density = likelihood.log_prob(raw.flatten(0, 1)[None], drawn.flatten(0, 1))
    assert density.shape == (1, 20)
    by_sample = torch.stack(
        [likelihood.log_prob(raw[[s]], drawn[s]).squeeze(0) for s in range(len(raw))]
    )
    torch.testing.assert_close(density.view(5, 4), by_sample)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_draws_repeat_with_the_generator_and_come_to_the_outputs_device(name):
    likelihood, raw = LIKELIHOODS[name](), torch.randn(5, 40, 2)
    draws = [
        likelihood.sample(raw, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    elsewhere = likelihood.to("meta").sample(raw.to("meta"), generator=torch.Generator())
    assert (elsewhere.device.type, elsewhere.shape) == ("meta", draws[0].shape)


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli()])
def test_without_learnt_numbers_or_constant_curvature_nothing_happens(likelihood):
    outputs, target = torch.randn(2, 3, 2), likelihood.sample(torch.randn(1, 3, 2))[0]
    assert likelihood.output_precision(outputs) is None
    likelihood.reestimate_(outputs, target, rate=0.5)
    assert not likelihood.state_dict()


@pytest.mark.parametrize("positions", [(), (5,)])
def test_no_constant_does_better_than_the_frequencies_of_classes(positions):
    """Truth: the smallest NLL that gradient descent on one vector of logits finds."""
    target = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), 200, replacement=True)
    target = target.view(-1, *positions)
    logits = torch.zeros(3, requires_grad=True)
    descent = torch.optim.LBFGS([logits], max_iter=100)

    def loss():
        descent.zero_grad()
        nll = torch.nn.functional.cross_entropy(logits.expand(200, 3), target.flatten())
        nll.backward()
        return nll

    descent.step(loss)
    shape = (1, 3, *(1 for _ in positions))
    outputs = logits.detach().view(shape).expand(len(target), 3, *positions)
    cut = len(target) // 3
    batches = [(outputs[:cut], target[:cut]), (outputs[cut:], target[cut:])]
    own, constant = Categorical().against_constant(batches)
    assert own == pytest.approx(constant, rel=1e-4)


def test_no_constant_does_better_than_frequencies_of_labels_or_the_mean_of_numbers():
    target = (torch.rand(200, 2) < torch.tensor([0.2, 0.7])).float()
    best = torch.logit(target.mean(0)).expand(200, 2)
    own, constant = Bernoulli().against_constant(
        [(best[:50], target[:50]), (best[50:], target[50:])]
    )
    assert own == pytest.approx(constant, rel=1e-5)
    always = torch.ones(4, 2)
    assert Bernoulli().against_constant([(9 * always, always)])[1] == 0
    numbers = 3 + torch.randn(200, 2)
    mean = numbers.mean(0)
    for kind, outputs in (("learnt", mean), ("output", torch.cat([mean, torch.randn(2)]))):
        batches = [(outputs.expand(200, -1), numbers)]
        own, constant = Gaussian(kind).against_constant(batches)
        assert own == pytest.approx(constant, rel=1e-5)
        assert constant == pytest.approx((numbers - mean).square().mean().sqrt().item(), rel=1e-5)


@pytest.mark.parametrize("name", ["categorical", "bernoulli", "gaussian"])
def test_log_densities_of_half_precision_are_those_of_its_numbers_in_double(name):
    """1,000 labels, positions or dimensions are summed: bfloat16 alone has three digits."""
    outputs = torch.randn(2, 3, 4, 1000).bfloat16()
    likelihood = LIKELIHOODS[name]() if name != "gaussian" else Gaussian(0.5)
    target = torch.randint(4, (3, 1000)) if name == "categorical" else torch.ones(3, 1000)
    outputs = outputs if name == "categorical" else outputs[:, :, 0]
    got, want = (likelihood.log_prob(each, target) for each in (outputs, outputs.double()))
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)
