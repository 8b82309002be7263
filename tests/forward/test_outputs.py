import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from bayesify import first_layer, last_layer, models
from bayesify.core.batches import rows
from bayesify.core.errors import UnsupportedModelError
from bayesify.distributions.mean_field import MeanField
from bayesify.distributions.particles import Particles
from bayesify.forward import chunking
from bayesify.forward import outputs as forward
from bayesify.likelihoods import Categorical
from bayesify.tracing.linear_maps import roles
from bayesify.tracing.trace import call
from bayesify.weights.named import weights_of
from bayesify.weights.taped import Tape
from zoo import NETS, BranchingNet


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def vit() -> tuple[nn.Module, Tensor]:
    return models.build("vit", (1, 8, 8), 3, seed=0), torch.randn(3, 1, 8, 8)


def net_and_batch(name: str) -> tuple[nn.Module, Tensor]:
    model, x = vit() if name == "vit" else (NETS[name].model(), NETS[name].inputs(3))
    return model.eval(), x


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer", "vit"])
def test_all_at_once_is_one_after_the_other(name):
    model, x = net_and_batch(name)
    q = MeanField.around(model, scale=0.1)
    at_once = forward.outputs(model, q, x, 6, generator=seeded())
    loop = forward.outputs(model, q, x, 6, generator=seeded(), vectorize=False)
    assert at_once.shape == (6, 3, 3)
    torch.testing.assert_close(at_once, loop, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["transformer", "vit", "cnn"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_gradients_of_all_at_once_are_those_of_the_loop(name, training):
    model, x = net_and_batch(name)
    model.train(training)
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.MultiheadAttention):
            module.p = module.dropout = 0.0
    models_ = [model, net_and_batch(name)[0]]
    gradients = []
    for vectorize in (True, False):
        q = Particles.of_models(models_)
        forward.outputs(model, q, x, vectorize=vectorize).square().sum().backward()
        gradients.append([each.grad for each in q.parameters()])
    for fast, slow in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-4)


def test_a_branch_on_data_is_refused_with_the_way_out():
    model, x = BranchingNet(), torch.randn(5, 4)
    q = MeanField.around(model)
    with pytest.raises(UnsupportedModelError, match=r"data-dependent .* pass `vectorize=False`"):
        forward.outputs(model, q, x, 3)
    assert forward.outputs(model, q, x, 3, vectorize=False).shape == (3, 5, 3)
    assert forward.outputs(model, q, x, 1).shape == (1, 5, 3)


def test_a_recurrent_net_is_refused_with_the_way_out():
    model, x = NETS["lstm"].model(), NETS["lstm"].inputs(3)
    with pytest.raises(UnsupportedModelError, match="pass `vectorize=False`"):
        forward.outputs(model, MeanField.around(model), x, 3)
    assert not chunking.can_vectorize(model)
    assert chunking.can_vectorize(NETS["transformer"].model())


def test_errors_of_the_model_itself_pass_as_they_are():
    model = nn.Linear(4, 3)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        forward.outputs(model, MeanField.around(model), torch.ones(2, 5), 1)


def test_one_sample_needs_no_vmap(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("vmap was called")

    monkeypatch.setattr(torch, "vmap", refuse)
    model, x = net_and_batch("mlp")
    q = MeanField.around(model)
    forward.outputs(model, q, x, 1)
    forward.outputs(model, q, x, 5, chunk_size=1)
    forward.outputs(model, q, x, 5, vectorize=False)
    with pytest.raises(AssertionError, match="vmap was called"):
        forward.outputs(model, q, x, 2)


@pytest.mark.parametrize("size", [1, 3, 8, 11, 64])
def test_chunks_change_nothing(size):
    model, x = net_and_batch("mlp")
    q = MeanField.around(model, scale=0.1)
    whole = forward.outputs(model, q, x, 20, generator=seeded())
    part = forward.outputs(model, q, x, 20, generator=seeded(), chunk_size=size)
    torch.testing.assert_close(whole, part, rtol=1e-5, atol=1e-6)


def test_a_chunk_is_what_runs_at_once(monkeypatch):
    seen = []
    real = torch.vmap
    monkeypatch.setattr(
        torch,
        "vmap",
        lambda f, **how: lambda draw: seen.append(len(draw["0.weight"])) or real(f, **how)(draw),
    )
    model, x = net_and_batch("mlp")
    forward.outputs(model, MeanField.around(model), x, 10, chunk_size=4)
    assert max(seen) == 4


def test_a_random_last_layer_runs_the_rest_once():
    net = nn.Sequential(*(nn.Linear(64, 64) for _ in range(5)), nn.Linear(64, 3))
    q, x = MeanField.around(net, where=last_layer), torch.randn(8, 64)
    flops = []
    for vectorize in (True, False):
        with FlopCounterMode(display=False) as counter:
            forward.outputs(net, q, x, 16, vectorize=vectorize)
        flops.append(counter.get_total_flops())
    assert 0 < flops[0] < 0.2 * flops[1]


def test_outputs_are_differentiable_in_the_inputs():
    model, x = net_and_batch("cnn")
    q = MeanField.around(model, scale=0.1)
    x.requires_grad_()
    grads = []
    for vectorize in (True, False):
        out = forward.outputs(model, q, x, 4, generator=seeded(), vectorize=vectorize)
        grads.append(torch.autograd.grad(out.square().sum(), x)[0])
    assert grads[0].abs().sum() > 0
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-4)


def test_the_callers_mode_is_used_and_left():
    model, x = NETS["cnn"].model(), NETS["cnn"].inputs(8)
    q = Particles.of_models([model])
    forward.outputs(model.train(), q, x)
    moved = q.statistics.named()["1.running_mean"].clone()
    forward.outputs(model.eval(), q, x)
    assert moved.abs().sum() > 0
    assert torch.equal(q.statistics.named()["1.running_mean"], moved)
    assert not model.training


@pytest.mark.parametrize("training", [True, False])
def test_the_fast_attention_switch_is_put_back(training):
    model, x = net_and_batch("transformer")
    before = torch.backends.mha.get_fastpath_enabled()
    forward.outputs(model.train(training), MeanField.around(model), x, 3)
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_local_outputs_have_the_sample_axis_and_reach_the_scales():
    model, x = net_and_batch("mlp")
    q = MeanField.around(model, scale=0.1)
    out = forward.local_outputs(model, q, x, 3, generator=seeded())
    assert out.shape == (3, 3, 3)
    assert not torch.allclose(out[0], out[1])
    out.sum().backward()
    assert all(each.grad.abs().sum() > 0 for each in q.rho.parameters())


@pytest.mark.parametrize("net", ["cnn", "transformer", "lstm"])
def test_local_outputs_work_under_autocast(net):
    model, x = net_and_batch(net)
    if net == "cnn":  # a frozen convolution and batch norm behind a random one
        deeper = [nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)]
        model = nn.Sequential(*model[:2], *deeper, *model[2:]).eval()
    q = MeanField.around(model.requires_grad_(False), scale=0.1, where=first_layer, example=x)
    full = forward.local_outputs(model, q, x, 1, generator=seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = forward.local_outputs(model, q, x, 1, generator=seeded())
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), full, rtol=0.1, atol=0.1)
    out.float().sum().backward()
    assert all(each.grad.abs().sum() > 0 for each in q.parameters())


def test_readout_turns_objects_into_tensors():
    model, x = NETS["mapping"].model(), NETS["mapping"].inputs(3)
    q = MeanField.around(model)
    assert forward.outputs(model, q, x, 4).shape == (4, 3, 3)
    hidden = forward.outputs(model, q, x, 4, readout=lambda output: output.hidden)
    assert hidden.shape == (4, 3, 6)
    with pytest.raises(UnsupportedModelError, match=r"returned tuple, .* pass `readout=`"):
        forward.read_tensor((torch.ones(1),))


# --- the tape


def tape_of(name: str, members: int, *, vectorize: bool = True) -> tuple[Tensor, Tape, list[str]]:
    """A backward pass of a loss of all members, float64, with weights of their own."""
    model, x = net_and_batch(name)
    model, x = model.double(), x.double()
    layers = [each.weight for each in roles(model, x).maps]
    weights = {
        n: e + 0.3 * torch.randn(8, *e.shape, generator=seeded()).to(e)
        for n, e in weights_of(model).items()
    }
    weights = {n: e[:members] for n, e in weights.items()}
    out, tape = forward.tape(model, weights, lambda one: one, x, layers=layers, vectorize=vectorize)
    torch.autograd.grad(out.sin().sum(), [tape.anchor])
    return out, tape, layers


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
def test_the_tape_of_all_members_at_once_is_that_of_each_alone(name):
    out, tape, layers = tape_of(name, 4)
    loop_out, loop, _ = tape_of(name, 4, vectorize=False)
    one_out, one, _ = tape_of(name, 1)
    assert layers
    assert out.shape == (4, 3, 3)
    assert (len(tape.calls), len(loop.calls), len(one.calls)) == (1, 4, 1)
    torch.testing.assert_close(out, loop_out)
    torch.testing.assert_close(out[:1], one_out)
    for layer in layers:
        for kind in (Tape.inputs, Tape.gradients):
            whole, part, alone = (kind(each, layer) for each in (tape, loop, one))
            assert len(whole) == len(part) == len(alone) == 1
            torch.testing.assert_close(whole[0].expand_as(part[0]), part[0])
            torch.testing.assert_close(part[0][:1], alone[0])
        assert tape.gradients(layer)[0].flatten(1).norm(dim=1).min() > 0
        assert len(tape.gradients(layer)[0]) == 4


def test_what_all_members_see_is_noted_once():
    _, tape, layers = tape_of("mlp", 4)
    assert [len(tape.inputs(each)[0]) for each in layers] == [1, 4, 4]
    _, loop, _ = tape_of("mlp", 4, vectorize=False)
    assert [len(loop.inputs(each)[0]) for each in layers] == [4, 4, 4]


@pytest.mark.parametrize("vectorize", [True, False])
def test_the_tape_holds_both_uses_of_a_weight(vectorize):
    class Twice(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(super().forward(x).tanh())

    model, x = Twice(4, 4, bias=False).double(), torch.randn(5, 4).double()
    weights = torch.randn(3, 4, 4).double()
    out, tape = forward.tape(
        model, weights, lambda one: {"weight": one}, x, layers=["weight"], vectorize=vectorize
    )
    torch.autograd.grad(out.square().sum(), [tape.anchor])
    (first, second), gradients = tape.inputs("weight"), tape.gradients("weight")
    hidden = (x @ weights.mT).tanh()
    slope = 2 * hidden @ weights.mT
    torch.testing.assert_close(first.expand(3, 5, 4), x.expand(3, 5, 4))
    torch.testing.assert_close(second, hidden)
    torch.testing.assert_close(gradients[0], (slope @ weights) * (1 - hidden.square()))
    torch.testing.assert_close(gradients[1], slope)


def test_a_second_backward_pass_overwrites_the_tape():
    model, x = net_and_batch("mlp")
    weights = {n: torch.randn(2, *e.shape) for n, e in weights_of(model).items()}
    out, tape = forward.tape(model, weights, lambda one: one, x, layers=["4.weight"])
    torch.autograd.grad(out.sum(), [tape.anchor], retain_graph=True)
    torch.autograd.grad(7 * out.sum(), [tape.anchor])
    assert torch.equal(tape.gradients("4.weight")[0], torch.full((2, 3, 3), 7.0))


def test_a_loss_of_one_member_leaves_the_others_without_gradient():
    model, x = net_and_batch("mlp")
    weights = {n: torch.randn(2, *e.shape) for n, e in weights_of(model).items()}
    out, tape = forward.tape(model, weights, lambda one: one, x, layers=["0.weight"])
    torch.autograd.grad(out[1].sum(), [tape.anchor])
    gradient = tape.gradients("0.weight")[0]
    assert gradient[0].abs().sum() == 0
    assert gradient[1].abs().sum() > 0


def test_a_recurrent_net_is_taped_in_a_loop_or_refused_with_the_way_out():
    _, tape, layers = tape_of("lstm", 3, vectorize=False)
    assert layers == ["head.weight"]
    assert tape.gradients("head.weight")[0].shape == (3, 3, 3)
    assert tape.is_output("head.weight")
    with pytest.raises(UnsupportedModelError, match="pass `vectorize=False`"):
        tape_of("lstm", 3)


def test_the_tape_reads_objects_through_readout():
    model, x = NETS["mapping"].model(), NETS["mapping"].inputs(3)
    weights = {n: torch.randn(2, *e.shape) for n, e in weights_of(model).items()}
    out, tape = forward.tape(model, weights, lambda one: one, x, layers=["head.weight"])
    assert out.shape == (2, 3, 3)
    assert tape.is_output("head.weight")
    hidden, tape = forward.tape(
        model, weights, lambda one: one, x, layers=["head.weight"], readout=lambda out: out.hidden
    )
    assert hidden.shape == (2, 3, 6)
    assert not tape.is_output("head.weight")


def test_the_tape_leaves_the_model_alone():
    model, x = net_and_batch("cnn")
    before = {name: each.clone() for name, each in model.state_dict().items()}
    tape_of("cnn", 2)
    weights = {n: torch.randn(2, *e.shape) for n, e in weights_of(model).items()}
    buffers = {n: e.expand(2, *e.shape).clone() for n, e in model.named_buffers()}
    out, tape = forward.tape(
        model.train(), weights | buffers, lambda one: one, x, layers=["0.weight", "5.weight"]
    )
    torch.autograd.grad(out.sum(), [tape.anchor])
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    assert all(each.grad is None for each in model.parameters())
    assert not torch.equal(buffers["1.running_mean"][0], before["1.running_mean"])


def log_prob(outputs: Tensor, target: Tensor) -> Tensor:
    return Categorical().log_prob(outputs[None], target).sum()


@pytest.mark.parametrize("name", NETS)
def test_squared_gradients_are_those_of_one_example_after_the_other(name):
    net = NETS[name]
    model, x, y = net.model().eval(), net.inputs(5), torch.tensor([0, 1, 2, 1, 0])
    want = {n: torch.zeros_like(each) for n, each in weights_of(model).items()}
    for b in range(5):
        model.zero_grad()
        out = forward.read_tensor(call(model, rows(x, slice(b, b + 1))))
        log_prob(out, y[b : b + 1]).backward()
        for n, each in model.named_parameters():
            want[n] += each.grad**2
    for vectorize in {net.vectorizes, False}:
        for size in (None, 2):
            got = forward.squared_gradients(
                model, weights_of(model), x, y, log_prob, vectorize=vectorize, chunk_size=size
            )
            for n, each in want.items():
                torch.testing.assert_close(got[n], each, rtol=1e-5, atol=1e-6 * each.max().item())


def test_squared_gradients_are_of_the_named_weights_at_their_values():
    model, x, y = NETS["mlp"].model(), NETS["mlp"].inputs(5), torch.arange(5) % 3
    model[0].weight.requires_grad_(False)
    at = {"0.weight": torch.zeros(8, 4)}
    with torch.no_grad():
        for vectorize in (True, False):
            got = forward.squared_gradients(model, at, x, y, log_prob, vectorize=vectorize)
            assert list(got) == ["0.weight"]
            assert (got["0.weight"] > 0).any()
            assert not got["0.weight"].requires_grad
    assert not at["0.weight"].requires_grad
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed[0].weight.zero_()
    same = forward.squared_gradients(changed, {"0.weight": changed[0].weight}, x, y, log_prob)
    torch.testing.assert_close(same["0.weight"], got["0.weight"])


def test_squared_gradients_of_half_precision_are_summed_in_single():
    model, x, y = NETS["mlp"].model().bfloat16(), NETS["mlp"].inputs(5), torch.arange(5) % 3
    got = forward.squared_gradients(model, weights_of(model), x.bfloat16(), y, log_prob)
    assert {each.dtype for each in got.values()} == {torch.float32}


def test_a_weight_that_an_example_does_not_reach_has_no_gradient_there():
    model = nn.ModuleDict({"used": nn.Linear(4, 3), "unused": nn.Linear(4, 3)})
    model.forward = lambda x: model["used"](x)
    for vectorize in (True, False):
        got = forward.squared_gradients(
            model,
            weights_of(model),
            torch.randn(3, 4),
            torch.arange(3),
            log_prob,
            vectorize=vectorize,
        )
        assert (got["unused.weight"] == 0).all()
        assert (got["used.weight"] > 0).all()


def test_squared_gradients_refuse_what_vmap_cannot_run_and_checkpoints():
    x, y = torch.randn(4, 4), torch.arange(4) % 3
    model = BranchingNet()
    with pytest.raises(
        UnsupportedModelError, match=r"all examples at once.*pass `vectorize=False`"
    ):
        forward.squared_gradients(model, weights_of(model), x, y, log_prob)

    class Checkpointed(BranchingNet):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(checkpoint(self.first, x, use_reentrant=False))

    model = Checkpointed()
    with pytest.raises(UnsupportedModelError, match="checkpointing"):
        forward.squared_gradients(model, weights_of(model), x, y, log_prob, vectorize=False)
