"""What every `StructuredWeight` must do. A new one joins by an entry in `CASES`."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from bayesify.weights.gaussian import GaussianWeight
from bayesify.weights.low_rank import LowRankWeight
from bayesify.weights.named import weights_of
from bayesify.weights.structured import StructuredWeight
from bayesify.weights.taped import Tape, TapedWeight


@dataclass(frozen=True)
class Case:
    """A structured weight made of a base tensor, and the plain tensor it stands for."""

    structured: Callable[[Tensor], StructuredWeight]
    dense: Callable[[Tensor], Tensor]


class ShiftedWeight(StructuredWeight):
    """The base plus one, never formed where it multiplies. The base itself is a decoy: what reads
    it past `dense()` is found out.
    """

    def __new__(cls, base: Tensor) -> "ShiftedWeight":
        weight = base.as_subclass(cls)
        weight.base = base
        return weight

    def act(self, op, x, bias):
        return op(x, self.base, bias) + op(x, torch.ones_like(self.base))

    def dense(self) -> Tensor:
        return self.base + 1


def low_rank(base: Tensor, scale: float = 0.7) -> LowRankWeight:
    generator = torch.Generator().manual_seed(3)
    m, d = len(base), base[0].numel()
    down, up = (torch.randn(each, generator=generator).to(base) for each in ((2, d), (m, 2)))
    return LowRankWeight(base, down, up, scale)


CASES = {
    "GaussianWeight": Case(
        lambda base: GaussianWeight(base, torch.zeros_like(base)), lambda base: base
    ),
    "LowRankWeight": Case(low_rank, lambda base: low_rank(base).dense()),
    "LowRankWeight of rank 0 difference": Case(
        lambda base: low_rank(base, scale=0.0), lambda base: base
    ),
    "ShiftedWeight": Case(ShiftedWeight, lambda base: base + 1),
    "TapedWeight": Case(lambda base: TapedWeight(base, "w", Tape([{}])), lambda base: base),
    "TapedWeight of another": Case(
        lambda base: TapedWeight(ShiftedWeight(base), "w", Tape([{}])), lambda base: base + 1
    ),
}

Use = tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...], tuple[int, ...]]
"""What is computed of weight and input, their shapes."""

USES: dict[str, Use] = {
    "linear": (lambda w, x: F.linear(x, w), (5, 4), (3, 4)),
    "linear of sequences": (lambda w, x: F.linear(x, w), (5, 4), (3, 2, 4)),
    "linear with bias": (lambda w, x: F.linear(x, w, torch.ones(5).to(x)), (5, 4), (3, 4)),
    "linear by keyword": (
        lambda w, x: F.linear(input=x, weight=w, bias=torch.ones(5).to(x)),
        (5, 4),
        (3, 4),
    ),
    "conv1d": (lambda w, x: F.conv1d(x, w, None, 2, 1), (6, 4, 3), (3, 4, 9)),
    "conv2d": (lambda w, x: F.conv2d(x, w), (6, 4, 3, 3), (2, 4, 7, 7)),
    "conv2d with all options": (
        lambda w, x: F.conv2d(x, w, torch.ones(6).to(x), stride=2, padding=1, dilation=2, groups=2),
        (6, 2, 3, 3),
        (2, 4, 9, 9),
    ),
    "conv2d by keyword": (lambda w, x: F.conv2d(input=x, weight=w), (6, 4, 3, 3), (2, 4, 7, 7)),
    "conv2d padded to the same": (
        lambda w, x: F.conv2d(x, w, padding="same"),
        (6, 4, 3, 3),
        (2, 4, 7, 7),
    ),
    "conv3d": (lambda w, x: F.conv3d(x, w, None, 1, 1, 1, 2), (4, 1, 2, 2, 2), (2, 2, 4, 4, 4)),
    "conv_transpose1d": (
        lambda w, x: F.conv_transpose1d(x, w, None, 2, 1, 1),
        (4, 6, 3),
        (2, 4, 5),
    ),
    "conv_transpose2d": (
        lambda w, x: F.conv_transpose2d(x, w, torch.ones(6).to(x), 2, 1, 1, 2, 2),
        (4, 3, 3, 3),
        (2, 4, 5, 5),
    ),
    "conv_transpose3d": (lambda w, x: F.conv_transpose3d(x, w), (2, 3, 2, 2, 2), (2, 2, 3, 3, 3)),
    "x @ w.T": (lambda w, x: x @ w.T, (5, 4), (3, 4)),
    "w @ x": (lambda w, x: w @ x, (5, 4), (4, 3)),
    "w.T @ x": (lambda w, x: w.T @ x, (5, 4), (5, 3)),
    "w.mT": (lambda w, x: torch.matmul(x, w.mT), (5, 4), (3, 4)),
    "addmm": (lambda w, x: torch.addmm(torch.ones(3, 5).to(x), x, w.t()), (5, 4), (3, 4)),
    "einsum": (lambda w, x: torch.einsum("oi,bi->bo", w, x), (5, 4), (3, 4)),
    "embedding": (lambda w, x: F.embedding(torch.tensor([0, 2, 2]), w) * x, (5, 4), (3, 4)),
    "tied": (lambda w, x: F.linear(w[torch.tensor([0, 2, 2])] * x, w), (5, 4), (3, 4)),
    "as the input": (lambda w, x: F.linear(w, x), (5, 4), (3, 4)),
    "with itself": (lambda w, x: F.linear(x, F.linear(w, w)), (4, 4), (3, 4)),
    "index": (lambda w, x: w[1] * x, (5, 4), (3, 4)),
    "arithmetic": (lambda w, x: 2 * w - x / (1 + w.square()), (5, 4), (5, 4)),
    "norm of": (lambda w, x: x * w.norm(), (5, 4), (3, 4)),
    "stack": (lambda w, x: torch.stack([w, x, w]), (5, 4), (5, 4)),
    "cat": (lambda w, x: torch.cat((x, w)), (5, 4), (3, 4)),
    "split": (lambda w, x: F.linear(x, w.chunk(2)[1]), (6, 4), (3, 4)),
    "reshape": (lambda w, x: F.linear(x, w.view(4, 5).flip(0)), (5, 4), (3, 5)),
    "checkpoint": (
        lambda w, x: checkpoint(F.linear, x, w, use_reentrant=False),
        (5, 4),
        (3, 4),
    ),
}


def both(case: Case, use: Use) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients, by the structured weight and by the plain tensor."""
    function, weight_shape, input_shape = use
    results = []
    for build in (case.structured, case.dense):
        torch.manual_seed(0)
        base = torch.randn(weight_shape, dtype=torch.float64, requires_grad=True)
        x = torch.randn(input_shape, dtype=torch.float64, requires_grad=True)
        out = function(build(base), x)
        results.append([out, *torch.autograd.grad(out.square().sum(), (base, x))])
    return results[0], results[1]


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("case", CASES)
def test_every_use_gives_the_output_and_gradients_of_the_plain_tensor(case, use):
    got, want = both(CASES[case], USES[use])
    for each, truth in zip(got, want, strict=True):
        assert type(each) is Tensor
        torch.testing.assert_close(each, truth, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("use", [each for each in USES if each != "checkpoint"])
@pytest.mark.parametrize("case", CASES)
def test_inference_mode_sees_the_same(case, use):
    function, weight_shape, input_shape = USES[use]
    with torch.inference_mode():
        base, x = torch.randn(weight_shape).double(), torch.randn(input_shape).double()
        got = function(CASES[case].structured(base), x)
        torch.testing.assert_close(got, function(CASES[case].dense(base), x), rtol=0, atol=1e-5)


class Wrapped(nn.Module):
    def __init__(self, module: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self.module, x)


def layers() -> dict[str, tuple[nn.Module, Tensor]]:
    sequence = torch.randn(2, 3, 4)
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    return {
        "attention": (
            Wrapped(nn.MultiheadAttention(4, 2, batch_first=True), lambda m, x: m(x, x, x)[0]),
            sequence,
        ),
        "attention with other keys": (
            Wrapped(nn.MultiheadAttention(4, 2, kdim=4, vdim=4), lambda m, x: m(x, x, 2 * x)[0]),
            sequence,
        ),
        "transformer layer": (nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True), sequence),
        "lstm": (Wrapped(nn.LSTM(4, 3, batch_first=True), lambda m, x: m(x)[0]), sequence),
        "gru": (Wrapped(nn.GRU(4, 3, 2, bidirectional=True), lambda m, x: m(x)[0]), sequence),
        "gru cell": (nn.GRUCell(4, 3), sequence[0]),
        "bilinear": (Wrapped(nn.Bilinear(4, 4, 3), lambda m, x: m(x, x)), sequence),
        "batch norm": (nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), sequence[0]),
        "layer norm": (nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)), sequence),
        "weight norm": (normed, sequence),
        "reflecting conv": (nn.Conv1d(3, 2, 3, padding=1, padding_mode="reflect"), sequence),
    }


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", layers())
@pytest.mark.parametrize("case", CASES)
def test_every_layer_gives_the_output_and_gradients_of_the_plain_tensor(case, name, training):
    torch.manual_seed(0)
    model, x = layers()[name]
    model, x = model.double().train(training), x.double()
    results = []
    for build in (CASES[case].structured, CASES[case].dense):
        bases = {n: e.clone().requires_grad_() for n, e in weights_of(model).items()}
        built = {n: build(each) for n, each in bases.items()}
        out = functional_call(model, built, (x,))
        results.append([out, *torch.autograd.grad(out.square().sum(), list(bases.values()))])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("case", [each for each in CASES if each != "GaussianWeight"])
def test_what_multiplies_never_forms_the_weight(case, monkeypatch):
    weight = CASES[case].structured(torch.randn(5, 4))

    def refuse(self):
        raise AssertionError("formed")

    monkeypatch.setattr(type(weight), "dense", refuse)
    F.linear(torch.randn(3, 4), weight)
    F.conv1d(torch.randn(1, 4, 3), CASES[case].structured(torch.randn(5, 4, 2)))
    with pytest.raises(AssertionError, match="formed"):
        _ = weight.T


@pytest.mark.parametrize("case", CASES)
def test_metadata_is_that_of_the_plain_tensor(case):
    base = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    weight, plain = CASES[case].structured(base), CASES[case].dense(base)
    for fact in ("shape", "dtype", "device", "ndim", "requires_grad", "layout", "is_nested"):
        assert getattr(weight, fact) == getattr(plain, fact)
    assert (weight.size(), weight.dim(), weight.numel(), len(weight)) == ((5, 4), 2, 20, 5)
    assert weight.is_floating_point()
    assert weight.size(1) == 4


def test_nothing_but_listed_metadata_reads_past_the_dense_weight():
    def read(tensor: Tensor, name: str) -> object:
        value = getattr(tensor, name)
        return value() if callable(value) else value

    base = torch.rand(4, 4) - 1  # so that the dense weight lies in every function's domain
    weight, plain = ShiftedWeight(base), base + 1
    seen = 0
    for name in dir(Tensor):
        changes = name.endswith("_") and not name.endswith("__")
        if changes or name in NOT_A_FUNCTION_OF_VALUES or name.startswith("_"):
            continue
        try:
            want = read(plain, name)
        except (TypeError, RuntimeError, AttributeError, ValueError, AssertionError, Warning):
            continue  # needs arguments, or another kind of tensor
        if isinstance(want, Tensor) and want.dtype != torch.bool and not want.is_sparse:
            torch.testing.assert_close(
                read(weight, name), want, rtol=0, atol=0, equal_nan=True, msg=name
            )
            seen += 1
        elif isinstance(want, int | float | list):
            assert read(weight, name) == want, name
            seen += 1
    assert seen > 100


NOT_A_FUNCTION_OF_VALUES = {
    *(
        "bernoulli",
        "multinomial",
        "rand_like",
        "data_ptr",
        "const_data_ptr",
        "mutable_data_ptr",
        "grad_fn",
        "output_nr",
        "name",
    ),
    *("is_leaf", "retains_grad", "requires_grad", "share_memory", "pin_memory", "to_mkldnn"),
}
