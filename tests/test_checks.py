import math
import warnings

import pytest
import torch
from torch import nn

from bayesify.checks import check_data, check_held_out
from bayesify.errors import DataError, ShapeError
from bayesify.forward import read_tensor
from bayesify.likelihoods import Categorical
from bayesify.loading import as_loader

X = torch.randn(20, 4)
Y = torch.arange(20) % 3


def check(x, y, model=None):
    loader = as_loader((x, y), batch_size=8, shuffle=False)
    return check_data(loader, model or nn.Linear(4, 3), Categorical(), read_tensor)


def test_good_data_give_the_first_batch_and_the_number_of_batches():
    inputs, target, batches = check(X, Y)
    assert torch.equal(inputs, X[:8])
    assert torch.equal(target, Y[:8])
    assert batches == 3


def test_every_batch_is_looked_at():
    bad = X.clone()
    bad[19, 0] = math.nan
    with pytest.raises(DataError, match="batch 2: 1 of 16 numbers in the inputs"):
        check(bad, Y)
    high = Y.clone()
    high[-1] = 9
    with pytest.raises(DataError, match="labels reach from"):
        check(X, high)


def test_classes_that_come_in_different_batches_are_several():
    check(X, torch.cat([torch.zeros(16), torch.ones(4)]).long())


def test_a_mapping_with_too_few_targets_is_told():
    loader = [{"input": X[:5], "labels": Y[:4]}]
    with pytest.raises(ShapeError, match="batch 0: 5 inputs, but 4 targets"):
        check_data(loader, nn.Linear(4, 3), Categorical(), read_tensor)


def test_the_model_is_called_twice_in_eval_mode_and_left_as_it_was():
    seen = []
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))
    model.register_forward_hook(lambda module, *_: seen.append(module.training))
    check(X, Y, model)
    assert seen == [False, False]
    assert model.training


def test_held_out_examples_are_checked_too_and_may_be_of_one_class():
    def held_out(x, y):
        loader = as_loader((x, y), batch_size=8, shuffle=False)
        check_held_out(loader, nn.Linear(4, 3), Categorical(), read_tensor)

    held_out(X[:1], Y[:1])
    bad = X.clone()
    bad[19, 0] = math.nan
    with pytest.raises(DataError, match=r"^validation: batch 2: 1 of 16 numbers in the inputs"):
        held_out(bad, Y)
    with pytest.raises(DataError, match=r"^validation: labels reach from"):
        held_out(X, Y + 5)


class Noisy(nn.Linear):
    def forward(self, x):
        return torch.nn.functional.dropout(super().forward(x), 0.3, training=True)


def test_a_network_that_is_random_in_eval_mode_is_told():
    with pytest.warns(UserWarning, match="Noisy is random in eval mode: two calls .* not repeat"):
        check(X, Y, Noisy(4, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(X, Y, nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.BatchNorm1d(8)))


class Speaking(nn.Module):
    """Logits (batch, positions, tokens), as language models return them."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 5), nn.Linear(5, 7)

    def forward(self, input_ids):
        return self.head(self.embed(input_ids))


def test_labels_that_are_the_text_itself_are_refused_and_shifted_ones_taken():
    ids = torch.randint(7, (4, 6), generator=torch.Generator().manual_seed(0))
    second = lambda output: output.movedim(-1, 1)  # noqa: E731
    for readout in (second, read_tensor):
        batch = {"input_ids": ids, "labels": ids.clone()}
        with pytest.raises(DataError, match=r"labels equal the inputs `input_ids` .*Shift them"):
            check_data([batch], Speaking(), Categorical(), readout)
    shifted = [{"input_ids": ids[:, :-1], "labels": ids[:, 1:]}]
    with pytest.raises(ShapeError, match=r"classes come last.* readout=lambda output: output.mov"):
        check_data(shifted, Speaking(), Categorical(), read_tensor)
    check_data(shifted, Speaking(), Categorical(), second)
