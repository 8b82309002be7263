import torch
from torch import nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

from bayesify.distributions.particles import Particles
from bayesify.forward import outputs as forward
from zoo import NETS


def three() -> tuple[list[nn.Module], Particles]:
    models = [NETS["cnn"].model(seed) for seed in range(3)]
    return models, Particles.of_models(models)


def test_members_are_the_models():
    models, q = three()
    x = NETS["cnn"].inputs(4)
    outputs = forward.outputs(models[0].eval(), q, x, vectorize=False)
    for member, out in zip(models, outputs, strict=True):
        torch.testing.assert_close(member.eval()(x), out)


def test_the_number_of_samples_is_the_number_of_members():
    _, q = three()
    assert q.size(1) == q.size(100) == 3
    assert len(q.sample(1)["0.weight"]) == 3


def test_statistics_belong_to_each_member_and_learn_nothing():
    models, q = three()
    assert [name for name in q.names if "running" in name] == ["1.running_mean", "1.running_var"]
    assert not any("running" in name for name, _ in q.named_parameters())
    for chunk in (None, 1, 2):
        before = q.statistics.named()["1.running_mean"].clone()
        forward.outputs(models[0].train(), q, NETS["cnn"].inputs(8), chunk_size=chunk)
        after = q.statistics.named()["1.running_mean"]
        assert (after != before).all(dim=1).all()
        assert not torch.equal(after[0], after[1])


def test_statistics_are_those_of_separate_training_passes():
    models, q = three()
    x = NETS["cnn"].inputs(8)
    forward.outputs(models[0].train(), q, x)
    for number, model in enumerate(models):
        model.train()(x)
        held = tree_map(lambda each, m=number: each[m], q.statistics.named())
        for name, each in model.named_buffers():
            torch.testing.assert_close(held[name], each)


def test_the_point_averages_weights_and_keeps_counts():
    models, q = three()
    with torch.no_grad():
        q.statistics.named()["1.num_batches_tracked"].copy_(torch.tensor([5, 6, 7]))
    point = q.point()
    want = torch.stack([model[0].weight for model in models]).mean(0)
    torch.testing.assert_close(point["0.weight"], want.detach())
    assert point["1.num_batches_tracked"] == 5
    functional_call(models[0], point, (NETS["cnn"].inputs(2),))


def test_a_member_that_shares_is_the_network_itself():
    net = NETS["cnn"].model()
    net.requires_grad_(True)
    next(net.parameters()).requires_grad_(False)
    q = Particles.sharing(net)
    assert q.frozen == [next(iter(dict(net.named_parameters())))]
    with torch.no_grad():
        for each in [*q.members.parameters(), *q.statistics.buffers()]:
            each.add_(1)
    held = dict(net.named_parameters()) | dict(net.named_buffers())
    for name, each in q.stacked().items():
        assert each.data_ptr() == held[name].data_ptr()
        torch.testing.assert_close(each[0].detach(), held[name].detach())
