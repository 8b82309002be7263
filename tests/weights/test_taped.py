import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bayesify.core.errors import UnsupportedModelError
from bayesify.core.types import Named
from bayesify.forward import outputs as forward
from bayesify.weights.gaussian import GaussianWeight
from bayesify.weights.taped import Tape, TapedWeight
from zoo import NETS

TIGHT = {"rtol": 1e-12, "atol": 1e-12}


def fresh() -> Tape:
    return Tape([{}])


def backward(loss: Tensor, tape: Tape) -> None:
    torch.autograd.grad(loss, [tape.anchor])


def test_it_notes_the_input_and_the_gradient_of_its_output():
    x, w, b = torch.randn(6, 4).double(), torch.randn(3, 4).double(), torch.randn(3).double()
    tape = fresh()
    z = F.linear(x, TapedWeight(w, "w", tape), b)
    torch.testing.assert_close(z.detach(), x @ w.T + b, **TIGHT)
    backward(z.square().sum(), tape)
    (inputs,), (gradient,) = tape.inputs("w"), tape.gradients("w")
    assert torch.equal(inputs, x[None])
    torch.testing.assert_close(gradient, 2 * (x @ w.T + b)[None], **TIGHT)


class Chain(nn.Module):
    """Two layers, a convolution and a fully connected one; keeps what autograd is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.Linear(12, 2)
        self.inputs: list[Tensor] = []
        self.outputs: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv(x)
        features = hidden.tanh().flatten(1)
        out = self.head(features)
        self.inputs, self.outputs = [x, features], [hidden, out]
        return out


def test_it_agrees_with_autograd_by_hand():
    model, x = Chain().double(), torch.randn(5, 1, 4, 4).double()
    loss = model(x).sin().sum()
    want_inputs, want = model.inputs, torch.autograd.grad(loss, model.outputs)
    tape, names = fresh(), ["conv.weight", "head.weight"]
    taped = {n: TapedWeight(model.get_parameter(n).detach(), n, tape) for n in names}
    backward(torch.func.functional_call(model, taped, (x,)).sin().sum(), tape)
    for name, value, gradient in zip(names, want_inputs, want, strict=True):
        torch.testing.assert_close(tape.inputs(name)[0], value.detach()[None], **TIGHT)
        torch.testing.assert_close(tape.gradients(name)[0], gradient[None], **TIGHT)


def test_no_weight_and_no_input_needs_a_gradient():
    tape = fresh()
    z = F.linear(torch.randn(6, 4), TapedWeight(torch.randn(3, 4), "w", tape))
    assert z.requires_grad
    backward(z.sum(), tape)
    assert torch.equal(tape.gradients("w")[0], torch.ones(1, 6, 3))
    assert not tape.inputs("w")[0].requires_grad


def test_gradients_still_reach_a_weight_and_an_input_that_want_one():
    x, w = torch.randn(6, 4).double().requires_grad_(), torch.randn(3, 4).double().requires_grad_()
    weights = torch.randn(6, 3).double()
    got = torch.autograd.grad((F.linear(x, TapedWeight(w, "w", fresh())) * weights).sum(), (x, w))
    torch.testing.assert_close(list(got), [weights @ w, weights.T @ x], **TIGHT)


def test_two_uses_are_two_entries_in_order():
    x, w = torch.randn(6, 4).double(), torch.randn(4, 4).double()
    tape = fresh()
    weight = TapedWeight(w, "w", tape)
    first = F.linear(x, weight)
    second = F.linear(first.tanh(), weight)
    backward(second.square().sum(), tape)
    hidden = (x @ w.T).tanh()
    slope = 2 * hidden @ w.T
    torch.testing.assert_close(tape.inputs("w"), [x[None], hidden[None]], **TIGHT)
    want = [((slope @ w) * (1 - hidden.square()))[None], slope[None]]
    torch.testing.assert_close(tape.gradients("w"), want, **TIGHT)


def test_a_second_backward_pass_overwrites_the_gradients():
    tape = fresh()
    z = F.linear(torch.randn(6, 4), TapedWeight(torch.randn(3, 4), "w", tape))
    torch.autograd.grad(z.sum(), [tape.anchor], retain_graph=True)
    kept = tape.gradients("w")[0]
    backward(5 * z.sum(), tape)
    assert torch.equal(tape.gradients("w")[0], torch.full((1, 6, 3), 5.0))
    assert torch.equal(kept, torch.ones(1, 6, 3))


def test_what_the_loss_does_not_see_has_the_gradient_zero():
    tape = fresh()
    unseen = F.linear(torch.randn(6, 4), TapedWeight(torch.randn(3, 4), "unseen", tape))
    seen = F.linear(torch.randn(6, 4), TapedWeight(torch.randn(3, 4), "seen", tape))
    assert torch.equal(tape.gradients("seen")[0], torch.zeros(1, 6, 3))  # before any pass
    backward(seen.sum(), tape)
    assert torch.equal(tape.gradients("unseen")[0], torch.zeros(1, *unseen.shape))
    assert tape.inputs("unknown") == tape.gradients("unknown") == []


def test_without_gradients_inputs_are_noted_all_the_same():
    x, tape = torch.randn(6, 4), fresh()
    with torch.no_grad():
        z = F.linear(x, TapedWeight(torch.randn(3, 4), "w", tape))
    assert not z.requires_grad
    assert torch.equal(tape.inputs("w")[0], x[None])


def test_it_wraps_other_structured_weights():
    loc, scale = torch.randn(3, 4).double(), torch.rand(3, 4).double()
    x = torch.randn(6, 4).double()

    def gaussian() -> GaussianWeight:
        return GaussianWeight(loc, scale, torch.Generator().manual_seed(2))

    tape = fresh()
    z = F.linear(x, TapedWeight(gaussian(), "w", tape))
    assert torch.equal(z, F.linear(x, gaussian()))  # noise of each example's own, so it acted
    backward(z.sum(), tape)
    assert torch.equal(tape.gradients("w")[0], torch.ones(1, 6, 3).double())
    formed = TapedWeight(gaussian(), "w", tape).T
    assert torch.equal(formed, gaussian().dense().T)


def test_what_is_computed_of_the_weight_is_not_noted():
    tape, w = fresh(), torch.randn(3, 4)
    weight = TapedWeight(w, "w", tape)
    assert torch.equal(torch.randn(2, 4).new_ones(2, 4) @ weight.T, torch.ones(2, 4) @ w.T)
    assert tape.inputs("w") == []


# --- whose output it is


@pytest.mark.parametrize(
    ("read", "wanted"),
    [
        (lambda z: z, True),
        (lambda z: z.flatten(), True),
        (lambda z: z.unsqueeze(-1), True),
        (lambda z: z + 0, False),
        (lambda z: z[:2], False),
        (torch.relu, False),
        (torch.relu_, False),
        (lambda z: z.mul_(2.0), False),
    ],
    ids=["itself", "flat", "longer", "copy", "part", "relu", "relu in place", "times in place"],
)
@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("vectorize", [True, False])
def test_the_output_of_the_network_is_told_from_what_is_made_of_it(
    read, wanted, members, vectorize
):
    class Reading(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return read(super().forward(x))

    _, tape = taped(Reading(4, 3), torch.randn(5, 4), ["weight"], members, vectorize=vectorize)
    assert tape.is_output("weight") == wanted


@pytest.mark.parametrize("vectorize", [True, False])
def test_only_the_last_layer_makes_the_output(vectorize):
    model, names = NETS["mlp"].model(), ["0.weight", "2.weight", "4.weight"]
    _, tape = taped(model, NETS["mlp"].inputs(3), names, 2, vectorize=vectorize)
    assert [tape.is_output(name) for name in names] == [False, False, True]
    assert not tape.is_output("unknown")


def test_a_weight_of_several_uses_makes_no_output_of_its_own():
    class Twice(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            return super().forward(2 * x)

    _, tape = taped(Twice(4, 4), torch.randn(5, 4), ["weight"])
    assert len(tape.gradients("weight")) == 2
    assert not tape.is_output("weight")  # its other rows have another noise


def test_what_comes_after_the_last_layer_is_never_taken_for_it():
    net = nn.Sequential(nn.Linear(4, 64), nn.Softplus())

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(4, 64)

        def forward(self, x: Tensor) -> Tensor:
            return (self.net(x) * 30 + 5) * 2  # freed memory may come to be used again

    for model, name in ((net, "0.weight"), (Scaled(), "net.weight")):
        for _ in range(20):
            with torch.no_grad():
                _, tape = taped(model, torch.randn(3, 4), [name])
            assert not tape.is_output(name)


# --- networks that write in place


def taped(
    model: nn.Module, x: Tensor, layers: list[str], members: int = 2, *, vectorize: bool = True
) -> tuple[Tensor, Tape]:
    """`forward.tape` of members with weights of their own."""
    noise = torch.Generator().manual_seed(0)
    weights: Named = {
        name: torch.randn(members, *each.shape, generator=noise).to(each)
        for name, each in model.named_parameters()
    }
    return forward.tape(model, weights, lambda one: one, x, layers=layers, vectorize=vectorize)


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Hardtanh, nn.LeakyReLU])
def test_activations_in_place_change_nothing(activation, members, vectorize):
    x, names = torch.randn(6, 4).double(), ["0.weight", "2.weight"]
    results = []
    for inplace in (True, False):
        layers = nn.Linear(4, 5), activation(inplace=inplace), nn.Linear(5, 2)
        out, tape = taped(nn.Sequential(*layers).double(), x, names, members, vectorize=vectorize)
        backward(out.square().sum(), tape)
        results.append(
            [out, *(each(n)[0] for n in names for each in (tape.inputs, tape.gradients))]
        )
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("members", [1, 2])
def test_an_input_that_is_overwritten_later_is_refused_and_not_misread(members):
    class Adding(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            hidden = super().forward(x).tanh()
            hidden += super().forward(hidden)
            return hidden

    _, tape = taped(Adding(4, 4), torch.randn(6, 4), ["weight"], members)
    with pytest.raises(UnsupportedModelError, match=r"overwrites the input of 'weight' .* `x = x"):
        tape.inputs("weight")
