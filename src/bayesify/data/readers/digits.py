"""Digits: 1,797 handwritten digits, 8x8 grey, which come with scikit-learn."""

import torch
from sklearn.datasets import load_digits

from bayesify.data.raw import Raw, Request
from bayesify.data.splitting import hold_out

TEST_SHARE = 0.25


def read(request: Request) -> Raw:
    """Images (1797, 1, 8, 8) in [0, 1]; a quarter, always the same, is the test part."""
    del request
    images, classes = load_digits(return_X_y=True)
    x = torch.as_tensor(images).float().reshape(-1, 1, 8, 8) / 16
    y = torch.as_tensor(classes).long()
    _, test = hold_out(torch.arange(len(y)), y, share=TEST_SHARE, seed=0, name="digits")
    return Raw("digits", x, y, test_index=test, class_names=tuple("0123456789"))
