from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bayesify.weights.low_rank import LowRankWeight
from zoo import TiedNet

SCALE, RANK = 0.7, 2

Use = tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...], tuple[int, ...]]
"""What is computed of weight and input, their shapes."""

INDICES = torch.tensor([[0, 2, 2], [5, 1, 0]])


def on_the_right(w: Tensor, x: Tensor) -> Tensor:
    """As `Conv1D` of Hugging Face, whose weights are (in, out)."""
    flat = torch.addmm(torch.ones(w.shape[1]).to(x), x.view(-1, x.size(-1)), w)
    return flat.view(*x.shape[:-1], w.shape[1])


PRODUCTS: dict[str, Use] = {
    "linear": (lambda w, x: F.linear(x, w), (5, 4), (3, 4)),
    "linear of one example": (lambda w, x: F.linear(x, w), (5, 4), (4,)),
    "linear of sequences with bias": (
        lambda w, x: F.linear(x, w, torch.ones(5).to(x)),
        (5, 4),
        (3, 2, 4),
    ),
    "on the right": (on_the_right, (4, 5), (3, 2, 4)),
}

CONVOLUTIONS: dict[str, Use] = {
    "conv1d": (lambda w, x: F.conv1d(x, w), (6, 4, 3), (2, 4, 9)),
    "conv1d with stride": (lambda w, x: F.conv1d(x, w, None, 2, 1), (6, 4, 3), (2, 4, 9)),
    "conv1d padded to the same": (
        lambda w, x: F.conv1d(x, w, padding="same", dilation=2),
        (6, 4, 4),
        (2, 4, 15),
    ),
    "conv1d in groups": (lambda w, x: F.conv1d(x, w, groups=2), (6, 2, 3), (2, 4, 9)),
    "conv1d depthwise": (lambda w, x: F.conv1d(x, w, groups=4), (8, 1, 3), (2, 4, 9)),
    "conv2d": (lambda w, x: F.conv2d(x, w), (6, 4, 3, 3), (2, 4, 6, 7)),
    "conv2d pointwise": (lambda w, x: F.conv2d(x, w), (6, 4, 1, 1), (2, 4, 5, 5)),
    "conv2d of one example": (lambda w, x: F.conv2d(x, w), (6, 4, 3, 3), (4, 8, 8)),
    "conv2d of one example in groups": (
        lambda w, x: F.conv2d(x, w, groups=2),
        (6, 2, 3, 3),
        (4, 6, 7),
    ),
    "conv2d with stride and padding": (
        lambda w, x: F.conv2d(x, w, torch.ones(len(w)).to(x), (2, 1), (1, 2)),
        (6, 4, 3, 3),
        (2, 4, 6, 7),
    ),
    "conv2d dilated": (
        lambda w, x: F.conv2d(x, w, padding=2, dilation=(2, 1)),
        (6, 4, 3, 2),
        (2, 4, 6, 7),
    ),
    "conv2d padded to the same": (
        lambda w, x: F.conv2d(x, w, padding="same"),
        (6, 4, 1, 3),
        (2, 4, 6, 7),
    ),
    "conv2d without padding, in words": (
        lambda w, x: F.conv2d(x, w, padding="valid", stride=2),
        (6, 4, 2, 3),
        (2, 4, 6, 7),
    ),
    "conv2d with all options": (
        lambda w, x: F.conv2d(x, w, torch.ones(len(w)).to(x), 2, 1, 2, 3),
        (9, 2, 3, 3),
        (2, 6, 7, 8),
    ),
    "conv2d by keyword in groups": (
        lambda w, x: F.conv2d(input=x, weight=w, bias=None, stride=2, groups=2),
        (6, 2, 3, 3),
        (2, 4, 6, 7),
    ),
    "conv2d depthwise": (
        lambda w, x: F.conv2d(x, w, torch.ones(len(w)).to(x), 1, 1, 1, 4),
        (4, 1, 3, 3),
        (2, 4, 6, 7),
    ),
    "conv2d depthwise with two each": (
        lambda w, x: F.conv2d(x, w, groups=4),
        (8, 1, 3, 3),
        (2, 4, 6, 7),
    ),
    "conv3d": (lambda w, x: F.conv3d(x, w, None, 2, 1), (4, 2, 2, 3, 2), (2, 2, 4, 5, 4)),
    "conv3d in groups": (
        lambda w, x: F.conv3d(x, w, None, 1, "same", 1, 2),
        (4, 1, 3, 3, 3),
        (2, 2, 4, 5, 4),
    ),
}

FILTERS = 40
"""How many times more filters make a convolution's weight larger than its input."""

LARGE: dict[str, Use] = {
    f"{name}, large": (function, (FILTERS * shape[0], *shape[1:]), inputs)
    for name, (function, shape, inputs) in CONVOLUTIONS.items()
}

LOOKS_UP: dict[str, Use] = {
    "embedding": (lambda w, x: F.embedding(INDICES, w) * x, (6, 4), (2, 3, 4)),
}

FALLS_BACK: dict[str, Use] = CONVOLUTIONS | {
    "conv_transpose1d": (
        lambda w, x: F.conv_transpose1d(x, w, None, 2, 1, 1),
        (4, 6, 3),
        (2, 4, 5),
    ),
    "conv_transpose2d in groups": (
        lambda w, x: F.conv_transpose2d(x, w, torch.ones(6).to(x), 2, 1, 1, 2, 2),
        (4, 3, 3, 3),
        (2, 4, 5, 5),
    ),
    "conv_transpose3d": (lambda w, x: F.conv_transpose3d(x, w), (2, 3, 2, 2, 2), (2, 2, 3, 3, 3)),
    "embedding of a largest norm": (
        lambda w, x: F.embedding(INDICES, w, max_norm=0.8) * x,
        (6, 4),
        (2, 3, 4),
    ),
    "scaled addmm": (
        lambda w, x: torch.addmm(torch.ones(5).to(x), x, w, beta=2, alpha=0.5),
        (4, 5),
        (3, 4),
    ),
    "addmm of a matrix": (
        lambda w, x: torch.addmm(torch.ones(3, 5).to(x), x, w),
        (4, 5),
        (3, 4),
    ),
}

ACTS = PRODUCTS | LARGE | LOOKS_UP


def drawn(weight_shape: tuple[int, ...], input_shape: tuple[int, ...], *members: int) -> list:
    """Base, input, and `down` and `up` with leading axes `members`; double."""
    m, d = weight_shape[0], torch.Size(weight_shape[1:]).numel()
    shapes = (weight_shape, input_shape, (*members, RANK, d), (*members, m, RANK))
    return [torch.randn(each, dtype=torch.float64, requires_grad=True) for each in shapes]


def merged(base: Tensor, down: Tensor, up: Tensor, scale: float = SCALE) -> Tensor:
    return base + scale * (up @ down).reshape(base.shape)


@pytest.mark.parametrize("use", ACTS | FALLS_BACK)
def test_output_and_gradients_are_those_of_the_merged_weight(use):
    function, *shapes = (ACTS | FALLS_BACK)[use]
    base, *leaves = drawn(*shapes)
    x, down, up = leaves
    outs = [function(LowRankWeight(base, down, up, SCALE), x), function(merged(base, down, up), x)]
    probe = torch.randn_like(outs[0])
    got, want = ([out, *torch.autograd.grad((out * probe).sum(), leaves)] for out in outs)
    for each, truth in zip(got, want, strict=True):
        torch.testing.assert_close(each, truth, rtol=1e-10, atol=1e-10)
    assert all(each.abs().max() > 0.01 for each in got)


@pytest.mark.parametrize("use", ACTS)
def test_what_multiplies_or_looks_up_never_forms_the_weight(use, monkeypatch):
    monkeypatch.setattr(LowRankWeight, "dense", refuse)
    function, *shapes = ACTS[use]
    base, x, down, up = drawn(*shapes)
    function(LowRankWeight(base, down, up, SCALE), x).sum().backward()


@pytest.mark.parametrize("use", FALLS_BACK)
def test_what_knows_no_faster_way_forms_the_weight(use, monkeypatch):
    monkeypatch.setattr(LowRankWeight, "dense", refuse)
    function, *shapes = FALLS_BACK[use]
    base, x, down, up = drawn(*shapes)
    with pytest.raises(AssertionError, match="formed"):
        function(LowRankWeight(base, down, up, SCALE), x)


def refuse(self: LowRankWeight) -> Tensor:
    raise AssertionError("formed")


def test_a_lookup_of_a_largest_norm_does_not_rescale_the_base():
    base, _, down, up = (each.detach() for each in drawn((6, 4), (2, 3, 4)))
    before = base.clone()
    found = F.embedding(INDICES, LowRankWeight(base, down, up), max_norm=0.1)
    assert found.norm(dim=-1).max() < 0.11
    assert torch.equal(base, before)


def test_padding_looks_up_what_the_merged_table_holds_there():
    base, _, down, up = drawn((6, 4), (1,))
    found = F.embedding(INDICES, LowRankWeight(base, down, up, SCALE), padding_idx=2)
    torch.testing.assert_close(found, merged(base, down, up)[INDICES], rtol=1e-10, atol=1e-10)


def test_padding_gives_no_gradient_as_in_the_merged_table():
    base, _, down, up = drawn((6, 4), (1,))
    probe = torch.randn(2, 3, 4).double()
    got, want = (
        torch.autograd.grad((F.embedding(INDICES, w, padding_idx=2) * probe).sum(), (down, up))
        for w in (LowRankWeight(base, down, up, SCALE), merged(base, down, up))
    )
    for each, truth in zip(got, want, strict=True):
        torch.testing.assert_close(each, truth, rtol=1e-10, atol=1e-10)


def test_a_table_that_embeds_and_scores_is_one_weight(monkeypatch):
    model, ids = TiedNet().double(), torch.tensor([[0, 2, 1], [1, 1, 0]])
    base = model.embed.weight.detach()
    _, _, down, up = drawn((3, 5), (1,))
    results = []
    for weight in (LowRankWeight(base, down, up, SCALE), merged(base, down, up)):
        out = functional_call(model, {"embed.weight": weight}, (ids,))
        results.append([out, *torch.autograd.grad(out.square().sum(), (down, up))])
    for each, truth in zip(*results, strict=True):
        torch.testing.assert_close(each, truth, rtol=1e-10, atol=1e-10)
    monkeypatch.setattr(LowRankWeight, "dense", refuse)
    weights = {"embed.weight": LowRankWeight(base, down, up, SCALE)}
    assert torch.equal(functional_call(model, weights, (ids,)), results[0][0])


def test_conv1d_of_hugging_face_multiplies_on_the_right(monkeypatch):
    module = pytest.importorskip("transformers.pytorch_utils")
    layer = module.Conv1D(5, 4).double()
    _, x, down, up = drawn((4, 5), (2, 3, 4))
    base = layer.weight.detach()
    want = functional_call(layer, {"weight": merged(base, down, up)}, (x,))
    monkeypatch.setattr(LowRankWeight, "dense", refuse)
    got = functional_call(layer, {"weight": LowRankWeight(base, down, up, SCALE)}, (x,))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


UNDER_VMAP = [each for each in ACTS | FALLS_BACK if "largest norm" not in each]  # no rule in torch


@pytest.mark.parametrize(
    ("use", "batched_input"),
    [(use, own) for use in UNDER_VMAP for own in (False, True) if not (own and use in LOOKS_UP)],
)
def test_members_around_one_base_are_those_in_a_loop(use, batched_input):
    function, *shapes = (ACTS | FALLS_BACK)[use]
    base, x, down, up = drawn(*shapes, 3)
    if batched_input:
        x = torch.randn(3, *shapes[1], dtype=torch.float64, requires_grad=True)
    axes = (0 if batched_input else None, 0, 0)

    def one(x: Tensor, down: Tensor, up: Tensor) -> Tensor:
        return function(LowRankWeight(base, down, up, SCALE), x)

    at_once = torch.vmap(one, in_dims=axes)(x, down, up)
    loop = torch.stack([one(x[i] if batched_input else x, down[i], up[i]) for i in range(3)])
    probe = torch.randn_like(loop)
    got, want = (
        [out, *torch.autograd.grad((out * probe).sum(), (x, down, up))] for out in (at_once, loop)
    )
    for each, truth in zip(got, want, strict=True):
        torch.testing.assert_close(each, truth, rtol=1e-10, atol=1e-10)


def operations(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("convolution", [False, True], ids=["linear", "conv2d"])
def test_all_members_share_one_product_with_the_base(convolution):
    m, width, members, batch = 32, 48, 5, 7
    pixels, kernel = (4 * 4, 3 * 3) if convolution else (1, 1)
    shape = (m, width, 3, 3) if convolution else (m, width)
    base = torch.randn(shape)
    x = torch.randn(batch, width, 6, 6) if convolution else torch.randn(batch, width)
    down, up = torch.randn(members, RANK, width * kernel), torch.randn(members, m, RANK)
    act = F.conv2d if convolution else F.linear
    got = operations(
        lambda: torch.vmap(lambda down, up: act(x, LowRankWeight(base, down, up)))(down, up)
    )
    wide = 2 * batch * pixels * width * kernel * m
    narrow = 2 * batch * pixels * RANK * (width * kernel + m)
    assert got == wide + members * narrow
    dense = torch.vmap(lambda down, up: act(x, merged(base, down, up)))
    assert operations(lambda: dense(down, up)) > members * wide


@pytest.mark.parametrize(
    "use", ["linear of sequences with bias", "on the right", "conv2d", "conv2d, large"]
)
def test_a_narrow_base_keeps_its_type_and_the_factors_their_gradients(use):
    function, *shapes = (ACTS | FALLS_BACK)[use]
    wide = drawn(*shapes)
    base, x = (each.detach().bfloat16() for each in wide[:2])
    down, up = (each.detach().float().requires_grad_() for each in wide[2:])
    out = function(LowRankWeight(base, down, up, SCALE), x)
    assert out.dtype == torch.bfloat16
    weight = merged(base.double(), *wide[2:])
    want = function(weight, x.double())
    size = want.abs().mean().item()
    torch.testing.assert_close(out.double(), want, rtol=2**-6, atol=2**-6 * size)
    got = torch.autograd.grad(out.square().sum(), (down, up))
    truth = torch.autograd.grad(want.square().sum(), wide[2:])
    for each, true in zip(got, truth, strict=True):
        assert each.dtype == torch.float32
        assert (each - true).norm() < 0.02 * true.norm()


def test_a_narrow_table_looks_up_in_its_type():
    base = torch.randn(6, 4).bfloat16()
    down, up = torch.randn(2, 4, requires_grad=True), torch.randn(6, 2, requires_grad=True)
    weight = LowRankWeight(base, down, up, SCALE)
    found = F.embedding(INDICES, weight)
    assert found.dtype == weight.dense().dtype == torch.bfloat16
    want = merged(base.float(), down, up)
    torch.testing.assert_close(found.float(), want[INDICES], rtol=2**-6, atol=2**-6)
    torch.testing.assert_close(weight.dense().float(), want, rtol=2**-6, atol=2**-6)
    found.sum().backward()
    assert down.grad.dtype == up.grad.dtype == torch.float32
    assert down.grad.abs().sum() > 0


def test_the_scale_multiplies_the_difference():
    base, x, down, up = drawn((5, 4), (3, 4))
    start = F.linear(x, base)
    one, three = (F.linear(x, LowRankWeight(base, down, up, s)) - start for s in (1.0, 3.0))
    torch.testing.assert_close(three, 3 * one)
    torch.testing.assert_close(F.linear(x, LowRankWeight(base, down, up)) - start, one)


def test_it_shares_the_memory_of_its_base():
    base, _, down, up = (each.detach() for each in drawn((5, 4), (3, 4)))
    weight = LowRankWeight(base, down, up, SCALE)
    assert weight.base.data_ptr() == base.data_ptr()
    base.add_(1)
    torch.testing.assert_close(weight.dense(), merged(base, down, up))
