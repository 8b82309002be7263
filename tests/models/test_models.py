import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.func import functional_call, stack_module_state

from bayesify.core.errors import LoadError, OptionError, UnsupportedModelError
from bayesify.data.readers.cifar import NORMALISE
from bayesify.models import MODELS, build, load_weights
from zoo import SHARED

IMAGES = [(1, 8, 8), (1, 28, 28), (3, 32, 32)]


@pytest.mark.parametrize("shape", IMAGES)
@pytest.mark.parametrize("name", MODELS)
def test_images_of_any_usual_size_become_outputs(name, shape):
    model = build(name, shape, 7, seed=0)
    assert model(torch.rand(2, *shape)).shape == (2, 7)


def test_an_mlp_takes_features():
    assert build("mlp", (13,), 1)(torch.rand(5, 13)).shape == (5, 1)


@pytest.mark.parametrize(
    ("name", "widths"),
    [("mlp", [64, 64, 3]), ("mlp-50", [50, 3]), ("mlp-7-5-6", [7, 5, 6, 3])],
)
def test_the_hidden_layers_of_an_mlp_are_part_of_its_name(name, widths):
    layers = [each for each in build(name, (13,), 3).modules() if isinstance(each, nn.Linear)]
    assert [each.out_features for each in layers] == widths


def test_an_mlp_with_dropout_has_it_behind_every_hidden_layer_and_the_same_weights():
    plain, dropping = (build(name, (13,), 3, seed=0) for name in ("mlp", "mlp-dropout"))
    kinds = [type(each) for each in dropping]
    hidden = [nn.Linear, nn.ReLU, nn.Dropout]
    assert kinds == [nn.Flatten, *hidden, *hidden, nn.Linear]
    assert {each.p for each in dropping if isinstance(each, nn.Dropout)} == {0.1}
    for name, each in plain.state_dict().items():
        assert torch.equal(each, dropping.state_dict()[name])


@pytest.mark.parametrize("name", ["mlp-", "mlp-0", "mlp-5x", "mlp-50-", "mlp--5", "mlp-1.5"])
def test_widths_that_are_none_are_refused(name):
    with pytest.raises(OptionError, match="widths of the hidden layers"):
        build(name, (13,), 3)


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnet20", 269_722), ("resnet32", 464_154), ("resnet56", 853_018)],
)
def test_residual_nets_have_the_published_number_of_parameters(name, count):
    model = build(name, (3, 32, 32), 10)
    assert sum(each.numel() for each in model.parameters()) == count


def test_the_given_resnet20_reaches_its_known_accuracy():
    images, weights = SHARED / "cifar10_prefix.npz", SHARED / "cifar10_resnet20.safetensors"
    if not images.exists() or not weights.exists():
        pytest.skip(f"no CIFAR-10 images and ResNet-20 weights in {SHARED}")
    model = build("resnet20", (3, 32, 32), 10).eval()
    load_weights(model, weights)
    with np.load(images) as file:
        x, y = torch.tensor(file["x_test"]), torch.tensor(file["y_test"])
    with torch.no_grad():
        predicted = torch.cat([model(NORMALISE(part)).argmax(1) for part in x.split(128)])
    assert (predicted == y).float().mean().item() == pytest.approx(0.9164, abs=1 / 1017)


@pytest.mark.parametrize("name", MODELS)
def test_vmap_over_stacked_weights_equals_the_loop(name):
    models = [build(name, (3, 8, 8), 4, seed=seed).eval() for seed in range(3)]
    parameters, buffers = stack_module_state(models)
    x = torch.rand(5, 3, 8, 8)

    def call(weights, buffers):
        return functional_call(models[0], (weights, buffers), (x,))

    together = torch.vmap(call)(parameters, buffers)
    alone = torch.stack([model(x) for model in models])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet20", "vit"])
def test_gradients_under_vmap_equal_those_of_the_loop(name):
    models = [build(name, (3, 8, 8), 4, seed=seed).double().eval() for seed in range(2)]
    parameters, buffers = stack_module_state(models)
    x = torch.rand(5, 3, 8, 8, dtype=torch.float64)

    def call(weights, buffers):
        return functional_call(models[0], (weights, buffers), (x,))

    torch.vmap(call)(parameters, buffers).square().sum().backward()
    for model in models:
        model(x).square().sum().backward()
    for index, model in enumerate(models):
        for key, weight in model.named_parameters():
            torch.testing.assert_close(parameters[key].grad[index], weight.grad)


@pytest.mark.parametrize("name", MODELS)
def test_every_owner_of_parameters_can_draw_them_anew(name):
    model = build(name, (3, 8, 8), 4, seed=0)
    before = copy.deepcopy(model.state_dict())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for module in model.modules():
            if any(True for _ in module.parameters(recurse=False)):
                module.reset_parameters()
    matrices = {key: weight for key, weight in model.named_parameters() if weight.ndim > 1}
    assert matrices
    assert all(not torch.equal(before[key], weight) for key, weight in matrices.items())


def test_a_seed_decides_the_weights_and_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    first, second = (build("cnn", (1, 8, 8), 3, seed=5).state_dict() for _ in range(2))
    other = build("cnn", (1, 8, 8), 3, seed=6).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["linear.weight"], other["linear.weight"])


def test_an_unknown_name_suggests_a_near_one():
    with pytest.raises(OptionError, match="did you mean 'resnet20'"):
        build("resnett20", (3, 32, 32), 10)


@pytest.mark.parametrize("name", ["cnn", "resnet20", "vit"])
def test_image_nets_refuse_features(name):
    with pytest.raises(OptionError, match=r"got \(13,\)"):
        build(name, (13,), 10)


def test_a_vit_refuses_images_that_patches_do_not_fill():
    with pytest.raises(OptionError, match="multiples of patch=4"):
        build("vit", (1, 9, 9), 10)


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "my_nets_for_a_test.py").write_text(
        "from math import prod\n"
        "from torch import nn\n"
        "def small(shape, outputs):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(prod(shape), outputs))\n"
        "def number(shape, outputs):\n"
        "    return 3\n"
        "def lonely(shape):\n"
        "    return nn.Linear(1, 1)\n"
        "value = 3\n"
    )
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("own_module")
def test_a_net_of_ones_own_is_found_in_the_current_directory():
    model = build("my_nets_for_a_test:small", (1, 4, 4), 3)
    assert isinstance(model, nn.Module)
    assert model(torch.zeros(2, 1, 4, 4)).shape == (2, 3)


@pytest.mark.usefixtures("own_module")
@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("no_such_module_at_all:small", OptionError, "cannot import"),
        ("my_nets_for_a_test:smal", OptionError, "found none"),
        ("my_nets_for_a_test:value", OptionError, "found int"),
        ("my_nets_for_a_test:lonely", OptionError, r"lonely\(input_shape, num_outputs\)"),
        ("my_nets_for_a_test:number", UnsupportedModelError, "got int"),
        ("my_nets_for_a_test:", OptionError, "unknown model"),
    ],
)
def test_a_net_of_ones_own_that_cannot_be_built_says_why(name, error, message):
    with pytest.raises(error, match=message):
        build(name, (1, 4, 4), 3)


def test_weights_go_to_disk_and_back(tmp_path):
    saved, loaded = (build("cnn", (1, 8, 8), 3, seed=seed) for seed in (0, 1))
    save_file(saved.state_dict(), tmp_path / "weights.safetensors")
    load_weights(loaded, tmp_path / "weights.safetensors")
    want, got = saved.state_dict(), loaded.state_dict()
    assert all(torch.equal(want[key], got[key]) for key in want)


def test_weights_that_do_not_fit_are_listed(tmp_path):
    model = build("mlp", (4,), 2)
    state = dict(build("mlp", (5,), 2).state_dict())
    state["foreign"] = state.pop("linear2.bias")
    save_file(state, tmp_path / "weights.safetensors")
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(LoadError) as caught:
        load_weights(model, tmp_path / "weights.safetensors")
    message = str(caught.value)
    assert "missing: linear2.bias" in message
    assert "unexpected: foreign" in message
    assert "linear1.weight has shape (64, 5) instead of (64, 4)" in message
    assert all(torch.equal(before[key], each) for key, each in model.state_dict().items())


@pytest.mark.parametrize("content", [None, b"", b"no safetensors at all"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LoadError, match="expected a safetensors file"):
        load_weights(build("mlp", (4,), 2), path)
