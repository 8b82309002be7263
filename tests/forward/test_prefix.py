import torch
from torch import Tensor, nn

from bayesify.forward.prefix import ids_of, output_tensors, prefix, tensors_in
from zoo import NETS, ModelOutput


def named(steps) -> list[str]:
    return [each.__name__ for each in steps]


def test_the_prefix_ends_at_the_first_random_weight():
    net, x = NETS["mlp"].model(), NETS["mlp"].inputs(3)
    found, output = prefix(net, {"2.bias"}, x)
    assert named(found.steps) == ["linear", "relu"]
    assert found.reads == {"0.weight", "0.bias"}
    assert found.frontier == {(1, 0)}
    assert not found.overwritten
    assert torch.equal(output, net(x))


def test_what_is_computed_of_random_weights_alone_ends_it_too():
    net = nn.Sequential(
        nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 3)
    )
    found, _ = prefix(net, {"1.parametrizations.weight.original0"}, torch.ones(2, 4))
    assert named(found.steps) == ["linear"]


def test_a_returned_activation_is_read():
    class Both(nn.Sequential):
        def forward(self, x: Tensor) -> ModelOutput:
            hidden = self[0](x)
            return ModelOutput(self[1](hidden.relu()), hidden)

    found, _ = prefix(Both(nn.Linear(4, 4), nn.Linear(4, 3)), {"1.weight"}, torch.ones(2, 4))
    assert found.frontier == {(0, 0), (1, 0)}


def test_facts_are_no_operations():
    class Asking(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            assert self.bias.shape == (3,)
            assert self.bias.requires_grad
            with torch.enable_grad():
                y = x.relu().reshape(len(x), self.in_features)
            return super().forward(y)

    found, _ = prefix(Asking(4, 3), {"bias"}, torch.ones(2, 4))
    assert named(found.steps) == ["relu", "reshape"]


def test_writing_into_the_inputs_is_seen():
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 4), nn.Linear(4, 3))
    assert prefix(net, {"2.weight"}, torch.ones(2, 4))[0].overwritten
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 3))
    found, _ = prefix(net.requires_grad_(False), {"2.weight"}, torch.ones(2, 4))
    assert not found.overwritten
    assert found.frontier == {(0, 0), (1, 0)}  # one tensor, returned twice


def test_a_pass_without_random_weights_has_no_end():
    found, _ = prefix(NETS["cnn"].model(), {"no such"}, NETS["cnn"].inputs(2))
    assert not found.over


def test_a_tied_weight_is_found_by_any_of_its_names():
    model = NETS["tied"].model()
    assert ids_of(model, {"score.weight"}) == ids_of(model, {"embed.weight"})


def test_tensors_are_found_in_arguments_and_outputs():
    a, b, c = torch.ones(1), torch.ones(2), torch.ones(3)
    assert list(tensors_in(([a, (b, 1)], {"x": slice(None, c)}))) == [a, b, c]
    normal = torch.distributions.Normal(a, a)
    found = list(output_tensors({"one": ModelOutput(a, b), "two": [c, normal]}))
    assert [each.numel() for each in found][:3] == [1, 2, 3]
    assert len(found) >= 5
