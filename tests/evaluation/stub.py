import torch

from bayesify.core.types import Inputs
from bayesify.likelihoods.predictive import (
    ClassPredictive,
    MultiLabelPredictive,
    Predictive,
    RegressionPredictive,
)


class LinearPosterior:
    """Two fixed linear maps as weight samples; what `predict` returns is chosen by `task`."""

    device = torch.device("cpu")

    def __init__(self, task: str, outputs: int = 3) -> None:
        self.task = task
        self.maps = torch.randn(2, 4, outputs, generator=torch.Generator().manual_seed(0))
        self.seen: list[int | None] = []

    def predict(
        self,
        x: Inputs,
        *,
        num_samples: int = 32,
        generator: torch.Generator | None = None,
        chunk_size: int | None = None,
    ) -> Predictive:
        del num_samples, generator
        self.seen.append(chunk_size)
        assert isinstance(x, torch.Tensor)
        outputs = torch.einsum("b...i,sio->sbo...", x, self.maps)
        if self.task == "classification":
            return ClassPredictive(outputs)
        if self.task == "multilabel":
            return MultiLabelPredictive(outputs)
        return RegressionPredictive(outputs, torch.full((outputs.shape[-1],), 0.5))
