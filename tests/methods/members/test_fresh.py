import copy

import pytest
import torch
from torch import Tensor, nn

from bayesify.core.errors import UnsupportedModelError
from bayesify.methods.members.fresh import fresh_starts, fresh_weights
from zoo import NETS


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_generator_decides_and_the_global_one_rests():
    model, before = NETS["cnn"].model(), torch.get_rng_state()
    first, again, other = (
        [each.state_dict() for each in fresh_starts(model, 2, seeded(seed))] for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    for a, b, c in zip(first, again, other, strict=True):
        assert all(torch.equal(each, b[name]) for name, each in a.items())
        assert not torch.equal(a["0.weight"], c["0.weight"])


def test_the_next_starts_of_a_generator_are_others():
    generator = seeded()
    (first,), (second,) = (fresh_starts(nn.Linear(3, 2), 1, generator) for _ in range(2))
    assert not torch.equal(first.weight, second.weight)


def test_starts_are_as_the_modules_draw_them():
    model = nn.Linear(25, 4)
    with torch.no_grad():
        model.weight.fill_(100.0)
    drawn = torch.stack([each.weight for each in fresh_starts(model, 40, seeded())]).detach()
    assert drawn.abs().max() <= 1 / 5  # torch draws from +- 1 / sqrt(inputs)
    assert drawn.var() == pytest.approx(1 / (3 * 25), rel=0.05)
    assert (model.weight == 100).all()


def test_frozen_modules_keep_their_weights():
    model = NETS["mlp"].model()
    model[0].requires_grad_(False)
    (start,) = fresh_starts(model, 1, seeded())
    assert torch.equal(start[0].weight, model[0].weight)
    assert not torch.equal(start[2].weight, model[2].weight)


def test_a_parent_has_the_last_word():
    class Zeroed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.reset_parameters()

        def reset_parameters(self) -> None:
            nn.init.zeros_(self.layer.bias)

    (start,) = fresh_starts(nn.Sequential(Zeroed()), 1, seeded())
    assert (start[0].layer.bias == 0).all()
    assert (start[0].layer.weight != 0).all()


def test_attention_is_drawn_by_its_own_name_for_it():
    model = nn.MultiheadAttention(8, 2)
    (start,) = fresh_starts(model, 1, seeded())
    assert not torch.equal(start.in_proj_weight, model.in_proj_weight)
    assert start.in_proj_weight.abs().max() <= (6 / 32) ** 0.5  # Xavier
    assert (start.in_proj_bias == 0).all()


def test_new_weights_are_those_that_were_asked_for():
    model = NETS["mlp"].model()
    before = copy.deepcopy(model.state_dict())
    drawn = fresh_weights(model, ["4.weight", "2.bias"], 3, seeded())
    assert {name: each.shape for name, each in drawn.items()} == {
        "4.weight": (3, 3, 8),
        "2.bias": (3, 8),
    }
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert not any(each.requires_grad for each in drawn.values())


def test_new_weights_are_as_their_modules_draw_them():
    model = nn.Sequential(nn.Linear(25, 4))
    drawn = fresh_weights(model, ["0.weight"], 40, seeded())["0.weight"]
    assert drawn.abs().max() <= 1 / 5
    assert drawn.var() == pytest.approx(1 / (3 * 25), rel=0.05)
    for m in range(1, 40):
        assert not torch.equal(drawn[m], drawn[0])


def test_the_generator_decides_new_weights_and_the_global_one_rests():
    model, before = NETS["mlp"].model(), torch.get_rng_state()
    first, again, other = (
        fresh_weights(model, ["4.weight"], 2, seeded(seed))["4.weight"] for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_new_weights_of_a_frozen_module_are_drawn_all_the_same():
    model = NETS["mlp"].model().requires_grad_(False)
    drawn = fresh_weights(model, ["4.weight"], 2, seeded())["4.weight"]
    assert not torch.equal(drawn[0], model[4].weight)
    assert not torch.equal(drawn[0], drawn[1])
    assert not any(each.requires_grad for each in model.parameters())


def test_a_single_layer_is_its_own_owner():
    drawn = fresh_weights(nn.Linear(3, 2), ["weight", "bias"], 2, seeded())
    assert drawn["weight"].shape == (2, 2, 3)
    assert drawn["bias"].shape == (2, 2)


def test_no_names_are_no_weights():
    assert fresh_weights(nn.Linear(3, 2), [], 2, seeded()) == {}


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain


def test_an_owner_that_cannot_draw_is_named():
    model = nn.Sequential(nn.Linear(4, 4), Bare())
    with pytest.raises(UnsupportedModelError, match=r"`1` \(Bare\) owns gain.*reset_parameters"):
        fresh_weights(model, ["1.gain"], 2, seeded())
    assert list(fresh_weights(model, ["0.bias"], 2, seeded())) == ["0.bias"]
    with pytest.raises(UnsupportedModelError, match=r"`1` \(Bare\)"):
        fresh_starts(model, 2, seeded())
    model[1].requires_grad_(False)
    (start,) = fresh_starts(model, 1, seeded())
    assert torch.equal(start[1].gain, torch.ones(4))


def differing(model: nn.Module, start: nn.Module) -> dict[str, bool]:
    """Whether each weight that is no constant was drawn anew."""
    pairs = zip(model.named_parameters(), start.parameters(), strict=True)
    return {n: not torch.equal(a, b) for (n, a), b in pairs if a.numel() > 1 and a.std() > 0}


@pytest.mark.parametrize("kind", ["ViT", "GPT2", "CLIP", "Llama"])
def test_networks_of_transformers_are_drawn_by_their_own_rule(kind):
    """Their standard deviation is `initializer_range`, also of bare parameters such as tokens."""
    transformers = pytest.importorskip("transformers")
    small = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    wide = small | {"intermediate_size": 48}
    config = {
        "ViT": lambda: transformers.ViTConfig(**wide, image_size=8, patch_size=4),
        "GPT2": lambda: transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=40),
        "Llama": lambda: transformers.LlamaConfig(**wide, vocab_size=40),
        "CLIP": lambda: transformers.CLIPConfig(
            text_config=wide | {"vocab_size": 40, "projection_dim": 16},
            vision_config=wide | {"image_size": 8, "patch_size": 4, "projection_dim": 16},
            projection_dim=16,
        ),
    }[kind]()
    model = getattr(transformers, f"{kind}Model")(config).eval()
    for each in model.parameters():
        each._is_hf_initialized = True  # as `from_pretrained` leaves them
    first, second = fresh_starts(model, 2, seeded())
    assert all(differing(model, first).values())
    assert all(differing(first, second).values())
    want = {name: each.std().item() for name, each in model.named_parameters() if each.ndim == 2}
    for name, each in first.named_parameters():
        if each.ndim == 2 and each.numel() > 500:
            assert each.std().item() == pytest.approx(want[name], rel=0.2), name


class TokenNet(nn.Module):
    """As timm writes it: the network's own `init_weights` draws its bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.head = nn.Parameter(torch.empty(8)), nn.Linear(8, 3)
        self.init_weights()

    def init_weights(self, mode: str = "") -> None:
        nn.init.normal_(self.token, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.token)


def test_what_modules_cannot_draw_the_networks_init_weights_does():
    model = TokenNet()
    (start,) = fresh_starts(model, 1, seeded())
    assert not torch.equal(start.token, model.token)
    assert start.token.std() < 0.1
    assert not torch.equal(start.head.weight, model.head.weight)
    assert (start.head.bias == 0).all()


def test_a_rule_of_the_network_leaves_what_is_frozen():
    class Net(nn.Sequential):
        def _init_weights(self, module: nn.Module) -> None:
            for each in module.parameters():  # of all that is inside, too
                nn.init.constant_(each, 3.0)

    model = Net(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    model(torch.randn(9, 3))
    model[1].eval()
    model[:2].requires_grad_(False)
    (start,) = fresh_starts(model, 1, seeded())
    held = start[:2].state_dict()
    assert all(torch.equal(each, held[name]) for name, each in model[:2].state_dict().items())
    assert (start[2].weight == 3).all()


def test_a_function_that_makes_the_network_draws_it():
    class Net(Bare):
        def __init__(self) -> None:
            super().__init__()
            nn.init.normal_(self.gain)

    first, second = fresh_starts(Net(), 2, seeded(), build=Net)
    assert not torch.equal(first.gain, second.gain)
    assert torch.equal(first.gain, fresh_starts(Net(), 1, seeded(), build=Net)[0].gain)
    for wrong in (lambda: nn.Linear(4, 4), lambda: None):
        with pytest.raises(UnsupportedModelError, match=r"build: expected a function .* new Net"):
            fresh_starts(Net(), 1, seeded(), build=wrong)
