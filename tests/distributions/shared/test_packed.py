import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from bayesify import WeightPosterior, load, save
from bayesify.core.errors import LoadError
from bayesify.core.types import Named
from bayesify.distributions.shared.coded import CodedTensor
from bayesify.distributions.shared.normal import LAWS, SharedNormal
from bayesify.distributions.shared.packed import NUMBERS, pack_state, unpack_state
from bayesify.likelihoods import Categorical

SHAPES = {"0.weight": (20, 30), "0.bias": (20,), "2.weight": (3, 5, 2, 2), "2.scale": (1,)}


def coded(shape: tuple[int, ...], codes: int, share: float) -> CodedTensor:
    """Random codes; `share` of the entries are outliers, and as many blends."""
    entries = math.prod(shape)
    several = round(share * entries)
    places = torch.randperm(entries)[: 2 * several].view(2, -1).sort(1).values
    second = torch.randint(codes, (several,))
    return CodedTensor(torch.randint(codes, shape), *places, second, torch.rand(several))


def built(
    law: str = "per_weight",
    codes: int = 17,
    *,
    share: float = 0.1,
    shapes: dict[str, tuple[int, ...]] = SHAPES,
) -> SharedNormal:
    tensors = {name: coded(shape, codes, share) for name, shape in shapes.items()}
    outliers = sum(each.own_count for each in tensors.values())
    return SharedNormal(
        tensors,
        0.1 + torch.rand(len(tensors)),
        torch.randn(codes),
        torch.randn(len(tensors) if law == "per_layer" else codes) - 3,
        torch.randn(outliers),
        torch.randn(outliers) - 3,
        spread=0.1 * torch.rand(codes, 3),
        law=law,
    )


def assert_same(got: Named, want: Named) -> None:
    assert set(got) == set(want)
    for name, each in want.items():
        assert got[name].dtype == each.dtype, name
        assert got[name].shape == each.shape, name
        assert got[name].equal(each), name


def come_back(q: SharedNormal) -> SharedNormal:
    again = SharedNormal.from_stored({name: each.clone() for name, each in q.stored().items()})
    assert again.law == q.law
    assert again.names == q.names
    assert_same(again.state_dict(), q.state_dict())
    return again


@pytest.mark.parametrize("share", [0.0, 0.1])
@pytest.mark.parametrize("codes", [1, 2, 3, 16, 17, 256, 300, 5000])
@pytest.mark.parametrize("law", LAWS)
def test_a_state_comes_back_to_the_bit(law, codes, share):
    q = built(law, codes, share=share)
    come_back(q)
    come_back(q.rounded())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("law", LAWS)
def test_a_state_of_any_precision_comes_back_to_the_bit(law, dtype):
    q = built(law).to(dtype)
    for each in (q, q.rounded()):
        again = come_back(each)
        generator, twin = (torch.Generator().manual_seed(0) for _ in range(2))
        samples, copies = each.sample(3, generator=generator), again.sample(3, generator=twin)
        assert_same(copies, samples)
        assert all(one.dtype == dtype for one in samples.values())


def test_outliers_alone_and_blends_alone_and_a_scalar_come_back():
    both, share = torch.tensor([0, 1]), torch.tensor([0.3, 0.9])
    one, two, none = torch.randn(1), torch.randn(2), torch.randn(0)
    outliers = CodedTensor(both, both)
    blends = CodedTensor(both, None, both, both.flip(0), share)
    come_back(SharedNormal({"w": outliers}, one.abs(), two, two, two, two))
    come_back(SharedNormal({"w": blends}, one.abs(), two, two, none, none))
    come_back(SharedNormal({"w": CodedTensor(torch.tensor(1))}, one.abs(), two, two))


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_numbers_take_fewer_bits_on_disk_only_if_that_changes_none(number, dtype):
    q = built("shared").to(dtype).rounded()
    small = {name: torch.int8 if name == "own_log_scale" else torch.float16 for name in NUMBERS}
    # one step of a sixteenth, of float16 and of neither
    for value, kind in ((2.0**-4, small[number]), (2.0**-24, torch.float16), (2.0**-30, dtype)):
        with torch.no_grad():
            q.get_parameter(number).view(-1)[1] = value
        held = q.stored()
        assert {name: held[name].dtype for name in NUMBERS} == small | {number: kind}
        come_back(q)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(-8.0, torch.int8), (7.9375, torch.int8), (-8.0625, torch.float16), (8.0, torch.float16)],
)
def test_sixteenths_end_at_eight(value, kind):
    q = built().rounded()
    with torch.no_grad():
        q.own_log_scale[0] = value
    assert q.stored()["own_log_scale"].dtype == kind
    come_back(q)


@pytest.mark.parametrize("value", [1e5, -0.0, math.inf, 2.0**-24])
def test_borders_of_float16_come_back(value):
    q = built().rounded()
    with torch.no_grad():
        q.loc[0] = value
    again = come_back(q)
    assert torch.equal(again.loc.signbit(), q.loc.signbit())
    assert q.stored()["loc"].dtype == (torch.float32 if value == 1e5 else torch.float16)


@pytest.mark.parametrize("codes", [1, 2, 3, 16, 17, 256, 300, 5000])
def test_codes_take_the_bits_they_need(codes):
    q = built(codes=codes)
    bits = max(1, math.ceil(math.log2(codes)))
    entries = [each.codes.numel() - each.own_count for each in q.tensors().values()]
    want = sum(math.ceil(each * bits / 8) for each in entries)
    stored = q.stored()
    assert len(stored["codes"]) == want
    blends = [len(each.blends) for each in q.tensors().values()]
    assert len(stored["second"]) == sum(math.ceil(each * bits / 8) for each in blends)
    assert len(stored["share"]) == sum(blends)


def test_positions_take_little_more_than_their_entropy():
    q = built(shapes={"w": (400, 500)}, share=0.01)
    entropy = 2000 * (-math.log2(0.01) - 0.99 / 0.01 * math.log2(0.99)) / 8
    for kind in ("outliers", "blends"):
        assert entropy < len(q.stored()[kind]) < 1.1 * entropy


# --- in a folder


def posterior(law: str = "per_weight", *, codes: int = 16, share: float = 0.01) -> WeightPosterior:
    model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 10))
    shapes = {name: tuple(each.shape) for name, each in model.named_parameters() if each.ndim > 1}
    q = built(law, codes, share=share, shapes=shapes).rounded()
    return WeightPosterior(model, q, Categorical())


def packed_file(folder: Path) -> Path:
    return folder / "q.safetensors"


@pytest.mark.parametrize("law", LAWS)
def test_predictions_from_a_folder_are_the_same(law, tmp_path):
    made, x = posterior(law), torch.randn(5, 64)
    again = load(save(made, tmp_path / "saved"), nn.Sequential(*made.model))
    assert torch.equal(again.outputs(x), made.outputs(x))
    assert torch.equal(again.predict(x).probs, made.predict(x).probs)
    assert again.trainable_parameters == made.trainable_parameters
    assert_same(again.q.state_dict(), made.q.state_dict())


def test_a_folder_is_as_small_as_promised(tmp_path):
    made = posterior()
    save(made, tmp_path / "saved")
    weights = 64 * 300 + 300 * 10
    several = 192 + 30  # outliers, and as many blends
    codes = (weights - several) * 4 / 8
    numbers = 2 * 2 * 16 + (2 + 1) * several + several * (1 + 4 / 8)
    positions = 2 * several * 9 / 8  # 8.7 bits each
    want = codes + numbers + positions
    size = packed_file(tmp_path / "saved").stat().st_size
    assert want - 100 < size < want + 1_500  # the names and shapes of tensors
    assert size < 4 * weights / 6


def test_two_saves_are_byte_for_byte_the_same(tmp_path):
    made = posterior()
    one, two = (packed_file(save(made, tmp_path / each)).read_bytes() for each in ("one", "two"))
    assert one == two
    again = load(tmp_path / "one", made.model)
    assert packed_file(save(again, tmp_path / "three")).read_bytes() == one


@pytest.mark.parametrize("damage", ["short", "long", "bit"])
def test_a_damaged_file_does_not_load(damage, tmp_path):
    made = posterior()
    file = packed_file(save(made, tmp_path / "saved"))
    held = bytearray(file.read_bytes())
    if damage == "bit":
        held[len(held) // 2] ^= 4
    file.write_bytes({"short": held[:-1], "long": held + b"\0", "bit": held}[damage])
    with pytest.raises(LoadError, match="does not match its checksum"):
        load(tmp_path / "saved", made.model)


def test_nothing_but_what_is_needed_is_in_the_file(tmp_path):
    made = posterior("shared_loc")
    held = load_file(packed_file(save(made, tmp_path / "saved")))
    streams = {"layout", "codes", "outliers", "blends", "second", "share", "unit", "law_number"}
    assert set(held) == streams | set(NUMBERS)
    assert held["spread"].shape == (16, 1)


# --- damaged states

STREAMS = ("codes", "outliers", "blends", "second", "share")


def stored(codes: int = 17) -> dict[str, Tensor]:
    return {name: each.clone() for name, each in built(codes=codes).stored().items()}


@pytest.mark.parametrize("taken", [1, 2, 7])
@pytest.mark.parametrize("stream", [*STREAMS, "layout"])
def test_a_stream_that_is_cut_off_is_told(stream, taken):
    held = stored()
    held[stream] = held[stream][:-taken]
    with pytest.raises(LoadError, match=r"save (it|them) again"):
        unpack_state(held)


@pytest.mark.parametrize("extra", [1, 5])
@pytest.mark.parametrize("stream", [*STREAMS, "layout"])
def test_a_stream_with_more_in_it_is_told(stream, extra):
    held = stored()
    held[stream] = torch.cat([held[stream], held[stream][-extra:]])
    with pytest.raises(LoadError, match=r"save (it|them) again"):
        unpack_state(held)


@pytest.mark.parametrize("stream", ["codes", "second"])
def test_a_code_beyond_the_book_is_told(stream):
    held = stored(codes=17)  # in 5 bits: up to 31
    held[stream][0] = 0b11111
    with pytest.raises(LoadError, match="expected codes below 17, got 31"):
        unpack_state(held)


def test_a_position_beyond_the_tensor_is_told():
    tensor = CodedTensor(torch.zeros(100, dtype=torch.long), torch.tensor([99]))
    q = SharedNormal({"w": tensor}, *(torch.ones(1) for _ in range(5)))
    held = q.stored()
    described = json.loads(bytes(held["layout"].tolist()))
    described["tensors"][0][1] = [97]
    held["layout"] = torch.tensor(list(json.dumps(described).encode()), dtype=torch.uint8)
    with pytest.raises(LoadError, match="expected positions below 97, got 99"):
        unpack_state(held)


@pytest.mark.parametrize("missing", [*STREAMS, "layout", "loc", "unit", "law_number"])
def test_what_is_missing_is_told(missing):
    held = stored()
    del held[missing]
    with pytest.raises(LoadError, match=f"{missing}.*save it again"):
        unpack_state(held)


@pytest.mark.parametrize("missing", ["log_scale", "own_loc", "own_log_scale"])
def test_a_number_that_is_missing_is_told(missing):
    held = stored()
    del held[missing]
    with pytest.raises(LoadError, match=f"{missing}.*save it again"):
        SharedNormal.from_stored(held)


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b"\xff", b'{"dtype":"load","tensors":[]}'])
def test_a_layout_that_is_none_is_told(text):
    held = stored() | {"layout": torch.tensor(list(text), dtype=torch.uint8)}
    with pytest.raises(LoadError, match=r"save (it|them) again"):
        unpack_state(held)


@pytest.mark.parametrize(
    "names", [["log_scale"], ["own_loc", "own_log_scale"], ["unit"]], ids=lambda names: names[0]
)
def test_numbers_of_another_count_are_told(names):
    held = stored()
    longer = {name: torch.cat([held[name], held[name][:1]]) for name in names}
    with pytest.raises(LoadError, match=rf"{names[0]}: expected \(\d+,\), got .*save it again"):
        SharedNormal.from_stored(held | longer)


def test_a_law_of_another_version_is_told():
    held = stored() | {"law_number": torch.tensor(99, dtype=torch.uint8)}
    with pytest.raises(LoadError, match="damaged SharedNormal"):
        SharedNormal.from_stored(held)


def test_packing_leaves_the_state_as_it_is():
    q = built()
    before = {name: each.clone() for name, each in q.state_dict().items()}
    pack_state(q.state_dict())
    assert_same(q.state_dict(), before)
