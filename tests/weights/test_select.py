import pytest
import torch
from torch import Tensor, nn

from bayesify import all_weights, first_layer, last_layer, matching, matrices, models
from bayesify.core.errors import OptionError, UnsupportedModelError
from bayesify.core.options import from_json, to_json
from bayesify.weights.select import where_from_text
from zoo import NETS


class Bert(nn.Module):
    """The layout of BERT: three embeddings summed, encoder, pooler, and an output object."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(8, 3)
        self.embeddings = nn.ModuleDict(
            {"position": nn.Embedding(5, 8), "word": nn.Embedding(7, 8), "norm": nn.LayerNorm(8)}
        )
        self.register_buffer("positions", torch.arange(5).unsqueeze(0))
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, input_ids: Tensor) -> Tensor:
        places = self.positions[:, : input_ids.shape[1]]
        held = self.embeddings["position"](places) + self.embeddings["word"](input_ids)
        return self.classifier(self.encoder(self.embeddings["norm"](held))[:, 0])


def vit() -> nn.Module:
    return models.build("vit", (1, 8, 8), 3, seed=0)


IDS = {"input_ids": torch.randint(7, (2, 4))}


def test_first_and_last_mean_execution():
    class Reversed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.first = nn.Linear(8, 3), nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(self.first(x), self.head.weight)

    for example in (torch.randn(2, 4), None):
        assert first_layer(Reversed(), example) == ["first.weight", "first.bias"]
        assert last_layer(Reversed(), example) == ["head.weight", "head.bias"]


EXPECTED = {
    "mlp": (["0.weight", "0.bias"], ["4.weight", "4.bias"]),
    "cnn": (["0.weight"], ["5.weight", "5.bias"]),
    "transformer": (["embed.weight", "embed.bias"], ["head.weight", "head.bias"]),
    "lstm": (
        ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0"],
        ["head.weight", "head.bias"],
    ),
    "tied": (["embed.weight"], ["embed.weight"]),
    "mapping": (["embed.weight"], ["head.weight", "head.bias"]),
    "tuple": (["left.weight", "left.bias"], ["head.weight", "head.bias"]),
}


@pytest.mark.parametrize("net", NETS)
def test_first_and_last_layer_of_every_net(net):
    model, example = NETS[net].model(), NETS[net].inputs(2)
    assert (first_layer(model, example), last_layer(model, example)) == EXPECTED[net]


def test_an_embedding_is_a_first_layer():
    assert first_layer(Bert(), IDS) == ["embeddings.word.weight"]
    assert last_layer(Bert(), IDS) == ["classifier.weight", "classifier.bias"]


def test_the_patches_of_a_vision_transformer_are_its_first_layer():
    example = torch.randn(2, 1, 8, 8)
    assert first_layer(vit(), example) == ["embed.weight", "embed.bias"]
    assert last_layer(vit(), example) == ["head.weight", "head.bias"]


@pytest.mark.parametrize("example", [torch.randn(2, 4), None], ids=["run", "traced"])
def test_a_normalised_layer_comes_with_its_bias(example):
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))
    parts = [f"0.parametrizations.weight.original{i}" for i in (0, 1)]
    assert first_layer(net, example) == ["0.bias", *parts]


def test_a_weight_at_the_root_is_a_layer():
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.b = nn.Parameter(torch.ones(3, 4)), nn.Parameter(torch.ones(3))
            self.rest = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.rest(x @ self.w.T + self.b)

    assert first_layer(Root(), torch.ones(1, 4)) == ["w", "b"]


class Clip(nn.Module):
    """The layout of open_clip's towers: tokens, positions and a projection are the root's own."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Parameter(torch.randn(8, 3))
        self.class_embedding = nn.Parameter(torch.randn(8))
        self.positional_embedding = nn.Parameter(torch.randn(5, 8))
        self.logit_scale = nn.Parameter(torch.ones(()))
        self.conv1, self.ln = nn.Conv2d(1, 8, 2, 2, bias=False), nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x).flatten(2).mT
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1)
        return self.ln(x + self.positional_embedding)[:, 0] @ self.proj * self.logit_scale.exp()


class Bare(nn.Module):
    """Two layers and a head, all parameters in the root or in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.b1, self.w1 = nn.Parameter(torch.ones(8)), nn.Parameter(torch.randn(4, 8))
        self.deep = nn.ParameterList([torch.randn(8, 8), torch.randn(8, 3), torch.ones(3)])

    def forward(self, x: Tensor) -> Tensor:
        x = (torch.tanh(x @ self.w1 + self.b1) @ self.deep[0]).tanh()
        return x @ self.deep[1] + self.deep[2]


def test_bare_parameters_are_chosen_by_the_operation_that_reads_them():
    images = torch.randn(2, 1, 4, 4)
    assert first_layer(Clip(), images) == ["conv1.weight"]
    assert last_layer(Clip(), images) == ["proj"]
    for example in (torch.randn(2, 4), None):
        assert first_layer(Bare(), example) == ["b1", "w1"]
        assert last_layer(Bare(), example) == ["deep.1", "deep.2"]


def test_a_table_that_is_added_is_no_layer():
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places, self.head = nn.Parameter(torch.randn(5, 4)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.places)

    with pytest.raises(UnsupportedModelError, match=r"`Placed`.* no matrix weight there. Pass"):
        first_layer(Placed(), torch.randn(2, 5, 4))


def test_a_module_that_owns_several_matrices_is_one_layer():
    class Spline(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base, self.bent = (nn.Parameter(torch.randn(3, 4)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.base) + nn.functional.linear(x.cos(), self.bent)

    net = nn.Sequential(nn.Linear(4, 4), Spline())
    assert last_layer(net, torch.randn(2, 4)) == ["1.base", "1.bent"]


def test_a_norm_in_front_is_named_with_what_to_do():
    net = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3))
    said = (
        r"`first_layer` found no weight to make Bayesian: the first module with parameters is "
        r"`0` \(LayerNorm\), which has no matrix weight there. Pass `where=matching\('...'\)`"
    )
    for example in (torch.randn(2, 4), None):
        with pytest.raises(UnsupportedModelError, match=said):
            first_layer(net, example)
    with pytest.raises(UnsupportedModelError, match=r"the last module .* `1` \(BatchNorm1d\)"):
        last_layer(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))


def test_a_model_that_uses_none_of_its_weights_is_told():
    class Idle(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(UnsupportedModelError, match="reads none of its weights"):
        first_layer(Idle(4, 3), torch.randn(2, 4))
    with pytest.raises(UnsupportedModelError, match="no parameters"):
        first_layer(nn.ReLU(), torch.randn(2, 4))


def test_what_cannot_be_traced_asks_for_an_example():
    class Branching(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if x.sum() > 0 else -x)

    with pytest.raises(UnsupportedModelError, match="pass `example=`"):
        first_layer(Branching(4, 3))


def test_all_weights_are_all_and_a_tied_one_once():
    assert all_weights(NETS["tied"].model()) == ["embed.weight", "mix.weight", "mix.bias"]


def test_patterns_choose_names_in_the_models_order():
    net = NETS["mlp"].model()
    assert matching("4.*", "0.weight")(net) == ["0.weight", "4.weight", "4.bias"]
    assert matching("*.weight")(net) == ["0.weight", "2.weight", "4.weight"]


def test_a_tied_weight_is_found_under_each_of_its_names():
    assert matching("score.*")(NETS["tied"].model()) == ["embed.weight"]


def test_a_pattern_without_hit_names_what_is_near():
    with pytest.raises(OptionError, match=r"matching\('mix.wieght'\).* 4; .*mix\.weight"):
        matching("mix.wieght")(NETS["tied"].model())
    with pytest.raises(OptionError, match="embed"):
        matching("*.bias", "emb")(NETS["tied"].model())


@pytest.mark.parametrize(
    "where", [first_layer, last_layer, all_weights, matrices, matching("a", "b.*")]
)
def test_selectors_survive_json_and_compare_by_value(where):
    assert from_json(to_json(where)) == where


def test_selectors_from_text():
    assert where_from_text("last_layer") is last_layer
    assert where_from_text("all_weights") is all_weights
    assert where_from_text("matrices") is matrices
    assert where_from_text("a.*,b") == matching("a.*", "b")


def test_matrices_have_two_axes_or_more():
    assert matrices(NETS["cnn"].model()) == ["0.weight", "5.weight"]  # a kernel; no norm, no bias
    assert matrices(NETS["mapping"].model()) == ["embed.weight", "head.weight"]
    assert matrices(NETS["tied"].model()) == ["embed.weight", "mix.weight"]
    assert matrices(vit()) == [n for n, each in vit().named_parameters() if each.dim() > 1]


def test_matrices_of_a_net_without_say_what_to_do():
    with pytest.raises(
        UnsupportedModelError, match=r"`matrices` found no .* in LayerNorm; pass `wh"
    ):
        matrices(nn.LayerNorm(4))
