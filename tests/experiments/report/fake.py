import math

from bayesify.experiments.report.records import Record

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


# ------------------------------------------------------------------------- records with every part

FAMILIES = (
    "gaussian_noise",
    "shot_noise",
    "motion_blur",
    "contrast",
    "jpeg_compression",
    "pixelate",
)
LEAK = {"map": 0.66, "ensemble": 0.60, "stf": 0.55, "bella": 0.57}


def strengths_against(leak: float) -> dict[str, float]:
    """What attacks do to a method; those that leak more are weaker here, for some difference."""
    return {"fgsm": leak - 0.25, "pgd": leak - 0.05, "transfer": leak - 0.4}


def full_records(seeds: int = 3, methods: tuple[str, ...] = tuple(LEAK)) -> list[Record]:
    """Classification runs with all parts of an evaluation."""
    made = records(seeds, methods)
    for record in made:
        _add_all(record, QUALITY[record["method"]], LEAK.get(record["method"], 0.6))
    return made


def full_regression_records(seeds: int = 3) -> list[Record]:
    """Regression runs with scores of the whole distribution and intervals."""
    made = regression_records(seeds)
    level = [round(0.05 * i, 2) for i in range(1, 20)]
    for i, record in enumerate(made):
        bend = 1.1 + 0.1 * (i // seeds) + 0.02 * (i % seeds)
        record["metrics"] |= {"crps": 1.6 + 0.02 * i, "interval_error": 0.03 + 0.002 * i}
        record["curves"] = {"intervals": {"level": level, "coverage": [x**bend for x in level]}}
    return made


def pair_records(seeds: int = 2) -> list[Record]:
    """Two data sets, each foreign to the other."""
    made = records(seeds, ("map", "stf"), ood="letters") + records(seeds, ("map", "stf"))
    for record in made[2 * seeds :]:
        record |= {"data": "letters", "ood": "digits"}
    return made


def _add_all(record: Record, quality: tuple[float, ...], leak: float) -> None:
    accuracy, nll, ece, _, auroc = quality
    shift = 0.01 * math.sin(3 * record["seed"] + len(record["method"]))
    record["metrics"] |= {
        "adaptive_ece": 0.9 * ece + 0.1 * shift,
        "mce": 8 * ece + shift,
        "mean_entropy": 2 * ece + 0.1,
        "aurc": 0.1 * (1 - accuracy) + 0.01 * abs(shift),
        "attack_eps": 8 / 255,
        "worst_accuracy": accuracy - 0.62 + shift,
        "corrupted_accuracy": accuracy - 0.15 + shift,
        "corrupted_nll": 4 * nll + 5 * shift,
        "corrupted_ece": 3 * ece + shift,
        "membership_auc": leak + shift,
        "membership_auc_se": 0.011,
        "membership_tpr1": 0.01 + (leak - 0.5) / 5 + 0.1 * shift,
        "membership_tpr1_se": 0.003,
        "membership_tpr01": 0.001 + (leak - 0.5) / 25,
        "membership_tpr01_se": 0.002,
        "lira_auc": leak + 0.08 + shift,
        "lira_auc_se": 0.01,
        "lira_tpr1": 0.01 + (leak - 0.5) / 2,
        "lira_tpr1_se": 0.004,
        "lira_tpr01": 0.001 + (leak - 0.5) / 10,
        "lira_tpr01_se": 0.003,
        "certificate": 0.08 + 4 * (1 - accuracy) + shift,
        "certificate_mcallester": 0.12 + 4 * (1 - accuracy),
        "certificate_catoni": 0.09 + 4 * (1 - accuracy),
        "gibbs_risk": 1.4 * (1 - accuracy),
        "gibbs_test_risk": 1.6 * (1 - accuracy),
        "certificate_kl": 35.0,
        "certificate_n": 1000,
        "far_confidence": 1 - (auroc - 0.8) * 2,
        "far_confident_share": 1 - (auroc - 0.8) * 4,
    }
    for score, factor in (("mutual_information", 0.97), ("max_prob", 0.99)):
        for name in ("auroc", "aupr", "fpr95"):
            record["metrics"][f"ood_{name}_{score}"] = record["metrics"][f"ood_{name}"] * factor
        record["curves"][f"roc_{score}"] = _roc(auroc * factor + 0.3 * shift)
    for kind in ("confidence", "entropy", "mutual_information"):
        record["metrics"][f"membership_auc_{kind}"] = leak - 0.03 + shift
    strengths = strengths_against(leak)
    for attack, strength in strengths.items():
        record["metrics"][f"{attack}_accuracy"] = accuracy - strength + shift
        record["metrics"][f"{attack}_nll"] = nll + 6 * strength + 4 * shift
    record["cost"] |= {
        "seconds_per_step": record["cost"]["seconds_per_epoch"] / 25,
        "flops_per_step": 3.7e6,
        "flops_per_prediction": 1.9e4 * record["cost"]["num_samples"],
        "member_parameters": 9610 if record["method"] == "ensemble" else 320,
    }
    record["curves"] |= _full_curves(record, accuracy, nll, ece, leak, shift)


def _full_curves(
    record: Record, accuracy: float, nll: float, ece: float, leak: float, shift: float
) -> Record:
    eps = [0, 1 / 255, 2 / 255, 4 / 255, 8 / 255]
    strengths = strengths_against(leak)
    attacks = {
        attack: {
            "accuracy": [accuracy - strength * (255 * e / 8) ** 0.8 + shift for e in eps],
            "nll": [nll + 6 * strength * (255 * e / 8) + 4 * shift * e * 30 for e in eps],
        }
        for attack, strength in strengths.items()
    }
    families = {
        family: {
            "accuracy": [accuracy - 0.02 * (i + 1) * s**1.3 + shift for s in range(6)],
            "nll": [nll * (1 + 0.4 * (i + 1) * s) + shift for s in range(6)],
            "ece": [ece * (1 + 0.3 * (i + 1) * s) + 0.1 * shift for s in range(6)],
        }
        for i, family in enumerate(FAMILIES)
    }
    radius = [1, 3, 10, 30, 100, 1000]
    limit = record["metrics"]["far_confidence"]
    mean = [limit - 0.3 / r**0.5 + shift for r in radius]
    share = [(i + 1) / 100 for i in range(100)]
    return {
        "robustness": {
            "norm": "linf",
            "steps": 10,
            "restarts": 1,
            "gradient_samples": 20,
            "num_samples": 32,
            "examples": 450,
            "eps": eps,
            "attacks": attacks,
        },
        "corruption": {
            "severities": list(range(6)),
            "examples": 450,
            "num_samples": 32,
            "families": families,
        },
        "membership": {
            **{kind: _roc(leak + shift) for kind in ("loss", "confidence", "entropy")},
            "members": 1000,
            "others": 450,
        },
        "lira": {**_roc(leak + 0.08 + shift), "shadows": 16, "examples": 1000},
        "risk_coverage": {
            "coverage": share,
            "risk": [(1 - accuracy) * (0.2 + 0.8 * s**4) + 0.2 * shift * s for s in share],
        },
        "far_away": {
            "radius": radius,
            "mean": mean,
            "low": [m - 0.1 for m in mean],
            "high": [min(1.0, m + 0.1) for m in mean],
            "limit_mean": limit,
            "limit": [limit - 0.05, limit, limit + 0.05],
        },
    }
