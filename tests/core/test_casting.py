import pytest
import torch

from bayesify import MeanField, first_layer, last_layer
from bayesify.core.casting import cast_together
from bayesify.forward import outputs as forward
from zoo import NETS


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
@pytest.mark.parametrize("where", [first_layer, last_layer])
def test_under_autocast_samples_at_once_have_the_digits_of_samples_alone(name, where):
    model, x = NETS[name].model().eval(), NETS[name].inputs(3)
    q = MeanField.around(model, where=where, scale=0.1, example=x)
    seed = torch.Generator().manual_seed
    with torch.autocast("cpu", dtype=torch.bfloat16):
        together = forward.outputs(model, q, x, 5, generator=seed(1))
        alone = forward.outputs(model, q, x, 5, generator=seed(1), vectorize=False)
    assert together.dtype == alone.dtype == torch.bfloat16
    torch.testing.assert_close(together, alone, rtol=2e-2, atol=2e-2)
    exact = forward.outputs(model, q, x, 5, generator=seed(1))
    assert exact.dtype == torch.float32
    assert (together - exact).abs().max() > 0


def test_double_precision_is_not_lowered():
    x = torch.ones(2, 3, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.bfloat16), cast_together():
        assert torch.nn.functional.linear(x, x).dtype == torch.float64
