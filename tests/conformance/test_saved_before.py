"""Posteriors saved by version 0.1.0, one of every method: they load, predict and are fitted alike.

`python -m tests.conformance.test_saved_before` in the root wrote the folders; they are not written
anew when something changes, but with a reason that the changelog gives.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import bayesify

FOLDER = Path(__file__).parents[1] / "saved"
ONE = bayesify.MAP(epochs=2, lr=0.01)
DAMPED = ("laplace, kron", "laplace, diag, not linear")
VI = {"pretrain": ONE, "temperature": 1.0, "epochs": 2}
SOURCE = bayesify.DiagonalLaplace(pretrain=None, where=bayesify.matrices, factor=0.5)
METHODS = {
    "map": ONE,
    "ensemble": bayesify.Ensemble(members=3, epochs=2),
    "mean-field-vi": bayesify.MeanFieldVI(**VI),
    "stf": bayesify.STF(**VI),
    "stf, certifies": bayesify.STF(**VI, certify_split=0.5),
    "last-layer-vi": bayesify.LastLayerVI(**VI),
    "mc-dropout": bayesify.MCDropout(pretrain=ONE),
    "diagonal-laplace": bayesify.DiagonalLaplace(pretrain=ONE, factor=0.5),
    "laplace, kron": bayesify.Laplace(pretrain=ONE, structure="kron"),
    "laplace, full, samples": bayesify.Laplace(pretrain=ONE, structure="full", average="samples"),
    "laplace, diag, not linear": bayesify.Laplace(
        pretrain=ONE, structure="diag", predictive="sampled"
    ),
    "swag": bayesify.SWAG(pretrain=ONE, epochs=2, burn_in=1, rank=3),
    "bella": bayesify.Bella(pretrain=ONE, members=3, rank=1, epochs=2),
    "bella, svgd": bayesify.Bella(pretrain=ONE, members=3, rank=1, epochs=2, interaction="svgd"),
    "svgd": bayesify.SVGD(members=3, epochs=2),
    "svgd, function": bayesify.SVGD(members=3, epochs=2, kernel="function"),
    "fine-tuned-ensemble": bayesify.FineTunedEnsemble(pretrain=ONE, members=3, epochs=2),
    "weight-sharing": bayesify.WeightSharing(pretrain=ONE, mean_field=SOURCE, codes=4),
    "weight-sharing, tuned": bayesify.WeightSharing(
        pretrain=ONE, mean_field=SOURCE, codes=4, epochs=2
    ),
    "bali": bayesify.BALI(epochs=2, min_steps=4),
    "bali, members": bayesify.BALI(epochs=2, min_steps=4, members=2),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.2), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)
    )


def data() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def fitted(name: str) -> bayesify.Posterior:
    return bayesify.fit(net(), data(), METHODS[name], seed=3, batch_size=16)


def foretold(posterior: bayesify.Posterior) -> dict[str, torch.Tensor]:
    x = data()[0][:5]
    return {
        "outputs": posterior.outputs(x, num_samples=4),
        "probs": posterior.predict(x, num_samples=4).probs,
    }


@pytest.mark.parametrize("name", METHODS)
def test_a_folder_of_before_predicts_the_same(name):
    posterior = bayesify.load(FOLDER / name, net())
    before = load_file(FOLDER / name / "foretold.safetensors")
    found = foretold(posterior)
    if name in DAMPED:  # their outputs were one damped row; it is beside the samples now
        assert len(before["outputs"]) == 1
        assert found.pop("outputs").shape == (4, 5, 3)
        found["outputs"] = posterior.predict(data()[0][:5], num_samples=4).damped[None]
    for key, now in found.items():  # to the bit where the processor is the same
        torch.testing.assert_close(now, before[key], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_posterior_of_before(name, tmp_path):
    before = load_file(FOLDER / name / "q.safetensors")
    now = load_file(bayesify.save(fitted(name), tmp_path / "now") / "q.safetensors")
    assert set(now) == set(before)
    for key, value in now.items():
        torch.testing.assert_close(value, before[key], rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    for each in METHODS:
        posterior = fitted(each)
        bayesify.save(posterior, FOLDER / each)
        save_file(foretold(posterior), FOLDER / each / "foretold.safetensors")
