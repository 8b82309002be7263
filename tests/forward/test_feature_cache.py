import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from bayesify import models
from bayesify.core.errors import DataError, OptionError, UnsupportedModelError
from bayesify.forward.feature_cache import FeatureCache
from bayesify.forward.trunk import Trunk
from zoo import NETS, row


class Masked(nn.Module):
    """Two layers of attention over padded tokens at numbered places; time first inside."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(9, 8), nn.Embedding(6, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(ids) + self.place(torch.arange(ids.shape[1])[None])
        x = self.encoder(x.transpose(0, 1), src_key_padding_mask=mask == 0)
        return self.head((x.transpose(0, 1) * mask[..., None]).mean(1))


class Placed(nn.Module):
    """Its random layer reads what has no batch axis, and the tokens of all examples in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(9, 4), nn.Embedding(6, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        place = self.place(torch.arange(ids.shape[1])[None])
        flat = self.embed(ids).view(-1, 4)
        return (self.head(flat).view(*ids.shape, 3) + self.head(place)).mean(1)


class Centred(nn.Module):
    """Subtracts the mean over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.head(hidden - hidden.mean(0))


def tokens(size: int, length: int = 5) -> dict[str, Tensor]:
    mask = torch.ones(size, length)
    mask[::2, 3:] = 0
    return {"ids": torch.randint(9, (size, length)), "mask": mask}


def starting(*starts: str):
    return lambda model: {n for n, _ in model.named_parameters() if n.startswith(starts)}


def image(size: int) -> Tensor:
    return torch.randn(size, 1, 8, 8)


def vit() -> nn.Module:
    return models.build("vit", (1, 8, 8), 3, seed=0)


CASES = {
    "mlp": (NETS["mlp"].model, starting("4."), NETS["mlp"].inputs),
    "cnn": (NETS["cnn"].model, starting("5."), NETS["cnn"].inputs),
    "vit": (vit, starting("blocks.3.mlp", "head"), image),
    "tuple": (NETS["tuple"].model, starting("head"), NETS["tuple"].inputs),
    "mapping": (NETS["mapping"].model, starting("head"), NETS["mapping"].inputs),
    "attention": (Masked, starting("encoder.layers.1"), tokens),
    "mlp of attention": (Masked, starting("encoder.layers.1.linear"), tokens),
    "shared and flat": (Placed, starting("head"), tokens),
    "integers": (NETS["tied"].model, starting("mix"), NETS["tied"].inputs),
}


@pytest.fixture(params=CASES)
def case(request):
    torch.manual_seed(0)
    build, names, draw = CASES[request.param]
    model = build().eval()
    data = draw(12)
    trunk = Trunk.of(model, names(model), row(data, slice(3)))
    assert trunk
    return model, trunk, data


def call(model, inputs):
    if isinstance(inputs, dict):
        output = model(**inputs)
    else:
        output = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return getattr(output, "logits", output)


def replayed(model, trunk, features, inputs) -> Tensor:
    with trunk.replay(features):
        return call(model, inputs)


@torch.no_grad()
def test_cached_features_give_the_models_outputs_in_any_order_and_size(case):
    model, trunk, data = case
    cache = FeatureCache(trunk, num_data=12)
    for order in (torch.arange(12), torch.randperm(12), torch.randperm(12)):
        for part in order.split(5):  # the last is a smaller one
            batch = row(data, part)
            got = replayed(model, trunk, cache.cache(batch), batch)
            torch.testing.assert_close(got, call(model, batch), rtol=1e-5, atol=1e-6)
        cache.end_epoch()


@torch.no_grad()
def test_hits_are_identical_to_what_was_computed_and_run_nothing(case):
    _, trunk, data = case
    cache = FeatureCache(trunk, num_data=12)
    first = cache.cache(data)
    with FlopCounterMode(display=False) as counter:
        again = cache.cache(data)
    assert counter.get_total_flops() == 0
    assert first.frontier.keys() == again.frontier.keys() == trunk.frontier
    assert all(torch.equal(first.frontier[p], again.frontier[p]) for p in trunk.frontier)
    direct = trunk.features(data)
    for place, each in direct.frontier.items():
        torch.testing.assert_close(again.frontier[place], each, rtol=1e-5, atol=1e-6)
        assert again.frontier[place].stride() == each.stride() or not each.is_contiguous()
    shapes = [
        [getattr(each, "shape", each) for each in tree_leaves(features.results)]
        for features in (direct, again)
    ]
    assert shapes[0] == shapes[1]


def net_of_flops() -> tuple[nn.Module, Trunk]:
    net = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 3)).eval()
    return net, Trunk.of(net, {"1.weight"}, torch.randn(4, 16))


def test_only_what_is_new_is_computed():
    _, trunk = net_of_flops()
    x = torch.randn(10, 16)
    cache = FeatureCache(trunk, num_data=10)
    counts = []
    for part in (x[:4], x[2:7], x[[0, 9, 9, 8]], x):
        with FlopCounterMode(display=False) as counter:
            cache.cache(part)
        counts.append(counter.get_total_flops() // (2 * 16 * 16))
    assert counts == [4, 3, 2, 1]


def test_equal_examples_are_kept_once():
    _, trunk = net_of_flops()
    cache = FeatureCache(trunk, num_data=4)
    features = cache.cache(torch.ones(4, 16))
    (only,) = features.frontier.values()
    assert torch.equal(only, only[:1].expand(4, 16))
    cache.end_epoch()
    with pytest.raises(DataError, match="got 1 that are new after the first epoch"):
        cache.cache(torch.zeros(1, 16))


def test_augmented_inputs_are_refused_in_the_second_epoch():
    _, trunk = net_of_flops()
    cache = FeatureCache(trunk, num_data=8)
    x = torch.randn(8, 16)
    cache.cache(x)
    cache.end_epoch()
    cache.cache(x.flip(0))
    with pytest.raises(DataError, match="switch off data augmentation, pad texts to a fixed"):
        cache.cache(x + 0.1)


def test_more_inputs_than_examples_are_refused_in_the_first_epoch():
    _, trunk = net_of_flops()
    cache = FeatureCache(trunk, num_data=8)
    cache.cache(torch.randn(6, 16))
    with pytest.raises(DataError, match=r"8 in all, got 3 that are new in the first epoch"):
        cache.cache(torch.randn(3, 16))


def test_what_a_loader_dropped_in_the_first_epoch_may_come_in_the_second():
    _, trunk = net_of_flops()
    x = torch.randn(10, 16)
    cache = FeatureCache(trunk, num_data=10)
    cache.cache(x[:8])
    cache.end_epoch()
    cache.cache(x[2:])
    with pytest.raises(DataError, match="after the first epoch"):
        cache.cache(x + 1)


def test_the_memory_that_all_examples_take_is_bounded_at_the_start():
    _, trunk = net_of_flops()
    assert FeatureCache(trunk, num_data=100, cache_limit=6400).bytes == 100 * 16 * 4
    with pytest.raises(OptionError, match=r"cache_limit=6399: .* 6400 bytes in all; raise"):
        FeatureCache(trunk, num_data=100, cache_limit=6399)
    with pytest.raises(OptionError, match="num_data=0"):
        FeatureCache(trunk, num_data=0)
    with pytest.raises(OptionError, match="passes=0"):
        FeatureCache(trunk, num_data=1, passes=0)


def test_what_no_pass_has_shown_may_come_later():
    _, trunk = net_of_flops()
    x = torch.randn(10, 16)
    cache = FeatureCache(trunk, num_data=10, passes=2)
    for part in (x[:8], torch.cat([x[:7], x[8:9]])):  # each pass leaves two out, x[9] both
        cache.cache(part)
    cache.end_epoch()
    cache.cache(x)
    with pytest.raises(DataError, match="after the first epoch"):
        cache.cache(x + 1)


def test_what_aliases_and_what_all_share_takes_no_room():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    assert FeatureCache(Trunk.of(net, {"2.bias"}, torch.randn(3, 4)), num_data=1).bytes == 8 * 4
    trunk = Trunk.of(Placed(), {"head.weight"}, tokens(3))
    assert FeatureCache(trunk, num_data=1).bytes == 5 * 4 * 4


def test_inputs_of_several_lengths_have_rows_of_their_own():
    model = Masked().eval()
    trunk = Trunk.of(model, starting("encoder.layers.1")(model), tokens(3))
    cache = FeatureCache(trunk, num_data=6)
    batches = [tokens(3), tokens(3, length=6)]
    for _ in range(2):
        for each in batches:
            got = replayed(model, trunk, cache.cache(each), each)
            torch.testing.assert_close(got, model(**each), rtol=1e-5, atol=1e-6)
        cache.end_epoch()
    assert cache.bytes == 6 * 11 * FeatureCache(trunk, num_data=1).bytes // 5


def test_an_input_without_batch_axis_belongs_to_the_contents():
    class Scaled(nn.Sequential):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return self[1](self[0](x) * scale)

    model = Scaled(nn.Linear(4, 4), nn.Linear(4, 3)).eval()
    x, scales = torch.randn(3, 4), [torch.tensor(1.0), torch.tensor(2.0)]
    trunk = Trunk.of(model, {"1.weight"}, (x, scales[0]))
    cache = FeatureCache(trunk, num_data=6)
    for scale in scales * 2:
        got = replayed(model, trunk, cache.cache((x, scale)), (x, scale))
        torch.testing.assert_close(got, model(x, scale))


def test_autocast_has_features_of_its_own():
    net, trunk = net_of_flops()
    cache, x = FeatureCache(trunk, num_data=8), torch.randn(4, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (only,) = cache.cache(x).frontier.values()
        assert torch.equal(replayed(net, trunk, cache.cache(x), x), net(x))
    assert only.dtype == torch.bfloat16
    assert cache.bytes == 8 * 16 * 2


def test_examples_that_mix_are_refused():
    net = Centred().eval()
    with pytest.raises(UnsupportedModelError, match="change with the rest of the batch"):
        FeatureCache(Trunk.of(net, {"head.weight"}, torch.randn(2, 4)), num_data=4)
    cache = FeatureCache(Trunk.of(net, {"head.weight"}, torch.randn(1, 4)), num_data=4)
    with pytest.raises(UnsupportedModelError, match="change with the rest of the batch"):
        cache.cache(torch.randn(4, 4))


def test_a_value_that_the_model_reads_off_a_batch_is_refused():
    class Peak(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x) / float(x.abs().max()))

    trunk = Trunk.of(Peak(nn.Linear(4, 4), nn.Linear(4, 3)), {"1.weight"}, torch.randn(3, 4))
    with pytest.raises(UnsupportedModelError, match=r"of one batch and .* of another"):
        FeatureCache(trunk, num_data=4)


def test_gradients_of_inputs_are_refused_even_if_the_features_are_known():
    _, trunk = net_of_flops()
    cache, x = FeatureCache(trunk, num_data=4), torch.randn(4, 16)
    cache.cache(x)
    with pytest.raises(DataError, match="detach the inputs"):
        cache.cache(x.requires_grad_())


def test_no_trunk_no_cache():
    with pytest.raises(UnsupportedModelError, match="expected a trunk, got None"):
        FeatureCache(None, num_data=4)
