import math
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from bayesify.core.batches import Unbatched
from bayesify.core.errors import DataError, ShapeError, UnsupportedModelError
from bayesify.data.loading import as_loader
from bayesify.forward.outputs import read_tensor
from bayesify.likelihoods import Categorical
from bayesify.training.checks import check_data, check_held_out

X = torch.randn(20, 4)
Y = torch.arange(20) % 3


def check(x, y, model=None):
    loader = as_loader((x, y), batch_size=8, shuffle=False)
    return check_data(loader, model or nn.Linear(4, 3), Categorical(), read_tensor)


def test_good_data_give_the_first_inputs_and_the_number_of_batches():
    found = check(X, Y)
    assert torch.equal(found.first, X[:8])
    assert (found.batches, found.examples) == (3, 20)
    assert torch.equal(found.smallest[0], X[16:])
    assert torch.equal(found.smallest[1], Y[16:])


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


def test_the_model_is_called_in_eval_mode_and_left_as_it_was():
    seen = []
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))
    model.register_forward_hook(lambda module, *_: seen.append(module.training))
    check(X, Y, model)
    assert not any(seen)
    assert len(seen) == 4  # the first batch twice, the smallest, and one example
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


def fit_on(inputs, y, model, batch=8):
    def join(rows):
        index = torch.tensor(rows)
        return inputs(index), y[index]

    loader = DataLoader(range(len(y)), batch, collate_fn=join)
    return check_data(loader, model, Categorical(), read_tensor)


class Masked(nn.Module):
    """Attention of T positions, which a mask (T, T) is added to."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x, mask):
        scores = x @ x.transpose(1, 2) + mask
        return self.head((scores.softmax(-1) @ x).mean(1))


LONG = torch.randn(20, 8, 4, generator=torch.Generator().manual_seed(0))
CAUSAL = torch.full((8, 8), -math.inf).triu(1)


def test_a_mask_as_long_as_the_batch_is_told_and_a_marked_one_is_taken():
    fit_on(lambda i: (LONG[i], CAUSAL), Y, Masked(), batch=5)
    for batch, where in ((8, "batch 0"), (10, None)):
        if where:
            with pytest.raises(DataError, match=r"tensor 1 of the inputs, of shape \(8, 8\)"):
                fit_on(lambda i: (LONG[i], CAUSAL), Y, Masked(), batch=batch)
        fit_on(lambda i: (LONG[i], Unbatched(CAUSAL)), Y, Masked(), batch=batch)


def test_a_length_that_only_some_batches_have_is_chance():
    with pytest.raises(DataError, match=r"batch 1: tensor 1 .*bayesify.Unbatched"):
        fit_on(lambda i: (LONG[i], CAUSAL), Y, Masked(), batch=12)  # batches of 12 and 8


def test_minus_infinity_is_lacking_outside_of_a_mask():
    bad = X.clone()
    bad[3, 0] = -math.inf
    with pytest.raises(DataError, match="or a mask that holds 0 and -inf alone"):
        check(bad, Y)


def test_nodes_of_a_graph_are_told_to_be_positions_of_one_example():
    edges = torch.tensor([[0, 19, 5], [7, 3, 19]])

    class Graph(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x, edges):
            if x.ndim == 3:
                return self(x[0], edges).T[None]
            return self.head(x.index_add(0, edges[1], x[edges[0]]))

    def looked(x, y):
        loader = [((x, edges), y)]
        return check_data(loader, Graph(), Categorical(), read_tensor)

    with pytest.raises(DataError, match=r"x\[None\] and y\[None\]"):
        looked(X, Y)
    assert looked(X[None], Y[None]).examples == 1


def test_batch_norm_without_statistics_is_told():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(UnsupportedModelError, match=r"`1` of Sequential .*without statistics"):
        check(X, Y, model)
