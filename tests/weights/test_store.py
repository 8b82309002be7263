import pytest
import torch

from bayesify.core.errors import UnsupportedModelError
from bayesify.weights.store import Store, part


def test_names_with_dots_come_back_in_their_order():
    tensors = {"b.weight": torch.ones(2), "a": torch.zeros(1), "c.d.e": torch.ones(3)}
    store = Store(tensors, trainable=True)
    assert list(store.named()) == list(tensors)
    assert all(torch.equal(store.named()[name], each) for name, each in tensors.items())


def test_trainable_means_parameters_and_otherwise_buffers():
    tensors = {"a.b": torch.ones(2)}
    assert len(list(Store(tensors, trainable=True).parameters())) == 1
    assert len(list(Store(tensors, trainable=False).buffers())) == 1
    assert Store(tensors, trainable=True).named()["a.b"].requires_grad


def test_it_moves_like_a_module():
    store = Store({"a.b": torch.ones(2)}, trainable=False).double()
    assert store.named()["a.b"].dtype == torch.float64


def test_part_reads_the_state_of_one_store():
    both = torch.nn.Module()
    both.loc = Store({"a.b": torch.ones(2)}, trainable=True)
    both.location = Store({"c": torch.ones(1)}, trainable=True)
    assert list(part(both.state_dict(), "loc")) == ["a.b"]


def test_a_name_with_a_slash_is_refused():
    with pytest.raises(UnsupportedModelError, match="'a/b' holds a '/'"):
        Store({"a/b": torch.ones(1)}, trainable=True)
