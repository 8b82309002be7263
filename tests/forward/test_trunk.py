from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode

from bayesify import models
from bayesify.core.errors import DataError, UnsupportedModelError
from bayesify.core.modes import attention_for_vmap
from bayesify.forward.input_gradients import frozen_layers
from bayesify.forward.trunk import Trunk, close, stand_in
from bayesify.tracing.trace import call_arguments
from bayesify.weights.gaussian import GaussianWeight
from bayesify.weights.taped import Tape, TapedWeight
from zoo import NETS


class InPlace(nn.Module):
    """Writes into activations, through views, before its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        held = torch.zeros(len(x), 6)
        held[:, :4] = x
        hidden = F.relu(self.first(x), inplace=True)
        hidden += self.second(held)
        hidden[:, 0].mul_(2.0)
        return self.head(hidden) + hidden[:, :3]


class Spoiling(nn.Module):
    """Adds what a random layer gives to an activation of the trunk, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        hidden += self.head(hidden)
        return hidden


class Counting(Spoiling):
    """Has a state that every pass changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.first(x)) + self.calls


class Double(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, scale: Tensor) -> Tensor:
        return 2 * x * scale

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return 2 * grad * ctx.saved_tensors[0], None


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(Double.apply(self.first(x), self.first.bias).relu())


class Unseen(Custom):
    """Goes through numpy, whose way back no mode sees."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        mask = torch.from_numpy((hidden.detach().numpy() > 0).astype("float32"))
        return self.head(hidden * mask)


class UnseenWeight(Custom):
    """Uses a random weight where no mode sees it, before it goes on."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        with torch._C.DisableTorchFunction():
            gain = self.head.bias + 1
        return self.head((hidden[:, :3] * gain).repeat(1, 2)[:, :4])


class Switched(Custom):
    """Holds a tensor that is no buffer, and switches gradients off for what is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = self.first(x - self.shift)
        return self.head(hidden)


class UnseenResult(Custom):
    """Its head reads what no mode sees how it is made."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        with torch._C.DisableTorchFunction():
            hidden = hidden + 1
        return self.head(hidden)


class BySize(Custom):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.head(hidden - hidden.mean(0) if len(x) > 1 else hidden)


class Noisy(Custom):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.first(x) + torch.randn(len(x), 4))


class Either(Custom):
    """Which activation the head reads depends on the inputs."""

    def forward(self, x: Tensor) -> Tensor:
        plain, squared = self.first(x), self.first(x).square()
        return self.head(squared if x.sum() > 0 else plain)


class LateToken(nn.Module):
    """Expands a random token and reads a weight-normed layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.token = nn.Linear(4, 4), nn.Parameter(torch.ones(1, 1, 4))
        self.norm = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        embedded = self.embed(x)
        return self.norm(torch.cat([self.token.expand(len(x), -1, -1), embedded], 1)).mean(1)


class Encoder(nn.Module):
    def __init__(self, *, first: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=first)
        self.embed = nn.Linear(4, 8)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)
        self.axis = 1 if first else 0

    def forward(self, x: Tensor, padded: Tensor | None = None) -> Tensor:
        x = self.embed(x if self.axis else x.transpose(0, 1))
        return self.head(self.encoder(x, src_key_padding_mask=padded).mean(self.axis))


def ending(*ends: str):
    """Names of weights that begin so."""
    return lambda model: {name for name, _ in model.named_parameters() if name.startswith(ends)}


def padded(size: int) -> tuple[Tensor, Tensor]:
    mask = torch.zeros(size, 5, dtype=torch.bool)
    mask[:, 3:] = True
    return torch.randn(size, 5, 4), mask


CASES = {
    "mlp": (NETS["mlp"].model, ending("4."), NETS["mlp"].inputs),
    "mlp middle": (NETS["mlp"].model, ending("2."), NETS["mlp"].inputs),
    "cnn": (NETS["cnn"].model, ending("5."), NETS["cnn"].inputs),
    "cnn norm": (NETS["cnn"].model, ending("1.bias"), NETS["cnn"].inputs),
    "encoder": (Encoder, ending("encoder.layers.2"), lambda size: torch.randn(size, 5, 4)),
    "encoder, last mlp": (Encoder, ending("encoder.layers.2.linear"), NETS["transformer"].inputs),
    "encoder, mask": (Encoder, ending("encoder.layers.2"), padded),
    "encoder, time first": (
        lambda: Encoder(first=False),
        ending("encoder.layers.1"),
        lambda size: torch.randn(size, 5, 4),
    ),
    "vit": (
        lambda: models.build("vit", (1, 8, 8), 3, seed=0),
        ending("head", "blocks.3"),
        lambda size: torch.randn(size, 1, 8, 8),
    ),
    "resnet": (
        lambda: models.build("resnet20", (3, 8, 8), 3, seed=0),
        None,
        lambda size: torch.randn(size, 3, 8, 8),
    ),
    "lstm": (NETS["lstm"].model, ending("head"), NETS["lstm"].inputs),
    "tied": (NETS["tied"].model, ending("mix"), NETS["tied"].inputs),
    "mapping": (NETS["mapping"].model, ending("head"), NETS["mapping"].inputs),
    "tuple": (NETS["tuple"].model, ending("right"), NETS["tuple"].inputs),
    "in place": (InPlace, ending("head"), NETS["mlp"].inputs),
    "custom function": (Custom, ending("head"), NETS["mlp"].inputs),
    "unregistered tensor": (Switched, ending("head"), NETS["mlp"].inputs),
    "token": (LateToken, ending("token"), NETS["transformer"].inputs),
    "weight norm": (LateToken, ending("norm"), NETS["transformer"].inputs),
    "numpy": (Unseen, ending("head"), NETS["mlp"].inputs),
    "weight in the dark": (UnseenWeight, ending("head"), NETS["mlp"].inputs),
}


NO_VMAP = {"weight norm", "custom function"}
"""torch warns of a slow rule; a custom function is another operation there, and refused."""


def made(name: str) -> tuple[nn.Module, Trunk, object]:
    """A network in eval mode, its random weights, and batches of another size than the example."""
    torch.manual_seed(0)
    build, names, draw = CASES[name]
    model = build().eval()
    for each in model.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.running_mean.normal_()
    last = [name for name, _ in model.named_parameters()][-2:]
    chosen = names(model) if names else set(last)
    trunk = Trunk.of(model, chosen, draw(3))
    assert trunk
    return model, trunk, draw(5)


@pytest.fixture(params=CASES)
def case(request):
    return made(request.param)


def members(model: nn.Module, names, count: int = 3) -> dict[str, Tensor]:
    """Other weights in the place of the random ones, with a leading axis."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: (each + 0.3 * torch.randn(count, *each.shape, generator=generator))
        .detach()
        .requires_grad_()
        for name, each in model.named_parameters()
        if name in names
    }


def readout(output) -> Tensor:
    return torch.cat([output.logits, output.hidden], 1) if hasattr(output, "logits") else output


def run(model, weights, inputs, replay=nullcontext) -> Tensor:
    args, kwargs = call_arguments(inputs)
    with replay():
        return readout(functional_call(model, weights, args, kwargs))


def loop(model, weights, inputs, replay=nullcontext) -> Tensor:
    count = len(next(iter(weights.values())))
    each = [{name: w[i] for name, w in weights.items()} for i in range(count)]
    return torch.stack([run(model, one, inputs, replay) for one in each])


def agree(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_replays_of_members_are_plain_passes_with_their_gradients(case):
    model, trunk, x = case
    weights, plain = members(model, trunk.names), members(model, trunk.names)
    features = trunk.features(x)
    got = loop(model, weights, x, lambda: trunk.replay(features))
    expected = loop(model, plain, x)
    agree(got, expected)
    weighting = torch.linspace(-1, 1, got.numel()).view_as(got)
    grads = torch.autograd.grad((got * weighting).sum(), list(weights.values()))
    truth = torch.autograd.grad((expected * weighting).sum(), list(plain.values()))
    for a, b in zip(grads, truth, strict=True):
        agree(a, b)
    assert not any(each.requires_grad for each in features.frontier.values())


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
@pytest.mark.parametrize("name", sorted(CASES.keys() - NO_VMAP))
def test_a_replay_of_all_members_at_once_is_the_loop(name, inside):
    model, trunk, x = made(name)
    weights, plain = members(model, trunk.names), members(model, trunk.names)
    features = trunk.features(x)

    def one(weights) -> Tensor:
        return run(model, weights, x, lambda: trunk.replay(features) if inside else nullcontext())

    with attention_for_vmap(), nullcontext() if inside else trunk.replay(features):
        got = torch.vmap(one, randomness="different")(weights)
    expected = loop(model, plain, x)
    agree(got, expected)
    grads = torch.autograd.grad(got.sin().sum(), list(weights.values()))
    truth = torch.autograd.grad(expected.sin().sum(), list(plain.values()))
    for a, b in zip(grads, truth, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_model_is_left_as_it_was(case):
    model, trunk, x = case
    before = {n: e.clone() for n, e in model.state_dict().items()}
    model.train()
    hooks = sum(len(each._forward_hooks) for each in model.modules())
    attributes = set(vars(model))
    features = Trunk.of(model, trunk.names, x).features(x)
    assert model.training
    assert set(vars(model)) == attributes
    assert hooks == sum(len(each._forward_hooks) for each in model.modules())
    assert all(torch.equal(each, before[n]) for n, each in model.state_dict().items())
    assert all(not each.is_inference() for each in features.frontier.values())


def test_structured_weights_act_in_a_replay(case):
    model, trunk, x = case
    record = Tape(calls=[{}])
    own = {n: e.detach() for n, e in model.named_parameters() if n in trunk.names}
    structured = {
        "taped": {n: TapedWeight(each, n, record) for n, each in own.items()},
        "gaussian": {
            n: GaussianWeight(each, torch.full_like(each, 1e-9), torch.Generator())
            for n, each in own.items()
        },
    }
    features = trunk.features(x)
    for weights in structured.values():
        got = run(model, weights, x, lambda: trunk.replay(features))
        agree(got.detach(), run(model, own, x).detach())


def test_frozen_layers_around_a_replay_act_behind_the_random_weight():
    model = models.build("resnet20", (3, 8, 8), 3, seed=0).eval().requires_grad_(False)
    x, name = torch.randn(2, 3, 8, 8), "layer3.2.conv1.weight"
    trunk = Trunk.of(model, {name}, x)
    features, results = trunk.features(x), []
    loc = model.get_parameter(name).clone().requires_grad_()
    for replay in (nullcontext, lambda: trunk.replay(features)):
        generator = torch.Generator().manual_seed(0)
        noisy = GaussianWeight(loc, torch.full_like(loc, 1e-2), generator)
        with frozen_layers():
            out = run(model, {name: noisy}, x, replay)
        results.append((out.detach(), torch.autograd.grad(out.sin().sum(), loc)[0]))
    agree(results[0][0], results[1][0])
    agree(results[0][1], results[1][1])


def flops(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def test_a_replay_does_not_run_the_trunk():
    net = nn.Sequential(*(nn.Linear(64, 64) for _ in range(5)), nn.Linear(64, 3)).eval()
    x = torch.randn(8, 64)
    trunk = Trunk.of(net, {"5.weight"}, x)
    features = trunk.features(x)
    own = {"5.weight": net[5].weight}
    last = 2 * 8 * 64 * 3
    assert flops(lambda: run(net, own, x, lambda: trunk.replay(features))) == last
    assert flops(lambda: trunk.features(x)) == 5 * 2 * 8 * 64 * 64
    assert flops(lambda: run(net, own, x)) == last + 5 * 2 * 8 * 64 * 64
    assert trunk.reads == {f"{i}.{kind}" for i in range(5) for kind in ("weight", "bias")}


def test_only_the_frontier_takes_memory():
    net = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 2))
    x = torch.randn(4, 1, 8, 8)
    features = Trunk.of(net, {"3.weight"}, x).features(x)
    assert [tuple(each.shape) for each in features.frontier.values()] == [(4, 32 * 36)]
    hollow = [each for each in features.results if id(each) in features.hollow]
    assert [tuple(each.shape) for each in hollow] == [(4, 32, 6, 6)] * 2
    assert all(each.untyped_storage().nbytes() <= 8 for each in hollow)


def test_a_view_of_something_large_does_not_keep_it():
    class FirstToken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.embed(x)[:, 0])

    x = torch.randn(2, 50, 4)
    features = Trunk.of(FirstToken(), {"head.weight"}, x).features(x)
    (only,) = features.frontier.values()
    assert only.untyped_storage().nbytes() == 2 * 8 * 4


NONE = {
    "first layer": (nn.Linear, (4, 3), {"weight"}),
    "no weight before": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), (), {"1.bias"}),
    "nothing random": (NETS["mlp"].model, (), {"other"}),
    "tied from the start": (NETS["tied"].model, (), {"embed.weight"}),
    "tied by its other name": (NETS["tied"].model, (), {"score.weight"}),
    "written into later": (Spoiling, (), {"head.weight"}),
    "a state that changes": (Counting, (), {"head.weight"}),
    "noise": (Noisy, (), {"head.weight"}),
    "what no mode sees": (UnseenResult, (), {"head.weight"}),
    "a path of the batch": (BySize, (), {"head.weight"}),
}


@pytest.mark.parametrize("name", NONE)
def test_no_trunk_where_there_is_none_or_it_is_not_safe(name):
    build, args, names = NONE[name]
    example = NETS["tied" if "tied" in name else "mlp"].inputs(3)
    assert Trunk.of(build(*args), names, example) is None


def test_a_random_weight_in_the_dark_ends_the_trunk():
    _, trunk, _ = made("weight in the dark")
    assert [each.__name__ for each in trunk.steps] == ["linear", "relu", "__getitem__"]


def test_a_custom_function_under_vmap_is_refused():
    model, trunk, x = made("custom function")
    features = trunk.features(x)

    def one(weights) -> Tensor:
        return run(model, weights, x, lambda: trunk.replay(features))

    with pytest.raises(UnsupportedModelError, match="got `custom_function_call`"):
        torch.vmap(one)(members(model, trunk.names))


def test_random_buffers_end_the_trunk_too():
    model, x = NETS["cnn"].model(), NETS["cnn"].inputs(3)
    assert len(Trunk.of(model, {"1.running_var"}, x).steps) == 1


def test_another_path_is_an_error_not_a_wrong_result():
    model, x = Either().eval(), torch.ones(3, 4)
    trunk = Trunk.of(model, {"head.weight"}, x)
    agree_on = trunk.features(2 * x)
    agree(run(model, {}, 2 * x, lambda: trunk.replay(agree_on)), model(2 * x))
    features = trunk.features(-x)
    with pytest.raises(UnsupportedModelError, match="Either takes another path"):
        run(model, {}, -x, lambda: trunk.replay(features))


def test_a_longer_path_is_an_error():
    class Repeating(Custom):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(int(x[0, 0])):
                x = self.first(x)
            return self.head(x)

    model = Repeating()
    trunk = Trunk.of(model, {"head.weight"}, torch.full((2, 4), 2.0))
    with pytest.raises(UnsupportedModelError, match="expected `linear` as operation"):
        trunk.features(torch.full((2, 4), 1.0))
    with (
        pytest.raises(UnsupportedModelError, match="got nothing"),
        trunk.replay(trunk.features(torch.full((2, 4), 2.0))),
    ):
        torch.full((2, 4), 2.0)[0, 0]


def test_work_before_the_model_inside_a_replay_is_an_error():
    model, x = NETS["mlp"].model(), torch.randn(3, 4)
    trunk = Trunk.of(model, {"4.weight"}, x)
    with (
        pytest.raises(UnsupportedModelError, match="got `exp`"),
        trunk.replay(trunk.features(x)),
    ):
        model(x.exp())


def test_inputs_that_want_gradients_are_refused():
    model, x = NETS["mlp"].model(), torch.randn(3, 4, requires_grad=True)
    trunk = Trunk.of(model, {"4.weight"}, x)
    with pytest.raises(DataError, match="detach the inputs"):
        trunk.features(x)
    with torch.no_grad():
        trunk.features(x)


def test_features_made_in_inference_mode_can_be_trained_on():
    model, x = NETS["mlp"].model().eval(), torch.randn(3, 4)
    with torch.inference_mode():
        trunk = Trunk.of(model, {"4.weight"}, x)
        features = trunk.features(torch.ones(3, 4))
    weights = {"4.weight": torch.ones(3, 8, requires_grad=True)}
    run(model, weights, torch.ones(3, 4), lambda: trunk.replay(features)).sum().backward()
    assert weights["4.weight"].grad.norm() > 0


def test_autocast_features_replay_under_autocast():
    model, x = NETS["mlp"].model().eval(), torch.randn(3, 4)
    trunk = Trunk.of(model, {"4.weight"}, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = trunk.features(x)
        got = run(model, {}, x, lambda: trunk.replay(features))
        agree(got, model(x))
    assert got.dtype == torch.bfloat16


def test_the_models_own_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Trunk.of(NETS["mlp"].model(), {"4.weight"}, torch.ones(2, 5))


def test_a_batch_of_one_serves_as_example():
    model = Encoder(first=False).eval()
    names, x = ending("encoder.layers.2")(model), torch.randn(4, 5, 4)
    trunk = Trunk.of(model, names, x[:1])
    features = trunk.features(x)
    agree(run(model, {}, x, lambda: trunk.replay(features)), model(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool, torch.complex64])
def test_stand_ins_have_a_shape_and_nonsense(dtype):
    each = stand_in(torch.Size((3, 4)), torch.zeros(1, dtype=dtype))
    assert (each.shape, each.dtype) == ((3, 4), dtype)
    assert not close(torch.ones(3, 4, dtype=dtype), each, 0.1)


def test_agreement_is_relative_to_the_largest_entry():
    a = torch.tensor([100.0, 0.0, -torch.inf])
    assert close(a, a + torch.tensor([0.0, 5e-4, 0.0]), 1e-5)
    assert not close(a, a + torch.tensor([0.0, 5e-3, 0.0]), 1e-5)
    assert not close(a, a[:2], 1e-5)


@pytest.mark.parametrize("length", [6, 4], ids=["whole", "padded"])
@pytest.mark.parametrize("eager", [False, True], ids=["sdpa", "eager"])
def test_bert(length, eager):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=20,
        hidden_size=8,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
        num_labels=3,
        attn_implementation="eager" if eager else "sdpa",
    )
    model = transformers.BertForSequenceClassification(config).eval()
    names = ending("bert.encoder.layer.2", "bert.pooler", "classifier")(model)
    mask = torch.ones(3, 6, dtype=torch.long)
    mask[:, length:] = 0
    inputs = {"input_ids": torch.randint(20, (3, 6)), "attention_mask": mask}
    trunk = Trunk.of(model, names, tree_map(lambda each: each[:2], inputs))
    assert trunk is not None
    assert "bert.encoder.layer.1.output.dense.weight" in trunk.reads
    features = trunk.features(inputs)
    weights = members(model, names)

    def logits(weights, replay=nullcontext) -> Tensor:
        with replay():
            return functional_call(model, weights, (), inputs).logits

    for i in range(3):
        one = {n: each[i] for n, each in weights.items()}
        agree(logits(one, lambda: trunk.replay(features)), logits(one))
    plain, shared = flops(lambda: logits({})), flops(lambda: run_bert(model, inputs, trunk))
    assert shared < 0.5 * plain


def run_bert(model, inputs, trunk) -> None:
    with trunk.replay(trunk_features(trunk, inputs)):
        model(**inputs)


def trunk_features(trunk, inputs):
    """Computed beforehand, so that they do not count."""
    with torch.utils._python_dispatch._disable_current_modes():
        return trunk.features(inputs)


class Padded(nn.Module):
    """Looks at the mask before the random weight, and uses it only where it hides anything."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden, seen = self.first(x), mask > 0
        if not seen.all():
            hidden = hidden * seen.unsqueeze(-1)
        return self.head(hidden)


@pytest.mark.parametrize("hidden_at_first", [True, False])
def test_a_model_that_goes_on_before_its_random_weight_on_other_inputs_is_simply_run(
    hidden_at_first: bool,
):
    net = Padded().eval()
    whole, partly = torch.ones(3), torch.tensor([1.0, 0.0, 1.0])
    x = torch.randn(3, 4)
    example, other = (x, whole), (x, partly)
    if hidden_at_first:
        example, other = (x, torch.zeros(3)), (x, whole)
    trunk = Trunk.of(net, {"head.weight"}, example)
    assert trunk is not None
    for inputs in (example, other):
        with trunk.shared(inputs)():
            found = net(*inputs)
        torch.testing.assert_close(found, net(*inputs))
