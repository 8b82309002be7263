import math

import pytest
import torch
from torch.distributions import Normal

from bayesify.core.errors import OptionError
from bayesify.distributions.priors import NormalPrior


def test_log_prob_is_torchs_summed_over_all_weights():
    weights = {"a": torch.randn(3, 2).double(), "b": torch.randn(4).double()}
    prior = NormalPrior({"a": 0.5, "b": 2.0}, loc={"a": torch.ones(3, 2).double()})
    want = (
        Normal(1.0, 0.5).log_prob(weights["a"]).sum()
        + Normal(0.0, 2.0).log_prob(weights["b"]).sum()
    )
    torch.testing.assert_close(prior.log_prob(weights), want)


def test_leading_sample_axes_are_summed():
    weights = torch.randn(6, 3)
    want = sum(NormalPrior(0.3).log_prob({"w": each}) for each in weights)
    torch.testing.assert_close(NormalPrior(0.3).log_prob({"w": weights}), want)


def test_one_scale_or_one_per_name():
    assert NormalPrior(2.0).scale_of("anything") == 2.0
    assert NormalPrior({"w": 3.0}).scale_of("w") == 3.0
    assert NormalPrior(1.0).loc_of("w") == 0.0


def test_the_centre_is_copied_and_moves_with_the_prior():
    centre = torch.ones(2)
    prior = NormalPrior(1.0, loc={"a.b": centre}).double()
    centre.zero_()
    assert prior.loc_of("a.b").tolist() == [1.0, 1.0]
    assert prior.loc_of("a.b").dtype == torch.float64
    assert not list(prior.parameters())


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan, {"w": 0.0}])
def test_a_scale_that_is_none_is_refused(scale):
    with pytest.raises(OptionError, match="expected a standard deviation above 0"):
        NormalPrior(scale)
