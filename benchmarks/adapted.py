"""Judging what was adapted from one checkpoint: every member's outputs are kept, and read later.

A cell (arm, seed) is a file of logits (M, N, C) on each evaluation set. From it any number of its
members is judged: accuracy, NLL, ECE (15 bins), and NLL and ECE after one temperature, which is
fitted on held-out training data, or by halves of what is judged. Differences between two arms are
paired by seed and by example.
"""

import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import bayesify
from bayesify.core.batches import split_batch
from bayesify.core.options import to_json
from bayesify.data.loading import as_loader
from bayesify.evaluation.metrics.calibration import fit_temperature
from bayesify.evaluation.metrics.scores import accuracy, ece, nll
from bayesify.training.cost import CostMeter

CHOOSING = 7
"""The seed that options are chosen at; no table has it."""


@torch.no_grad()
def logits_of(posterior: Any, data: Any, batch_size: int = 200) -> Tensor:
    """What every member returns for all examples, (M, N, C)."""
    parts = [
        posterior.outputs(split_batch(batch)[0])
        for batch in as_loader(data, batch_size=batch_size, shuffle=False)
    ]
    return torch.cat(parts, 1)


def keep(folder: Path, arm: str, seed: int, logits: dict[str, Tensor], facts: dict) -> None:
    """Write one cell."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{arm}-{seed}.safetensors"
    partial = file.with_suffix(".partial")
    save_file({n: e.contiguous() for n, e in logits.items()}, partial, {"facts": json.dumps(facts)})
    partial.rename(file)


def is_done(folder: Path, arm: str, seed: int) -> bool:
    """Whether the cell is there."""
    return (folder / f"{arm}-{seed}.safetensors").exists()


def fill(
    folder: Path,
    arms: dict[str, Any],
    seeds: list[int],
    net: Callable[[], torch.nn.Module],
    sets: dict[str, Any],
    batch_size: int,
) -> None:
    """Fit the cells that are not there.

    Raises:
        SystemExit: one that is there is of other options or other sets.
    """
    sizes = {name: len(each) for name, each in sets.items()}
    for seed in seeds:
        for arm, method in arms.items():
            if not is_done(folder, arm, seed):
                run(arm, method, seed, net(), sets, batch_size, folder)
                continue
            logits, facts = read(folder, arm, seed)
            found = {name: each.shape[1] for name, each in logits.items()}
            wanted = {name: sizes[name] for name in found}
            if facts["options"] != to_json(method) or found != wanted:
                raise SystemExit(
                    f"{folder}: the cell {arm}-{seed} was fitted with other options or judged on "
                    f"other sets; remove it, or name another folder with --out."
                )


def read(folder: Path, arm: str, seed: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A cell's logits by evaluation set, and its facts."""
    file = folder / f"{arm}-{seed}.safetensors"
    with safe_open(file, "pt") as opened:
        facts = json.loads(opened.metadata()["facts"])
    return load_file(file), facts


def run(
    arm: str,
    method: Any,
    seed: int,
    net: torch.nn.Module,
    sets: dict[str, Any],
    batch_size: int,
    folder: Path,
) -> None:
    """Fit one cell and keep its outputs on all sets but the one that is learnt from."""
    with CostMeter(torch.device("cpu")) as cost:
        posterior = bayesify.fit(net, sets["train"], method, seed=seed, batch_size=batch_size)
    facts = {
        "arm": arm,
        "seed": seed,
        "seconds": cost.seconds,
        "trainable": posterior.trainable_parameters,
        "members": posterior.q.size(1),
        "options": posterior.record.options if posterior.record else None,
    }
    logits = {name: logits_of(posterior, each) for name, each in sets.items() if name != "train"}
    keep(folder, arm, seed, logits, facts)
    print(json.dumps({n: facts[n] for n in ("arm", "seed", "seconds", "trainable")}), flush=True)


def on(
    chosen: str,
    method: Any,
    net: torch.nn.Module,
    sets: dict[str, Any],
    batch_size: int,
    members: int = 1,
) -> dict[str, float]:
    """The first members, judged on the set that options are chosen on; temperatures by halves."""
    start = time.perf_counter()
    posterior = bayesify.fit(net, sets["train"], method, seed=CHOOSING, batch_size=batch_size)
    held, y = averaged(logits_of(posterior, sets[chosen]), range(members)), sets[chosen].y
    return judge(held, y, tempered(held, y)) | {"seconds": time.perf_counter() - start}


def report(
    folder: Path,
    seeds: list[int],
    sets: dict[str, Any],
    judged: dict[str, tuple[str, slice | Tensor]],
    *,
    by_halves: bool = False,
) -> dict[str, Any]:
    """Every arm at every number of members, on what is `judged`; means and errors over seeds.

    `judged` names parts of sets: label -> name of the set, and which of its examples.

    The temperature is fitted on the set "held out"; or, where the network has seen that (or the
    like of it) in its own training, by halves of each set that is judged.
    """
    table: dict[str, Any] = {}
    rows: dict[str, dict[str, dict[int, Any]]] = {name: {} for name in judged}
    for arm in sorted({file.stem.rsplit("-", 1)[0] for file in folder.glob("*.safetensors")}):
        every = {seed: read(folder, arm, seed) for seed in seeds if is_done(folder, arm, seed)}
        most = max((facts["members"] for _, facts in every.values()), default=0)
        for members in [each for each in (1, 3, 5, 10) if each <= most]:
            cells = {seed: c for seed, c in every.items() if c[1]["members"] >= members}
            facts, key = next(iter(cells.values()))[1], f"{arm} x{members}"
            table[key] = {
                "seeds": len(cells),
                "trainable per member": facts["trainable"] / facts["members"],
                "members and seconds of the cell": [
                    (facts["members"], round(facts["seconds"])) for _, facts in cells.values()
                ],
            }
            for name, part in judged.items():
                found, examples = _of_cells(list(cells.values()), part, members, sets, by_halves)
                table[key][name] = {
                    metric: mean_and_error([each[metric] for each in found]) for metric in found[0]
                }
                rows[name][key] = dict(zip(cells, examples, strict=True))
    pairs = {
        f"{name}: {first} - {second}": {
            metric: [round(each, 4) for each in values]
            for metric, values in paired(examples, by_arm[second]).items()
        }
        for name, by_arm in rows.items()
        for first, examples in by_arm.items()
        for second in ("dense x3", "dense x1", "bella x3")
        if first != second and second in by_arm
    }
    return {"table": table, "paired (mean, s.e. over seeds, over examples)": pairs}


def _of_cells(
    cells: list[tuple[dict[str, Tensor], dict[str, Any]]],
    part: tuple[str, slice | Tensor],
    members: int,
    sets: dict[str, Any],
    by_halves: bool,
) -> tuple[list[dict[str, float]], list[dict[str, Tensor]]]:
    found, examples, (name, index) = [], [], part
    for logits, _ in cells:
        predictive, y = averaged(logits[name][:, index], range(members)), sets[name].y[index]
        held = averaged(logits["held out"], range(members)), sets["held out"].y
        after = tempered(predictive, y, None if by_halves else held)
        found.append(judge(predictive, y, after))
        examples.append(per_example(predictive, y, after[0]))
    return found, examples


def mean_and_error(values: list[float]) -> list[float]:
    """Over seeds."""
    each = torch.tensor(values, dtype=torch.float64)
    error = (each.std() / len(each) ** 0.5).item() if len(each) > 1 else math.nan
    return [round(each.mean().item(), 4), round(error, 4)]


def averaged(logits: Tensor, members: Iterable[int] | None = None) -> Tensor:
    """Log of the mean over members of the probabilities, (N, C), in double precision."""
    chosen = logits if members is None else logits[list(members)]
    log_probs = chosen.double().log_softmax(-1)
    return log_probs.logsumexp(0) - math.log(len(log_probs))


def tempered(
    log_probs: Tensor, target: Tensor, held_out: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, float]:
    """Log probabilities after a temperature, and that temperature.

    It is fitted on `held_out`; or, without that, on one half of these examples for the other, both
    ways, and the mean of the two is returned.
    """
    if held_out is not None:
        found = fit_temperature(*held_out)
        return (log_probs / found).log_softmax(1), found
    order = torch.randperm(len(target), generator=torch.Generator().manual_seed(0))
    one, other = order[: len(order) // 2], order[len(order) // 2 :]
    after, temperatures = torch.empty_like(log_probs), []
    for fitted, judged in ((one, other), (other, one)):
        temperatures.append(fit_temperature(log_probs[fitted], target[fitted]))
        after[judged] = (log_probs[judged] / temperatures[-1]).log_softmax(1)
    return after, sum(temperatures) / 2


def judge(log_probs: Tensor, target: Tensor, after: tuple[Tensor, float]) -> dict[str, float]:
    """Numbers of one predictive, as it is and after a temperature."""
    probs, scaled = log_probs.exp(), after[0].exp()
    return {
        "accuracy": accuracy(probs, target),
        "nll": nll(probs, target),
        "ece": ece(probs, target),
        "temperature": after[1],
        "nll_ts": nll(scaled, target),
        "ece_ts": ece(scaled, target),
    }


def per_example(log_probs: Tensor, target: Tensor, after: Tensor) -> dict[str, Tensor]:
    """Of every example: whether it was right, its NLL, and that after the temperature."""
    rows = torch.arange(len(target))
    return {
        "accuracy": (log_probs.argmax(1) == target).double(),
        "nll": -log_probs[rows, target],
        "nll_ts": -after[rows, target],
    }


def paired(
    first: dict[int, dict[str, Tensor]], second: dict[int, dict[str, Tensor]]
) -> dict[str, tuple[float, float, float]]:
    """Mean of first - second over seeds; its standard error over seeds; and that over examples.

    Over the seeds that both have.
    """
    found: dict[str, tuple[float, float, float]] = {}
    both = [seed for seed in first if seed in second]
    for name in first[both[0]] if both else ():
        each = torch.stack([first[seed][name] - second[seed][name] for seed in both])
        by_seed, by_example = each.mean(1), each.mean(0)
        found[name] = (
            by_seed.mean().item(),
            (by_seed.std() / len(by_seed) ** 0.5).item() if len(by_seed) > 1 else math.nan,
            (by_example.std() / len(by_example) ** 0.5).item(),
        )
    return found
