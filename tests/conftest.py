import importlib.util

import pytest
import torch

if importlib.util.find_spec("torchvision") and torch.version.cuda is None:
    # A torchvision wheel beside a CPU build of torch lacks its compiled operators and fails on
    # import, which torchmetrics attempts. Two empty definitions are all it asks for.
    _operators = torch.library.Library("torchvision", "DEF")
    _operators.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _operators.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

torch.set_num_threads(1)  # the tensors are small, and the workers are the threads


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(20_260)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(1234)
