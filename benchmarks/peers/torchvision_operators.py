"""Lets torchvision be imported beside a CPU build of torch: import this module before it.

A torchvision wheel beside a CPU build of torch lacks its compiled operators and fails on import,
which laplace-torch, torch-uncertainty and torchmetrics attempt. Two empty definitions are all it
asks for.
"""

import torch

if torch.version.cuda is None:
    OPERATORS = torch.library.Library("torchvision", "DEF")
    OPERATORS.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    OPERATORS.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
