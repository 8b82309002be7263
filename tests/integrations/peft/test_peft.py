import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bayesify import MAP, WeightPosterior, fit, matching
from bayesify.core.errors import LoadError, OptionError, UnsupportedModelError
from bayesify.distributions import LowRankParticles, MeanField
from bayesify.forward.outputs import read_tensor
from bayesify.integrations.peft import export_adapters, import_adapters
from bayesify.integrations.peft.layers import from_peft, keys_of, misfit, to_peft
from bayesify.likelihoods import Categorical
from bayesify.methods.members.bella import Bella
from bayesify.weights.named import buffers_of
from zoo import NETS, Net

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"

pytestmark = [
    # an old name in transformers that peft calls, and a check of peft's that knows no lora_bias
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Adapter 'default'. . LoRA tensor.s. have invalid shape"),
    # said, and mended, at every layer of the other kind
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set"),
]


class Reader(nn.Module):
    """An embedding, a norm, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.mix, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(torch.tanh(self.mix(self.embed(ids).mean(1)))))


class Nested(nn.Module):
    """Names that end like others, and a convolution of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.wave = nn.Conv1d(2, 4, 3, padding=1)
        self.volume = nn.Conv3d(1, 2, 2, bias=False)
        self.block = nn.ModuleDict({"fc": nn.Linear(6, 6), "w": nn.Conv2d(1, 1, 1)})

    def forward(self, x: Tensor) -> Tensor:
        waves = self.wave(x).unflatten(2, (2, 2)).unsqueeze(1)
        deep = self.block["w"](self.volume(waves).flatten(2).unsqueeze(1))
        return self.fc(torch.relu(self.block["fc"](deep.flatten(1))))


def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=19,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=9,
        num_labels=3,
        initializer_range=0.3,  # else attention hardly matters
    )
    return transformers.BertForSequenceClassification(config)


def gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=19,
        n_positions=9,
        n_embd=8,
        n_layer=2,
        n_head=2,
        num_labels=3,
        pad_token_id=0,
        initializer_range=0.3,
    )
    return transformers.GPT2ForSequenceClassification(config)


def _ids(size: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(1, 19, (size, 5), generator=generator)}


MODELS = {
    "mlp": NETS["mlp"],
    "cnn": NETS["cnn"],
    "reader": Net(Reader, lambda n, g: torch.randint(11, (n, 4), generator=g)),
    "nested": Net(Nested, lambda n, g: torch.randn(n, 2, 4, generator=g)),
    "bert": Net(bert, _ids),
    "gpt2": Net(gpt2, _ids),
}


def randomised(q: LowRankParticles) -> LowRankParticles:
    with torch.no_grad():
        for each in q.parameters():
            each.copy_(0.3 * torch.randn_like(each))
        for each in q.statistics.buffers():
            each.copy_(each + torch.rand_like(each) if each.is_floating_point() else each + 5)
    return q


def members(name: str, *, count: int = 2, **options) -> WeightPosterior:
    model = MODELS[name].model().eval()
    options = {"rank": 3, "scale": 0.7} | options
    q = LowRankParticles.around(model, members=count, **options)
    return WeightPosterior(model, randomised(q), Categorical())


def arguments(x) -> tuple[tuple, dict]:
    return ((), x) if isinstance(x, dict) else ((x,), {})


def by_peft(posterior: WeightPosterior, folder: Path, x) -> Tensor:
    peft = pytest.importorskip("peft")
    model = peft.PeftModel.from_pretrained(copy.deepcopy(posterior.model), folder).eval()
    args, kwargs = arguments(x)
    with torch.no_grad():
        return read_tensor(model(*args, **kwargs))


SETTINGS = {
    "mlp": ("mlp", {}),
    "mlp without vectors": ("mlp", {"vectors": False}),
    "mlp with a head": ("mlp", {"full": ["4.weight"]}),
    "mlp with half a head": ("mlp", {"full": ["4.weight"], "vectors": False}),
    "mlp of rank 1": ("mlp", {"rank": 1, "scale": 4.0}),
    "cnn": ("cnn", {}),
    "cnn without vectors": ("cnn", {"vectors": False}),
    "cnn with statistics": ("cnn", {"buffers": list(buffers_of(NETS["cnn"].model()))}),
    "cnn, norms alone": ("cnn", {"where": matching("0.*", "1.*")}),
    "reader": ("reader", {}),
    "reader, table alone": ("reader", {"where": matching("embed.*", "norm.*")}),
    "reader, table in full": ("reader", {"full": ["embed.weight", "head.weight"]}),
    "nested": ("nested", {}),
    "nested, part": ("nested", {"where": matching("fc.*", "wave.*")}),
    "bert": ("bert", {}),
    "bert, attention": ("bert", {"where": matching("*query.*", "*value.*"), "scale": 2.0}),
    "bert with a head": ("bert", {"full": ["classifier.weight"]}),
    "gpt2": ("gpt2", {}),
    "gpt2, attention": ("gpt2", {"where": matching("*c_attn.*")}),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_peft_computes_what_the_members_compute(tmp_path, setting):
    name, options = SETTINGS[setting]
    posterior, x = members(name, **options), MODELS[name].inputs(6)
    folders = export_adapters(posterior, tmp_path / "adapters")
    expected = posterior.predict(x).logits
    for folder, ours in zip(folders, expected, strict=True):
        torch.testing.assert_close(by_peft(posterior, folder, x), ours, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected[0], expected[1], atol=1e-2)


@pytest.mark.parametrize("setting", SETTINGS)
def test_members_come_back(tmp_path, setting):
    name, options = SETTINGS[setting]
    posterior, x = members(name, **options), MODELS[name].inputs(6)
    again = import_adapters(posterior.model, export_adapters(posterior, tmp_path / "adapters"))
    torch.testing.assert_close(
        again.predict(x).logits, posterior.predict(x).logits, rtol=1e-5, atol=1e-5
    )
    assert set(again.q.names) == set(posterior.q.names)
    torch.testing.assert_close(again.q.scale, posterior.q.scale)
    for name, each in posterior.q.down.named().items():
        assert torch.equal(again.q.down.named()[name], each)


def test_a_fit_comes_back_around_any_copy_of_the_network(tmp_path):
    net = NETS["cnn"]
    method = Bella(pretrain=MAP(epochs=1), members=2, rank=1, epochs=1, batch_norm="moving")
    posterior = fit(net.model(), net.data(), method)
    folders = export_adapters(posterior, tmp_path / "adapters")
    model = copy.deepcopy(posterior.model).train().requires_grad_(True)
    again = import_adapters(model, folders)
    torch.testing.assert_close(again.outputs(net.inputs(5)), posterior.outputs(net.inputs(5)))
    assert model.training
    assert all(each.requires_grad for each in model.parameters())


def test_several_members_fit_into_one_model_of_peft(tmp_path):
    peft = pytest.importorskip("peft")
    posterior, x = members("mlp"), NETS["mlp"].inputs(6)
    folders = export_adapters(posterior, tmp_path / "adapters")
    model = peft.PeftModel.from_pretrained(
        copy.deepcopy(posterior.model), folders[0], adapter_name="first"
    )
    model.load_adapter(folders[1], adapter_name="second")
    for name, ours in zip(("first", "second"), posterior.predict(x).logits, strict=True):
        model.set_adapter(name)
        torch.testing.assert_close(model(x).detach(), ours, rtol=1e-5, atol=1e-5)
    with model.disable_adapter(), torch.no_grad():
        assert torch.equal(model(x), posterior.model(x))
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(x).detach(), posterior.predict(x).logits[1])


def test_the_files_hold_the_members_and_no_weight_of_the_network(tmp_path):
    posterior = members("mlp", count=3)
    folders = export_adapters(posterior, tmp_path / "adapters")
    assert [each.name for each in folders] == ["member_0", "member_1", "member_2"]
    assert sorted(tmp_path.iterdir()) == [tmp_path / "adapters"]
    learnt = sum(each.numel() for each in posterior.q.parameters()) // 3
    for folder in folders:
        assert {each.name for each in folder.iterdir()} == {CONFIG, TENSORS}
        assert sum(each.numel() for each in load_file(folder / TENSORS).values()) == learnt
        header = int.from_bytes((folder / TENSORS).read_bytes()[:8], "little")
        assert (folder / TENSORS).stat().st_size == 8 + header + 4 * learnt


def test_what_is_not_learnt_is_written_only_beside_what_is(tmp_path):
    whole = {"buffers": list(buffers_of(NETS["cnn"].model())), "full": ["5.weight"]}
    for options in ({}, whole):
        posterior = members("cnn", count=1, **options)
        folder = tmp_path / f"{len(options)}"
        tensors = load_file(export_adapters(posterior, folder)[0] / TENSORS)
        base = posterior.model.state_dict()
        same = {
            key
            for key, each in tensors.items()
            for value in base.values()
            if each.shape == value.shape and torch.equal(each, value)
        }
        norm = {f"base_model.model.1.{buffer}" for buffer in buffers_of(posterior.model[1])}
        assert same == (set() if options else norm)


def test_nothing_is_pickled(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("pickle was used")

    posterior = members("cnn")
    for name in ("load", "loads", "dump", "dumps", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    monkeypatch.setattr(torch, "save", refuse)
    import_adapters(posterior.model, export_adapters(posterior, tmp_path / "adapters"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_factors_keep_their_own_type(tmp_path, dtype):
    model = MODELS["reader"].model().eval().to(dtype)
    q = randomised(LowRankParticles.around(model, members=2))
    posterior = WeightPosterior(model, q, Categorical())
    folders = export_adapters(posterior, tmp_path / "adapters")
    stored = load_file(folders[0] / TENSORS)
    factors = torch.float64 if dtype == torch.float64 else torch.float32
    assert stored["base_model.model.mix.lora_A.weight"].dtype == factors
    assert stored["base_model.model.norm.weight"].dtype == dtype
    again, x = import_adapters(model, folders), MODELS["reader"].inputs(6)
    torch.testing.assert_close(again.predict(x).logits, posterior.predict(x).logits)


def test_ranks_may_differ_by_layer(tmp_path):
    posterior = members("reader", rank=4)  # the head has 3 rows, so its rank is 3
    folder = export_adapters(posterior, tmp_path / "adapters")[0]
    config = json.loads((folder / CONFIG).read_text())
    assert (config["r"], config["rank_pattern"]) == (4, {"^head": 3})
    assert config["lora_alpha"] == pytest.approx(4 * 0.7)
    assert config["alpha_pattern"] == {"^head": pytest.approx(3 * 0.7)}


def test_peft_is_given_exact_names(tmp_path):
    alone = export_adapters(members("nested", where=matching("fc.weight")), tmp_path / "one")[0]
    both = export_adapters(members("nested", where=matching("*fc.weight")), tmp_path / "two")[0]
    assert json.loads((alone / CONFIG).read_text())["target_modules"] == "fc"  # a pattern
    assert json.loads((both / CONFIG).read_text())["target_modules"] == ["fc", "block.fc"]


PEFT_OPTIONS = {
    "plain": ("mlp", {"target_modules": ["0", "2"], "r": 2, "lora_alpha": 3}),
    "rslora": ("mlp", {"target_modules": ["0", "2"], "r": 4, "use_rslora": True}),
    "patterns": (
        "mlp",
        {
            "target_modules": ["0", "2", "4"],
            "rank_pattern": {"2": 3},
            "alpha_pattern": {"^0": 1, "2|4": 5},
        },
    ),
    "all linear": ("reader", {"target_modules": "all-linear", "r": 2}),
    "a regex": ("reader", {"target_modules": "mix|embed", "r": 2}),
    "its own bias": ("mlp", {"target_modules": ["0", "2"], "lora_bias": True}),
    "bias of layers": ("reader", {"target_modules": ["mix", "embed"], "bias": "lora_only"}),
    "all biases": ("reader", {"target_modules": ["mix"], "bias": "all"}),
    "saved modules": (
        "reader",
        {"target_modules": ["mix"], "modules_to_save": ["head", "norm"], "r": 2},
    ),
    "batch norm": ("cnn", {"target_modules": ["0", "5"], "modules_to_save": ["1"], "r": 2}),
    "bert": ("bert", {"target_modules": ["query", "value"], "modules_to_save": ["classifier"]}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True}),
}


def made_by_peft(model: nn.Module, folder: Path, seed: int = 0, **options) -> nn.Module:
    """An adapter of random numbers, saved by peft."""
    peft = pytest.importorskip("peft")
    wrapped = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(**options)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each in wrapped.parameters():
            if each.requires_grad:
                each.add_(0.3 * torch.randn(each.shape, generator=generator))
        for name, each in wrapped.named_buffers():
            if "modules_to_save" in name and each.is_floating_point():
                each.add_(torch.rand(each.shape, generator=generator))
    wrapped.save_pretrained(folder)
    return wrapped


@pytest.mark.parametrize("kind", PEFT_OPTIONS)
def test_adapters_of_peft_are_read(tmp_path, kind):
    name, options = PEFT_OPTIONS[kind]
    model, x = MODELS[name].model().eval(), MODELS[name].inputs(6)
    folders = [tmp_path / "a", tmp_path / "b"]
    theirs = [made_by_peft(model, each, i, **options) for i, each in enumerate(folders)]
    posterior = import_adapters(model, folders)
    args, kwargs = arguments(x)
    for ours, wrapped in zip(posterior.predict(x).logits, theirs, strict=True):
        with torch.no_grad():
            expected = read_tensor(wrapped(*args, **kwargs))
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    again = import_adapters(model, export_adapters(posterior, tmp_path / "again"))
    torch.testing.assert_close(again.predict(x).logits, posterior.predict(x).logits)


def test_scales_that_differ_go_into_up(tmp_path):
    model, x = MODELS["mlp"].model().eval(), NETS["mlp"].inputs(6)
    folders = [tmp_path / "a", tmp_path / "b"]
    theirs = [
        made_by_peft(model, each, target_modules=["0"], r=2, lora_alpha=alpha)
        for each, alpha in zip(folders, (1, 3), strict=True)
    ]
    posterior = import_adapters(model, folders)
    assert posterior.q.scale == 1
    for ours, wrapped in zip(posterior.predict(x).logits, theirs, strict=True):
        torch.testing.assert_close(ours, wrapped(x).detach(), rtol=1e-5, atol=1e-5)
    assert import_adapters(model, folders[1:]).q.scale == 1.5


def test_the_layouts_of_all_layers_turn_around():
    for module in (nn.Linear(4, 6), nn.Conv3d(2, 6, 2), nn.Embedding(6, 4)):
        d = module.weight[0].numel()
        down, up = torch.randn(2, d), torch.randn(6, 2)
        assert all(map(torch.equal, from_peft(module, *to_peft(module, down, up)), (down, up)))
    assert keys_of(nn.Embedding(2, 2))[0] == "lora_embedding_A"


REFUSED = {
    "a convolution in groups": (lambda: nn.Conv2d(4, 4, 3, groups=2), "in 2 groups"),
    "a dilated convolution": (lambda: nn.Conv1d(4, 4, 3, dilation=2), "dilated"),
    "other padding": (lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "'circular'"),
    "a transposed convolution": (lambda: nn.ConvTranspose2d(4, 4, 3), "ConvTranspose2d; peft"),
    "a table that renormalises": (lambda: nn.Embedding(4, 4, max_norm=1.0), "max_norm"),
    "attention": (lambda: nn.MultiheadAttention(4, 2), "the `in_proj_weight` of Multihead"),
    "a recurrent layer": (lambda: nn.LSTM(4, 4), "the `weight_ih_l0` of LSTM"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_layers_that_peft_has_no_place_for_are_refused(tmp_path, name):
    build, said = REFUSED[name]
    model = nn.Sequential(nn.Linear(4, 4), build())
    posterior = WeightPosterior(model, LowRankParticles.around(model), Categorical())
    with pytest.raises(UnsupportedModelError, match=rf"hold what .* `1\..*{said}.*Leave it out"):
        export_adapters(posterior, tmp_path / "adapters")
    assert not list(tmp_path.iterdir())


def test_layers_whose_weights_others_read_are_refused():
    model = NETS["transformer"].model()
    for name in ("encoder.layers.0.self_attn.out_proj.weight", "encoder.layers.0.linear1.weight"):
        assert "peft adapts" in misfit(model, name) or "without calling" in misfit(model, name)
    assert misfit(model, "embed.weight") is None


def test_tied_weights_are_refused(tmp_path):
    model = NETS["tied"].model()
    posterior = WeightPosterior(model, LowRankParticles.around(model), Categorical())
    with pytest.raises(UnsupportedModelError, match=r"tied \(embed.weight, score.weight\)"):
        export_adapters(posterior, tmp_path / "adapters")
    untied = LowRankParticles.around(model, where=matching("mix.*"))
    export_adapters(WeightPosterior(model, untied, Categorical()), tmp_path / "adapters")
    made_by_peft(model, tmp_path / "peft", target_modules=["score"])
    with pytest.raises(UnsupportedModelError, match=r"adapts `score.weight`, but it is tied"):
        import_adapters(model, [tmp_path / "peft"])


class Scaled(nn.Module):
    """A vector beside a module, and one that is no part of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.fc = nn.Parameter(torch.ones(3)), nn.Linear(4, 3)
        self.inner = nn.Module()
        self.inner.gain, self.inner.fc = nn.Parameter(torch.ones(3)), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner.fc(self.fc(x) * self.gain) * self.inner.gain


@pytest.mark.parametrize("name", ["gain", "inner.gain"])
def test_a_vector_beside_modules_is_refused(tmp_path, name):
    model = Scaled()
    q = LowRankParticles.around(model, where=matching("fc.weight", name))
    with pytest.raises(UnsupportedModelError, match=f"`{name}`: peft stores whole modules"):
        export_adapters(WeightPosterior(model, q, Categorical()), tmp_path / "adapters")


def test_a_network_of_one_layer_is_refused(tmp_path):
    model = nn.Linear(4, 3)
    posterior = WeightPosterior(model, LowRankParticles.around(model), Categorical())
    with pytest.raises(UnsupportedModelError, match=r"into an `nn.Sequential`"):
        export_adapters(posterior, tmp_path / "adapters")


@pytest.mark.parametrize("norm", ["1", "layer"])
def test_names_that_peft_would_confuse_are_refused(tmp_path, norm):
    parts = {"0": nn.Linear(4, 4), norm: nn.LayerNorm(4), "11": nn.Linear(4, 3)}
    model = nn.ModuleDict(parts)
    q = LowRankParticles.around(model, where=matching("0.*", f"{norm}.*"))
    with pytest.raises(UnsupportedModelError, match=rf"by `{norm}` it would find .* too; rename"):
        export_adapters(WeightPosterior(model, q, Categorical()), tmp_path / "adapters")


def test_what_is_no_low_rank_posterior_is_refused(tmp_path):
    net = NETS["mlp"].model()
    posterior = WeightPosterior(net, MeanField.around(net), Categorical())
    with pytest.raises(UnsupportedModelError, match="got MeanField; fit `Bella`"):
        export_adapters(posterior, tmp_path / "adapters")
    with pytest.raises(UnsupportedModelError, match="got str; fit `Bella`"):
        export_adapters("posterior", tmp_path / "adapters")
    q = LowRankParticles.around(net, where=matching("*.bias"))
    with pytest.raises(UnsupportedModelError, match="in no matrix"):
        export_adapters(WeightPosterior(net, q, Categorical()), tmp_path / "adapters")
    assert not list(tmp_path.iterdir())


def test_only_adapters_are_overwritten(tmp_path):
    folder, posterior = tmp_path / "adapters", members("mlp", count=3)
    export_adapters(posterior, folder)
    with pytest.raises(OptionError, match="exists already"):
        export_adapters(members("mlp"), folder)
    assert len(export_adapters(members("mlp"), folder, overwrite=True)) == 2
    assert sorted(each.name for each in folder.iterdir()) == ["member_0", "member_1"]
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(OptionError, match="something else than adapters"):
        export_adapters(posterior, folder, overwrite=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="something else than adapters"):
        export_adapters(posterior, tmp_path / "file", overwrite=True)
    assert (folder / "thesis.txt").read_text() == "years of work"


def test_a_crash_leaves_nothing_half_and_keeps_what_was(tmp_path, monkeypatch):
    folder, calls = tmp_path / "adapters", []
    export_adapters(members("mlp"), folder)
    before = (folder / "member_0" / TENSORS).read_bytes()

    def fail_later(*args, **kwargs):
        calls.append(args)
        if len(calls) > 1:
            raise OSError("disk full")
        save_file(*args, **kwargs)

    monkeypatch.setattr("bayesify.integrations.peft.exporting.save_file", fail_later)
    for name in ("adapters", "new"):
        with pytest.raises(OSError, match="disk full"):
            export_adapters(members("mlp", rank=1), tmp_path / name, overwrite=True)
    assert list(tmp_path.iterdir()) == [folder]
    assert (folder / "member_0" / TENSORS).read_bytes() == before


@pytest.fixture
def written(tmp_path) -> list[Path]:
    return export_adapters(members("mlp"), tmp_path / "adapters")


def mlp() -> nn.Module:
    return MODELS["mlp"].model()


CONFIGS = {
    "another method": ({"peft_type": "IA3"}, "has peft_type 'IA3'; expected 'LORA'"),
    "no method": ({"peft_type": None}, "has peft_type None"),
    "DoRA": ({"use_dora": True}, "use_dora=True, which is no low-rank difference"),
    "tokens": ({"trainable_token_indices": [1]}, "trainable_token_indices"),
    "PiSSA": ({"init_lora_weights": "pissa"}, "'pissa', which changes the network's own"),
    "a missing module": ({"target_modules": ["0", "2", "4", "7"]}, "no factors of `7`"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_foreign_config_is_refused(written, name):
    changes, said = CONFIGS[name]
    file = written[1] / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(LoadError, match=f"member_1.*{said}"):
        import_adapters(mlp(), written)


KEY = "base_model.model.2.lora_A.weight"
FILES = {
    "a missing key": (lambda t: {k: e for k, e in t.items() if k != KEY}, f"lacks `{KEY}`"),
    "a missing layer": (lambda t: {k: e for k, e in t.items() if ".2." not in k}, "no factors of"),
    "no layer": (lambda t: {}, "no factors of `0`"),
    "a foreign key": (lambda t: t | {"2.weight": t[KEY]}, "`2.weight`; expected keys that begin"),
    "an unknown weight": (
        lambda t: t | {"base_model.model.9.weight": t[KEY]},
        "`base_model.model.9.weight`, which Sequential has not",
    ),
    "an unknown layer": (
        lambda t: t | {"base_model.model.9.lora_A.weight": t[KEY]},
        "adapts `9`, which the given Sequential lacks",
    ),
    "a magnitude": (
        lambda t: t | {"base_model.model.2.lora_magnitude_vector": t[KEY]},
        r"`base_model.model.2.lora_magnitude_vector`, which is no part",
    ),
    "another shape": (
        lambda t: t | {KEY: torch.zeros(3, 5)},
        rf"`{KEY}` of shape \(3, 5\); the given Sequential needs \(3, 8\)",
    ),
    "a number": (lambda t: t | {KEY: torch.tensor(1.0)}, rf"`{KEY}` of shape \(\)"),
    "no rank": (lambda t: t | {KEY: t[KEY][:0]}, rf"`{KEY}` of shape \(0, 8\)"),
    "another rank": (
        lambda t: t | {KEY: t[KEY][:2]},
        r"`base_model.model.2.lora_B.weight` of shape \(8, 3\); .* needs \(8, 2\)",
    ),
    "an adapted weight": (
        lambda t: t | {"base_model.model.2.base_layer.weight": torch.zeros(8, 8)},
        "replaces `2.weight`, which is adapted",
    ),
    "a bias of another shape": (
        lambda t: t | {"base_model.model.2.lora_B.bias": torch.zeros(3)},
        r"`base_model.model.2.lora_B.bias` of shape \(3,\); the given Sequential needs \(8,\)",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_does_not_fit_is_refused(written, name):
    change, said = FILES[name]
    file = written[0] / TENSORS
    tensors = {key: each.clone() for key, each in change(load_file(file)).items()}
    save_file(tensors, file)
    with pytest.raises(LoadError, match=said):
        import_adapters(mlp(), written)


def test_weights_of_the_network_itself_may_lie_beside_the_factors(written):
    tensors = load_file(written[0] / TENSORS)  # as peft does for the tables of language models
    save_file(
        tensors | {"base_model.model.2.base_layer.weight": mlp()[2].weight.detach()},
        written[0] / TENSORS,
    )
    assert len(import_adapters(mlp(), written).q.offsets.named()) == 3


def test_a_network_of_other_shapes_is_refused(written):
    other = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(LoadError, match=r"`base_model.model.0.lora_B.weight` of shape \(8, 3\)"):
        import_adapters(other, written)
    waves = nn.Sequential(nn.Conv1d(4, 8, 1), nn.ReLU(), nn.Linear(8, 8), nn.ReLU())
    with pytest.raises(LoadError, match=r"needs \(3, 4, 1\)"):
        import_adapters(waves, written)


def test_a_bias_needs_a_layer_with_bias(written):
    bare = copy.deepcopy(mlp())
    bare[2] = nn.Linear(8, 8, bias=False)
    with pytest.raises(LoadError, match="adds a bias to `2`, which has none"):
        import_adapters(bare, written)


def test_missing_and_damaged_files_are_told(written):
    with pytest.raises(LoadError, match=r"holds no adapter \(adapter_config.json is missing"):
        import_adapters(mlp(), [written[0].parent])
    (written[0] / TENSORS).write_bytes(b"\x80\x04not ours")
    with pytest.raises(LoadError, match="is no safetensors file"):
        import_adapters(mlp(), written)
    (written[0] / TENSORS).rename(written[0] / "adapter_model.bin")
    with pytest.raises(LoadError, match=r"is missing; .*safe_serialization=True"):
        import_adapters(mlp(), written)
    (written[0] / CONFIG).write_text("[]")
    with pytest.raises(LoadError, match="has peft_type None"):
        import_adapters(mlp(), written)
    (written[0] / CONFIG).write_text("{")
    with pytest.raises(LoadError, match="is damaged"):
        import_adapters(mlp(), written)
    for none in ([], str(written[0]), written[0]):
        with pytest.raises(OptionError, match="expected a list of folders"):
            import_adapters(mlp(), none)


def test_members_must_be_alike(tmp_path):
    full = export_adapters(members("reader"), tmp_path / "full")
    other = {
        r"the lora_A of `embed.weight` \(as a matrix\) is \(2, 6\), in .* it is \(3, 6\)": {
            "rank": 2
        },
        r"`head.weight` \(as a matrix\) is absent": {"where": matching("mix.*", "embed.*")},
        r"`\w+.bias` is absent, in .* it is \(\d,\)": {"vectors": False},
    }
    for number, (said, options) in enumerate(other.items()):
        folders = export_adapters(members("reader", **options), tmp_path / str(number))
        with pytest.raises(LoadError, match=said):
            import_adapters(MODELS["reader"].model(), [full[0], folders[1]])


def test_likelihood_and_readout_are_those_given(written):
    posterior = import_adapters(
        mlp(), written, likelihood="gaussian", readout=lambda output: 2 * output
    )
    plain = import_adapters(mlp(), written[::-1])
    x = NETS["mlp"].inputs(5)
    assert torch.equal(posterior.outputs(x), 2 * plain.outputs(x).flip(0))
    assert type(posterior.likelihood).__name__ == "Gaussian"
