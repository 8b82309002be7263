import itertools

import pytest
import torch
from torch import Tensor

from bayesify.core.errors import ShapeError
from bayesify.distributions.shared.coded import CodedTensor

SHAPES = [(), (1,), (7,), (4, 5), (3, 2, 2, 3)]
K = 6


def coded(shape: tuple[int, ...], *, outliers: int = 0, blends: int = 0) -> CodedTensor:
    """Random codes, with so many outliers and blends in random places."""
    entries = torch.Size(shape).numel()
    places = torch.randperm(entries)[: outliers + blends]
    own, blended = places[:outliers].sort().values, places[outliers:].sort().values
    codes = torch.randint(K, shape)
    second = (codes.flatten()[blended] + torch.randint(1, K, (len(blended),))) % K
    return CodedTensor(codes, own, blended, second, torch.rand(len(blended)))


def looped(tensor: CodedTensor, book: list[float], own: list[float], power: int) -> list[float]:
    """The entries, one after the other."""
    entries = [book[code] for code in tensor.codes.flatten().tolist()]
    blends = zip(tensor.blends.tolist(), tensor.second.tolist(), tensor.share.tolist(), strict=True)
    for place, second, share in blends:
        a, b = share / 255, 1 - share / 255
        entries[place] = a**power * entries[place] + b**power * book[second]
    for place, number in zip(tensor.outliers.tolist(), own, strict=True):
        entries[place] = number
    return entries


def kinds(shape: tuple[int, ...]) -> list[CodedTensor]:
    """Without, with some, and with nothing but outliers and blends."""
    entries = torch.Size(shape).numel()
    counts = {(0, 0), (entries // 3, entries // 3), (entries, 0), (0, entries)}
    return [coded(shape, outliers=own, blends=mixed) for own, mixed in sorted(counts)]


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_gather_is_a_loop_over_the_entries(shape, power):
    for tensor in kinds(shape):
        book, own = torch.randn(K).double(), torch.randn(tensor.own_count).double()
        got = tensor.gather(book, own, power=power)
        want = looped(tensor, book.tolist(), own.tolist(), power)
        torch.testing.assert_close(got, torch.tensor(want).double().view(shape))


@pytest.mark.parametrize("leading", [(3,), (2, 3)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_leading_axes_are_samples(shape, leading):
    for tensor in kinds(shape):
        book, own = torch.randn(*leading, K), torch.randn(*leading, tensor.own_count)
        got = tensor.gather(book, own)
        assert got.shape == (*leading, *shape)
        for at in itertools.product(*map(range, leading)):
            assert torch.equal(got[at], tensor.gather(book[at], own[at]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_vmap_is_a_loop_over_samples(shape):
    for tensor in kinds(shape):
        book, own = torch.randn(3, K), torch.randn(3, tensor.own_count)
        assert torch.equal(torch.vmap(tensor.gather)(book, own), tensor.gather(book, own))


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("leading", [(), (2,)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_are_sums_over_the_entries_of_each_code(shape, leading, power):
    for tensor in kinds(shape):
        book = torch.randn(*leading, K).double().requires_grad_()
        own = torch.randn(*leading, tensor.own_count).double().requires_grad_()
        got = tensor.gather(book, own, power=power)
        slope = torch.randn_like(got)
        by_code, by_outlier = torch.autograd.grad(got, (book, own), slope, materialize_grads=True)
        for at in itertools.product(*map(range, leading)):
            want, flat = segment_sums(tensor, slope[at].flatten(), power), slope[at].flatten()
            torch.testing.assert_close(by_code[at], want)
            assert torch.equal(by_outlier[at], flat[tensor.outliers.long()])


def segment_sums(tensor: CodedTensor, slope: Tensor, power: int) -> Tensor:
    """What each number of the book gets, entry by entry."""
    total = [0.0] * K
    blends = dict(
        zip(
            tensor.blends.tolist(),
            zip(tensor.second.tolist(), tensor.share.tolist(), strict=True),
            strict=True,
        )
    )
    outliers = set(tensor.outliers.tolist())
    for place, (code, each) in enumerate(
        zip(tensor.codes.flatten().tolist(), slope.tolist(), strict=True)
    ):
        if place in blends:
            second, share = blends[place]
            total[code] += (share / 255) ** power * each
            total[second] += (1 - share / 255) ** power * each
        elif place not in outliers:
            total[code] += each
    return torch.tensor(total, dtype=slope.dtype)


def test_shares_are_255ths_and_whole_ones_are_exact():
    codes, both = torch.tensor([0, 0, 0, 0]), torch.tensor([1, 1, 1, 1])
    share = torch.tensor([0.0, 1.0, 0.5, 0.3])
    tensor = CodedTensor(codes, blends=torch.arange(4), second=both, share=share)
    assert tensor.share.tolist() == [0, 255, 128, 76]  # 127.5 is even at 128, 76.5 at 76
    book = torch.tensor([0.1, -0.7])
    got = tensor.gather(book, torch.empty(0))
    assert got[:2].tolist() == [book[1].item(), book[0].item()]
    assert got[2].item() == pytest.approx(128 / 255 * 0.1 - 127 / 255 * 0.7)
    again = CodedTensor(codes, blends=torch.arange(4), second=both, share=tensor.share)
    assert torch.equal(again.share, tensor.share)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_counts_are_of_the_shared_entries_alone(shape):
    for tensor in kinds(shape):
        taken = {*tensor.outliers.tolist(), *tensor.blends.tolist()}
        codes = tensor.codes.flatten().tolist()
        free = [place for place in range(len(codes)) if place not in taken]
        assert tensor.alone().tolist() == free
        want = [sum(codes[place] == code for place in free) for code in range(K + 2)]
        assert tensor.counts(K + 2).tolist() == want


def test_new_codes_stand_for_the_same_numbers():
    for tensor in kinds((4, 5)):
        new = torch.randperm(K)
        book, own = torch.randn(K), torch.randn(tensor.own_count)
        again = tensor.recoded(new)
        got = again.gather(torch.empty(K).index_copy(0, new, book), own)
        assert torch.equal(got, tensor.gather(book, own))
        assert len(again.blends) == len(tensor.blends)


def test_a_blend_of_codes_that_become_one_is_a_shared_entry():
    places = torch.tensor([0, 2, 3])
    tensor = CodedTensor(
        torch.tensor([0, 1, 2, 1]),
        blends=places,
        second=torch.tensor([1, 3, 2]),
        share=torch.tensor([0.2, 0.4, 0.6]),
    )
    again = tensor.recoded(torch.tensor([0, 0, 1, 2]))  # 0 and 1 are merged
    assert again.codes.tolist() == [0, 0, 1, 0]
    assert (again.blends.tolist(), again.second.tolist()) == ([2, 3], [2, 1])
    assert again.share.tolist() == tensor.share[1:].tolist()
    assert again.counts(3).tolist() == [2, 0, 0]


@pytest.mark.parametrize("where", ["codes", "second"])
@pytest.mark.parametrize(
    ("highest", "kind"),
    [
        (0, torch.uint8),
        (255, torch.uint8),
        (256, torch.int16),
        (2**15 - 1, torch.int16),
        (2**15, torch.int32),
    ],
)
def test_codes_take_the_smallest_type_that_holds_them(highest, kind, where):
    codes = {"codes": torch.zeros(2, dtype=torch.long), "second": torch.ones(1, dtype=torch.long)}
    codes[where][0] = highest
    tensor = CodedTensor(
        codes["codes"],
        blends=torch.tensor([1]),
        second=codes["second"],
        share=torch.tensor([0.5]),
    )
    assert (tensor.codes.dtype, tensor.second.dtype) == (kind, kind)
    assert getattr(tensor, where)[0] == highest
    assert tensor.highest == max(highest, int(codes["second"]))
    book = torch.arange(highest + 2.0)
    got = tensor.gather(book, torch.empty(0))
    assert got[0] == codes["codes"][0]
    assert got[1] == pytest.approx(127 / 255 * int(codes["second"]), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_entries_have_the_type_of_the_book(dtype):
    tensor = coded((4, 5), outliers=3, blends=4)
    book, own = torch.randn(K).to(dtype), torch.randn(3).to(dtype)
    assert tensor.gather(book, own, power=2).dtype == dtype


def test_the_code_of_an_outlier_does_not_matter():
    own = torch.tensor([1, 2])
    one, two = (CodedTensor(torch.tensor([1, *each, 2]), own) for each in ([300, 7], [0, 1]))
    assert one.codes.dtype == two.codes.dtype == torch.uint8
    assert torch.equal(one.codes, two.codes)
    assert one.highest == two.highest == 2
    got = one.gather(torch.tensor([4.0, 5.0, 6.0]), torch.tensor([-1.0, -2.0]))
    assert got.tolist() == [5, -1, -2, 6]


def test_blends_without_a_second_code_or_a_share_are_refused():
    codes, places = torch.tensor([0, 1, 1]), torch.tensor([0, 2])
    with pytest.raises(ShapeError, match="for each of 2 blended entries, got 1 and 2"):
        CodedTensor(codes, None, places, torch.tensor([0]), torch.tensor([0.1, 0.2]))
    with pytest.raises(ShapeError, match="for each of 2 blended entries, got 2 and 0"):
        CodedTensor(codes, None, places, torch.tensor([0, 1]))


def test_a_twin_shares_memory_and_moves_alone():
    tensor = coded((4, 5), outliers=3, blends=4)
    twin = tensor.twin()
    assert twin.codes.data_ptr() == tensor.codes.data_ptr()
    assert all(torch.equal(e, tensor.state_dict()[n]) for n, e in twin.state_dict().items())
    twin.to("meta")
    assert tensor.codes.device.type == "cpu"
