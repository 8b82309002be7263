from collections import UserDict

import pytest
import torch

from bayesify.core.batches import batch_size, first_example, split_batch, tensors_of, to_device
from bayesify.core.errors import DataError

X, Y = torch.arange(6.0).view(3, 2), torch.tensor([0, 1, 2])


def test_a_pair_is_inputs_and_target():
    for pair in ((X, Y), [X, Y]):
        inputs, target = split_batch(pair)
        assert inputs is X
        assert target is Y


def test_several_inputs_become_positional_arguments():
    inputs, target = split_batch(([X, X], [0, 1, 2]))
    assert inputs == (X, X)
    assert torch.equal(target, Y)


@pytest.mark.parametrize("key", ["labels", "target"])
@pytest.mark.parametrize("kind", [dict, UserDict])
def test_a_mapping_with_a_target_is_keyword_arguments(key, kind):
    inputs, target = split_batch(kind({"ids": X, key: Y}))
    assert inputs == {"ids": X}
    assert target is Y


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ((X, X, Y), "got 3 items"),
        (X, "got Tensor"),
        ({"ids": X}, r"under 'labels' or 'target', got the keys \['ids'\]"),
    ],
)
def test_other_batches_are_refused(batch, said):
    with pytest.raises(DataError, match=said):
        split_batch(batch)


@pytest.mark.parametrize("inputs", [X, (X, 3), {"ids": X, "flag": True}, UserDict(ids=X)])
def test_tensors_are_found_counted_and_cut(inputs):
    assert [each is X for each in tensors_of(inputs)] == [True]
    assert batch_size(inputs) == 3
    (first,) = tensors_of(first_example(inputs))
    assert torch.equal(first, X[:1])


def test_only_tensors_with_the_batch_axis_are_cut():
    table = torch.ones(7, 2)
    cut = first_example((X, table, torch.tensor(1.0)))
    assert [each.shape for each in cut] == [(1, 2), (7, 2), ()]


def test_inputs_without_batch_are_refused():
    for inputs in (torch.tensor(1.0), (), {"flag": 1}):
        with pytest.raises(DataError, match="expected inputs with a batch axis"):
            batch_size(inputs)


@pytest.mark.parametrize("inputs", [(X, 3), {"ids": X}, UserDict(ids=X)])
def test_everything_moves_to_the_device(inputs):
    moved = to_device(inputs, "meta")
    assert all(each.device.type == "meta" for each in tensors_of(moved))
