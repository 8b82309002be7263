"""Which noise trains a variational posterior best where weights act at many positions?

    python -m benchmarks.elbo_noise.run conv --data-dir DIR
    python -m benchmarks.elbo_noise.run transformer --data-dir DIR

2,000 images of Fashion-MNIST, as means over 2 x 2 pixels. A trained network, STF and mean-field VI
around it, trained with the noise that `noise_scopes` allows ("scopes": local reparameterisation and
Flipout) and with one draw of all weights a step ("one draw"). Judged by the true negative ELBO on
the training images, over 64 weight samples. One JSON line for each run goes to
benchmarks/elbo_noise/results/elbo_noise.jsonl.
"""

import argparse
import json
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

import bayesify
from bayesify.distributions.kl import kl_divergence
from bayesify.methods.vi import mean_field as mean_field_vi
from bayesify.weights.noise_scope import noise_scopes

RESULTS = Path(__file__).parent / "results" / "elbo_noise.jsonl"
SAMPLES, NUM_DATA, EPOCHS = 64, 2000, 15
SETTINGS = [("stf", 1.0), ("mean-field-vi", 1.0), ("mean-field-vi", 0.1)]
NOISE = {"scopes": noise_scopes, "one draw": lambda model, example, names: {}}


def main() -> None:
    """Run, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=("conv", "transformer"))
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    train, test = images(options.data_dir, "train"), images(options.data_dir, "test")
    for seed in range(options.seeds):
        index = torch.randperm(len(train[0]), generator=torch.Generator().manual_seed(seed))
        chosen = tuple(each[index[:NUM_DATA]] for each in train)
        judged = tuple(each[:2000] for each in test)
        torch.manual_seed(seed)
        net = network(options.network)
        trained = bayesify.fit(
            net, chosen, bayesify.MAP(epochs=25, lr=1e-2 if options.network == "conv" else 3e-3),
            batch_size=100, seed=seed,
        )  # fmt: skip
        bayesify.weights.named.assign_(net, trained.point())
        start = {"network": options.network, "seed": seed}
        keep(start | {"method": "map", "test_nll": nll(trained, judged)})
        for method, temperature in SETTINGS:
            for noise, scopes in NOISE.items():
                with mock.patch.object(mean_field_vi, "noise_scopes", scopes):
                    posterior = bayesify.fit(
                        net,
                        chosen,
                        bayesify.METHODS[method](
                            pretrain=None, epochs=EPOCHS, temperature=temperature
                        ),
                        batch_size=100,
                        seed=seed,
                    )
                kl = kl_divergence(posterior.q, posterior.prior).item()
                keep(
                    start
                    | {
                        "method": method,
                        "temperature": temperature,
                        "noise": noise,
                        "negative_elbo": expected_nll(posterior, chosen)
                        + temperature * kl / NUM_DATA,
                        "logged": posterior.record.history[-1]["loss"],
                        "kl": kl,
                        "test_nll": nll(posterior, judged),
                        "ms_per_step": 1000 * posterior.record.seconds_per_step,
                    }
                )


def network(name: str) -> nn.Module:
    """Untrained."""
    if name == "transformer":
        return bayesify.models.vit.vit((1, 14, 14), 10, patch=2, dim=32, depth=6)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


def images(folder: str, part: str) -> tuple[Tensor, Tensor]:
    """Normalised by hand, 14 x 14."""
    held = getattr(bayesify.data.splits("fashion-mnist", data_dir=folder), part)
    x = nn.functional.avg_pool2d(held.x.float() / 255, 2)
    return (x - 0.286) / 0.353, held.y


@torch.no_grad()
def expected_nll(posterior: bayesify.Posterior, data: tuple[Tensor, Tensor]) -> float:
    """Mean over weight samples and images, nats."""
    x, y = data
    total = 0.0
    for part in torch.arange(len(x)).split(500):
        raw = posterior.outputs(x[part], num_samples=SAMPLES)
        total -= posterior.likelihood.log_prob(raw, y[part]).mean(0).sum().item()
    return total / len(x)


def nll(posterior: bayesify.Posterior, data: tuple[Tensor, Tensor]) -> float:
    """Of the averaged probabilities, nats."""
    return -posterior.predict(data[0], num_samples=SAMPLES).log_prob(data[1]).mean().item()


def keep(record: dict[str, object]) -> None:
    """Print a line, and append it to the results."""
    print(json.dumps(record), flush=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
