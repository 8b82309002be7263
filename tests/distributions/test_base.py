import torch

from bayesify.distributions.base import Located


class Certain(Located):
    """No noise at all."""

    @classmethod
    def from_state(cls, state):
        return cls({name.removeprefix("loc."): each for name, each in state.items()})

    @property
    def scale(self):
        return {name: torch.zeros_like(each) for name, each in self.loc.named().items()}

    def sample(self, n, *, generator=None):
        return {name: each.expand(n, *each.shape) for name, each in self.loc.named().items()}


def test_means_are_copied_learnt_and_given_back_without_a_graph():
    mean = torch.tensor([1.0, 2.0])
    q = Certain({"a.weight": mean, "b": torch.zeros(3)})
    mean.add_(1)
    assert q.names == ["a.weight", "b"]
    assert q.point()["a.weight"].tolist() == [1, 2]
    assert not q.point()["a.weight"].requires_grad
    assert all(each.requires_grad for each in q.parameters())


def test_a_sample_is_the_weights_themselves():
    q = Certain({"a": torch.arange(2.0)})
    draw = {name: each[0] for name, each in q.sample(3).items()}
    assert q.weights(draw) is draw
    (weight,) = q.local_weights().values()
    assert weight.tolist() == [0, 1]
    weight.sum().backward()
    assert next(q.parameters()).grad.tolist() == [1, 1]
