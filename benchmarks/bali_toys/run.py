"""What BALI and mean-field VI have learnt of toy problems: two figures for the documentation.

    python -m benchmarks.bali_toys.run [--out docs/figures]

Three problems with few points: sinc and sines with a trend, each with a gap in the data, for a
1-50-1 network, and two moons for a 2-50-50-2 network. `bali_toys.svg` shows the predictives,
`bali_nll.svg` the NLL on training and test data as training goes on. Both methods start from the
same random network and see the same batches. BALI has its defaults for regression throughout: the
prior that it takes for classes under-fits two moons. Mean-field VI is trained from scratch for
twice as many steps, under the prior N(0, 1), at temperature 0.1 and learning rate 0.01: of the grid
in bali_convergence.py what is best on concrete, the nearest to these problems there.
"""

import argparse
import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor, nn

import bayesify
from bayesify.data.readers.toy import sinc, two_moons
from bayesify.experiments.report.style import (
    INK,
    MUTED,
    PALETTE,
    PAPER,
    new_figure,
    plain,
    settings,
    to_svg,
)
from bayesify.forward.outputs import read_tensor
from bayesify.likelihoods import resolve
from bayesify.training.data import TrainingData

BATCH, SAMPLES = 50, 200
STEPS = {"BALI": 1500, "mean-field VI": 3000}
COLORS = {"BALI": PALETTE[0], "mean-field VI": PALETTE[1]}


@dataclass(frozen=True)
class Toy:
    """A problem: `draw(count, generator)` gives data; a figure shows `view` of it."""

    name: str
    draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor]]
    widths: tuple[int, ...]
    likelihood: str
    view: tuple[float, float, float, float]
    truth: Callable[[Tensor], Tensor] | None = None
    count: int = 200

    def data(self, part: int, count: int = 1000) -> tuple[Tensor, Tensor]:
        """Part 0 is for training, 1 for the test."""
        return self.draw(count, torch.Generator().manual_seed(part))

    def network(self) -> nn.Module:
        """The same random network each time: tanh for curves, ReLU for classes."""
        torch.manual_seed(0)
        curve = self.likelihood == "gaussian"
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(self.widths):
            layers += [nn.Linear(a, b), nn.Tanh() if curve else nn.ReLU()]
        with torch.no_grad():
            for each in layers[0].parameters() if curve else ():
                each.mul_(3)  # as steep as the waves are short: torch's start is for inputs near 1
        return nn.Sequential(*layers[:-1])


def waves(x: Tensor) -> Tensor:
    """Two sines on a rising line."""
    return 0.3 * x + 0.5 * torch.sin(2 * x) + 0.3 * torch.sin(5 * x)


def sines_with_trend(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Regression with a gap: x in [-3, -0.8] or [0.8, 3], noise of standard deviation 0.1."""
    side = torch.randint(2, (count, 1), generator=generator) * 2 - 1
    x = side * (0.8 + 2.2 * torch.rand(count, 1, generator=generator))
    return x, waves(x) + 0.1 * torch.randn(count, 1, generator=generator)


TOYS = (
    Toy(
        "sinc",
        lambda count, generator: sinc(count, generator=generator),
        (1, 50, 1),
        "gaussian",
        (-6, 6, -1.2, 1.9),
        torch.sinc,
    ),
    Toy("sines with a trend", sines_with_trend, (1, 50, 1), "gaussian", (-6, 6, -3.2, 3.2), waves),
    Toy(
        "two moons",
        lambda count, generator: two_moons(count, noise=0.2, generator=generator),
        (2, 50, 50, 2),
        "categorical",
        (-3.5, 4.5, -3.25, 3.75),
    ),
)


@dataclass
class Trained:
    """One method on one problem."""

    posterior: bayesify.Posterior
    steps: list[int]
    nll: dict[str, list[float]]


def main() -> None:
    """Train everything and draw both figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {toy.name: {name: train(toy, name) for name in STEPS} for toy in TOYS}
    options.out.mkdir(parents=True, exist_ok=True)
    with settings():
        for name, draw in (("bali_toys", draw_predictives), ("bali_nll", draw_curves)):
            svg = re.sub(r"(\d\.\d\d)\d+", r"\1", draw(results))  # hundredths of a point do
            (options.out / f"{name}.svg").write_text(svg + "\n")
    for problem, learnt in results.items():
        ends = (f"{name} {each.nll['test'][-1]:.3f}" for name, each in learnt.items())
        print(f"{problem}: test NLL {', '.join(ends)}")


def train(toy: Toy, name: str) -> Trained:
    """All steps of one method, judged at steps that grow by a tenth."""
    x, y = toy.data(0, toy.count)
    count = STEPS[name]
    run = method(name, count * BATCH // toy.count).start(
        bayesify.Problem(
            model=toy.network(),
            likelihood=resolve(toy.likelihood),
            data=TrainingData.of(lambda: zip(x.split(BATCH), y.split(BATCH), strict=True)),
            readout=read_tensor,
            vectorize=True,
            generator=torch.Generator().manual_seed(0),
        )
    )
    when = {round(1.1**k) for k in range(100) if 1.1**k < count} | {count}
    parts = {"train": (x, y), "test": toy.data(1)}
    trained = Trained(run.posterior(), sorted(when), {part: [] for part in parts})
    for number, index in enumerate(itertools.islice(batches(len(x)), count), start=1):
        run.step(x[index], y[index])
        if number in when:
            for part, data in parts.items():
                trained.nll[part].append(nll(run.posterior(), *data))
    trained.posterior = run.posterior()
    return trained


def method(name: str, epochs: int) -> bayesify.Method:
    """BALI, or mean-field VI over all weights from scratch; their options as said above."""
    if name == "BALI":
        return bayesify.BALI(prior_precision=0.1, damping=0.05, temperature=1.0)
    return bayesify.MeanFieldVI(
        pretrain=None,
        epochs=epochs,
        lr=1e-2,
        prior_loc="zero",
        prior_relative=False,
        prior_scale=1.0,
        temperature=0.1,
    )


def batches(count: int) -> Iterator[Tensor]:
    """Indices of shuffled batches, for ever."""
    order = torch.Generator().manual_seed(0)
    while True:
        yield from torch.randperm(count, generator=order).split(BATCH)


def nll(posterior: bayesify.Posterior, x: Tensor, y: Tensor) -> float:
    """Nats per example."""
    return -posterior.predict(x, num_samples=SAMPLES).log_prob(y).mean().item()


def draw_predictives(results: dict[str, dict[str, Trained]]) -> str:
    """A row for each method: two regressions, then probability and entropy of the moons."""
    figure = new_figure(10.4, 5.2)
    grid = figure.add_gridspec(2, 4, width_ratios=[1.25, 1.25, 1, 1])
    for i, name in enumerate(STEPS):
        for j, toy in enumerate(TOYS[:2]):
            axes = figure.add_subplot(grid[i, j])
            draw_regression(axes, toy, results[toy.name][name].posterior, COLORS[name])
            axes.tick_params(labelbottom=i == 1)
            if i == 0:
                axes.set_title(toy.name, loc="left", fontweight="bold")
            if j == 0:
                axes.set_ylabel(name, color=COLORS[name], fontweight="bold", fontsize=10)
        for j, what in enumerate(("probability", "entropy"), start=2):
            axes = figure.add_subplot(grid[i, j])
            draw_map(axes, TOYS[2], results[TOYS[2].name][name].posterior, what)
            if i == 0:
                title = {
                    "probability": "two moons: probability",
                    "entropy": "entropy, 0 to ln 2 nats",
                }[what]
                axes.set_title(title, loc="left", fontweight="bold")
    draw_key(figure)
    return to_svg(figure, "bali toys")


def draw_key(figure: Figure) -> None:
    """What lines and shades mean, below everything."""
    handles = [
        Line2D([], [], color=MUTED, marker=".", ls="", ms=4, mew=0, label="data"),
        Line2D([], [], color=INK, lw=0.9, dashes=(3, 2), label="truth"),
        Line2D([], [], color=MUTED, lw=1.6, label="mean"),
        Patch(color=MUTED, alpha=0.5, lw=0, label="± 2 sd from the weights"),
        Patch(color=MUTED, alpha=0.2, lw=0, label="± 2 sd with the noise"),
    ]
    figure.legend(handles=handles, loc="outside lower left", ncols=5, frameon=False, fontsize=8)


def draw_regression(axes: Axes, toy: Toy, posterior: bayesify.Posterior, color: str) -> None:
    """Mean, two standard deviations from the weights, and with the noise, over data and truth."""
    plain(axes)
    left, right, low, high = toy.view
    x = torch.linspace(left, right, 200)[:, None]
    predictive = posterior.predict(x, num_samples=1000)
    mean, place = predictive.mean.flatten(), x.flatten()
    for variance, alpha in ((predictive.variance, 0.18), (predictive.epistemic, 0.32)):
        sd = 2 * variance.flatten().sqrt()
        axes.fill_between(place, mean - sd, mean + sd, color=color, alpha=alpha, linewidth=0)
    if toy.truth is not None:
        axes.plot(place, toy.truth(place), color=INK, lw=0.9, dashes=(3, 2))
    axes.plot(place, mean, color=color, lw=1.6)
    x, y = toy.data(0, toy.count)
    axes.plot(x, y, ".", color=MUTED, ms=3, mew=0)
    axes.set(xlim=(left, right), ylim=(low, high))


def draw_map(axes: Axes, toy: Toy, posterior: bayesify.Posterior, what: str) -> None:
    """A map over the plane, as a small picture, with the data on it."""
    plain(axes, grid="none")
    left, right, low, high = toy.view
    side = 110
    rows, columns = torch.meshgrid(
        torch.linspace(low, high, side), torch.linspace(left, right, side), indexing="ij"
    )
    predictive = posterior.predict(
        torch.stack([columns, rows], -1).reshape(-1, 2), num_samples=SAMPLES
    )
    first, second = PALETTE[0], PALETTE[4]
    if what == "probability":
        values, top = predictive.probs[:, 1], 1.0
        colors = LinearSegmentedColormap.from_list("classes", [first, PAPER, second])
    else:
        values, top = predictive.entropy(), math.log(2)
        colors = LinearSegmentedColormap.from_list("entropy", [PAPER, PALETTE[3], PALETTE[7]])
    picture = values.reshape(side, side).numpy()
    extent = (left, right, low, high)
    axes.imshow(
        picture,
        colors,
        vmin=0,
        vmax=top,
        extent=extent,
        origin="lower",
        aspect="auto",
        interpolation="bilinear",
    )
    x, y = toy.data(0, toy.count)
    for label, color in enumerate((first, second)):
        points = x[y == label].T
        axes.plot(*points, "o", color=color, ms=3.0, mec=PAPER, mew=0.5)
    axes.set(xlim=(left, right), ylim=(low, high), xticks=range(-3, 5), yticks=range(-3, 4))
    axes.tick_params(labelbottom=False, labelleft=False)


def draw_curves(results: dict[str, dict[str, Trained]]) -> str:
    """NLL over steps, a panel for each problem."""
    figure = new_figure(10.4, 3.0)
    for axes, (problem, learnt) in zip(figure.subplots(1, 3), results.items(), strict=True):
        plain(axes)
        for name, trained in learnt.items():
            for part, dash in (("train", (0, (3, 2))), ("test", "-")):
                axes.plot(trained.steps, trained.nll[part], color=COLORS[name], ls=dash, lw=1.5)
        values = np.concatenate([each.nll[part] for each in learnt.values() for part in each.nll])
        low, high = float(values.min()), min(float(values.max()), 2.0)
        edge = 0.06 * (high - low)
        axes.set(xscale="log", xlabel="step", ylim=(low - edge, high + edge))
        axes.set_title(problem, loc="left", fontweight="bold")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axes.minorticks_off()
    figure.axes[0].set_ylabel("NLL, nats per example")
    handles = [Line2D([], [], color=color, lw=2, label=name) for name, color in COLORS.items()]
    for part, dash in (("test", "-"), ("train", (0, (3, 2)))):
        handles.append(Line2D([], [], color=MUTED, lw=1.5, ls=dash, label=part))
    figure.legend(handles=handles, loc="outside lower left", ncols=4, frameon=False, fontsize=8)
    return to_svg(figure, "bali nll")


if __name__ == "__main__":
    main()
