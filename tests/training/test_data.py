import torch

from bayesify.training.data import TrainingData

X, Y = torch.randn(10, 4), torch.arange(10)


def parts():
    return zip(X.split(4), Y.split(4), strict=True)


def test_a_loop_of_ones_own_is_counted_in_one_pass():
    data = TrainingData.of(parts)
    assert (data.num_data, data.steps_per_epoch, data.different) == (10, 3, 10)
    assert torch.equal(data.example, X[:4])
    assert torch.equal(data.smallest[1], Y[8:])
    assert torch.equal(torch.cat(list(data.inputs())), X)
    assert not data.is_augmented()


def test_what_is_known_wins():
    data = TrainingData.of(parts, num_data=50, example=X[:1])
    assert (data.num_data, data.different, len(data.example)) == (50, 50, 1)
