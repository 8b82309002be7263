import math

from bayesify.report.records import Record

QUALITY = {
    "map": (0.960, 0.127, 0.022, 0.062, 0.889),
    "map+ts": (0.960, 0.121, 0.014, 0.061, 0.889),
    "ensemble": (0.969, 0.108, 0.020, 0.051, 0.917),
    "stf": (0.964, 0.118, 0.013, 0.056, 0.941),
    "bella": (0.967, 0.111, 0.012, 0.053, 0.933),
    "bali": (0.955, 0.142, 0.019, 0.069, 0.952),
}
PRICE = {
    "map": (9_610, 3.1, 0.0041),
    "map+ts": (9_611, 3.3, 0.0043),
    "ensemble": (48_050, 6.9, 0.0162),
    "stf": (8_320, 4.4, 0.0581),
    "bella": (14_800, 5.2, 0.0185),
    "bali": (9_610, 71.0, 0.0652),
}


def records(
    seeds: int = 3,
    methods: tuple[str, ...] = tuple(QUALITY),
    ood: str | None = "photos",
    model: str = "mlp",
) -> list[Record]:
    """Plausible classification runs on digits."""
    return [_record(method, seed, ood, model) for method in methods for seed in range(seeds)]


def regression_records(seeds: int = 2) -> list[Record]:
    """Plausible regression runs: no curves, no OOD data, no accelerator."""
    made = records(seeds, ("map", "ensemble", "stf"), ood=None)
    for i, record in enumerate(made):
        metrics = {"rmse": 3.1 + 0.05 * i, "nll": 2.46 + 0.03 * i, "coverage90": 0.87 + 0.01 * i}
        record |= {"task": "regression", "data": "boston", "curves": {}, "metrics": metrics}
    return made


def published(data: str = "boston", label: str = "PBP", source: str = "A paper, Table 1") -> Record:
    """Numbers of others."""
    metrics = {"rmse": {"value": 3.01, "spread": 0.18}, "nll": {"value": 2.5, "spread": None}}
    return {"literature": label, "source": source, "spread": "", "data": data, "metrics": metrics}


def folded_records(values: dict[tuple[int, int], float], method: str = "map") -> list[Record]:
    """Regression runs with an NLL for each (fold, seed)."""
    made = []
    for (fold, seed), nll in values.items():
        (record,) = regression_records(1)[:1]
        made.append(
            {**record, "method": method, "fold": fold, "seed": seed, "metrics": {"nll": nll}}
        )
    return made


def _record(method: str, seed: int, ood: str | None, model: str) -> Record:
    accuracy, nll, ece, brier, auroc = QUALITY[method]
    wobble = 1 + 0.02 * math.sin(7 * seed + len(method))
    trainable, seconds, milliseconds = PRICE[method]
    metrics = {"accuracy": accuracy - 0.04 * (wobble - 1), "nll": nll * wobble}
    metrics |= {"ece": ece * wobble, "brier": brier * wobble}
    curves: Record = {"reliability": _reliability(ece)}
    if ood is not None:
        metrics |= {"ood_auroc": auroc / wobble**0.3, "ood_aupr": auroc, "ood_fpr95": 1 - auroc}
        curves["roc"] = _roc(auroc)
    return {
        "method": method,
        "model": model,
        "data": "digits",
        "seed": seed,
        "ood": ood,
        "split": "test",
        "task": "classification",
        "options": {"kind": method.upper(), "epochs": 60, "lr": 0.001, "where": ["*.weight"]},
        "metrics": metrics,
        "cost": {
            "trainable_parameters": trainable,
            "stored_parameters": 2 * trainable,
            "disk_bytes": 8 * trainable,
            "peak_memory_bytes": None,
            "fit_seconds": seconds * wobble,
            "seconds_per_epoch": seconds / 60,
            "milliseconds_per_prediction": milliseconds,
            "num_samples": 1 if method.startswith("map") else 32,
        },
        "curves": curves,
        "versions": {"bayesify": "0.1.0", "torch": "2.13.0", "python": "3.11.2"},
        "git_revision": "d79d1da",
        "finished": f"2026-11-0{seed + 1}T12:00:00Z",
    }


def _reliability(ece: float) -> Record:
    confidence = [(i + 0.5) / 15 for i in range(15)]
    count = [0, 0, 0, 1, 3, 5, 6, 8, 9, 10, 12, 15, 25, 60, 296]
    accuracy = [max(0.0, c - 4 * ece * (1 + math.sin(9 * c))) for c in confidence]
    accuracy = [a if n else 0.0 for a, n in zip(accuracy, count, strict=True)]
    filled = [c if n else 0.0 for c, n in zip(confidence, count, strict=True)]
    return {"confidence": filled, "accuracy": accuracy, "count": count}


def _roc(auroc: float) -> Record:
    power = (1 - auroc) / auroc
    fpr = [(i / 99) ** 3 for i in range(100)]
    return {"fpr": fpr, "tpr": [each**power for each in fpr]}
