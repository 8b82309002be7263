import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bayesify.weights.structured import ACTING, METADATA, StructuredWeight


def test_the_lists_of_operations_hold_what_they_should():
    assert {F.linear, F.conv1d, F.conv2d, F.conv3d} < ACTING
    assert all(callable(each) for each in METADATA)
    reshaping = {Tensor.t, Tensor.T.__get__, Tensor.mT.__get__, Tensor.data.__get__, Tensor.view}
    assert not METADATA & reshaping


def test_the_abstract_weight_asks_for_its_two_methods():
    bare = torch.ones(2, 2).as_subclass(StructuredWeight)
    with pytest.raises(NotImplementedError):
        bare.dense()
    with pytest.raises(NotImplementedError):
        F.linear(torch.ones(1, 2), bare)
