"""Learning goes on after the fit: the data's law turns while batches arrive, and BALI follows."""

import math
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import bayesify
from bayesify.data.readers.toy import two_moons

generator = torch.Generator().manual_seed(0)


def moons(count: int, degrees: float) -> tuple[Tensor, Tensor]:
    """Two moons that have been turned about their common centre."""
    x, y = two_moons(count, noise=0.15, generator=generator)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (x - torch.tensor([0.5, 0.25])) @ torch.tensor([[c, s], [-s, c]]), y


def nll(posterior: bayesify.Posterior, data: tuple[Tensor, Tensor]) -> float:
    """Nats per example."""
    return -posterior.predict(data[0], num_samples=50).log_prob(data[1]).mean().item()


torch.manual_seed(0)
net = nn.Sequential(nn.Linear(2, 30), nn.ReLU(), nn.Linear(30, 30), nn.ReLU(), nn.Linear(30, 2))
frozen = bayesify.fit(net, moons(500, 0), bayesify.BALI(min_steps=400))
print(f"fitted: NLL {nll(frozen, moons(1000, 0)):.3f} under the law it was fitted to")

run = bayesify.resume(frozen, moons(2, 0)[0])
twin, same = None, True
for number in range(1, 61):
    turned = min(3 * number, 90)  # degrees: the law turns for 30 batches, then it rests
    batch = moons(50, turned)
    log = run.update(*batch, forgetting=0.1)  # the last 50 / 0.1 = 500 examples count
    if twin is not None:
        same = same and twin.update(*batch, forgetting=0.1) == log
    if number % 10 == 0:
        now = moons(1000, turned)
        streaming = nll(run.posterior(), now)
        print(f"turned by {turned:2}°: frozen {nll(frozen, now):.3f}, streaming {streaming:.3f}")
    if number == 30:
        with tempfile.TemporaryDirectory() as folder:
            save_file(run.state_dict(), Path(folder) / "run.safetensors")
            state = load_file(Path(folder) / "run.safetensors")
        twin = bayesify.resume(frozen, batch[0][:2])  # as a new process would
        twin.load_state_dict(state)
        print("saved the run's statistics, and gave them to a twin")
print(f"over the last 30 batches the twin did exactly what the run did: {same}")
