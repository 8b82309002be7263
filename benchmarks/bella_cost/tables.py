"""What `bella_cost.py` found, as ratios with their goals and as tables for a person."""

from typing import Any

from benchmarks.bella_cost.networks import HIDDEN, MEMBERS, TOKENS
from rich.console import Console
from rich.table import Table

KEPT = 16 * TOKENS * HIDDEN * 4
"""Bytes of what the members share of a batch of 16: it is kept from the second member on."""
TRUNK_GOAL = 0.45


def ratios(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Every ratio with its goal."""
    rows: list[tuple[str, float | None, float]] = []
    if memory := result.get("memory"):
        rows += [
            (
                f"memory: peak from M = 1 to 10 over factors and activations, allocator {how}",
                1.2 if how == "returns memory" else None,
                growth["later_peak"] / (growth["factors"] + KEPT),
            )
            for how, growth in memory["growth"].items()
        ]
        rows += [
            ("memory: held between steps, over M dense", None, memory["held_over_dense"]),
        ]
    if step := result.get("step"):
        rows.append(("step, batch 16, over M dense", 0.5, step["ratios"]["bella over dense"]))
        own = step["ratios"]["bella, own batches over dense"]
        rows.append(("step, own batches, batch 16, over M dense", 0.5, own))
        if "bella over lora" in step["ratios"]:
            rows.append(("step, batch 16, over M LoRA", 0.8, step["ratios"]["bella over lora"]))
        share = step["trainable_per_member"] / step["dense_member"]
        rows.append(("trainable share of a member, transformer", 0.005, share))
    if half := result.get("half"):
        rows += [
            (
                f"step, batch 16, base in bfloat16, over M {other}",
                None,
                half["ratios"][f"bella {over}"],
            )
            for other, over in (("dense", "over dense"), ("dense under autocast", "over autocast"))
        ]
    for each in result.get("predict", []):
        goal = 0.5 if each["batch"] == 1 else None
        name = f"predict, batch {each['batch']}, over M dense"
        rows.append((name, goal, each["ratios"]["bella over dense"]))
    for each in result.get("trunk", []):
        batch, step, predict = each["batch"], each["step"]["ratios"], each["predict"]["ratios"]
        rows += [
            (f"last quarter: {what}, batch {batch}, over M {other}", goal, found[key])
            for what, other, goal, found, key in (
                ("step", "dense", TRUNK_GOAL, step, "bella over dense"),
                ("step, own batches", "dense", None, step, "bella, own batches over dense"),
                ("step, kept features", "dense", TRUNK_GOAL, step, "bella cached over dense"),
                (
                    "the same, own batches",
                    "dense",
                    None,
                    step,
                    "bella cached, own batches over dense",
                ),
                ("step", "LoRA", None, step, "bella over lora"),
                ("predict", "dense", TRUNK_GOAL, predict, "bella over dense"),
            )
            if key in found
        ]
    if resnet := result.get("resnet"):
        share = resnet["trainable_per_member"] / resnet["dense_member"]
        formed = resnet["formed_over_factors"]
        rows += [
            ("step, ResNet-20, batch 64, over dense", None, resnet["bella_over_dense"]),
            ("step, ResNet-20, formed over by factors", None, formed),
            ("trainable share of a member, ResNet-20", 0.03, share),
        ]
    return [{"what": what, "goal": goal, "measured": found} for what, goal, found in rows]


def show(result: dict[str, Any]) -> None:
    """Tables for a person."""
    console = Console()
    console.print(", ".join(f"{name} {value}" for name, value in result["machine"].items()))
    table = Table("ratio", "goal", "measured")
    for row in result["ratios"]:
        goal = "" if row["goal"] is None else f"<= {row['goal']:g}"
        table.add_row(row["what"], goal, f"{row['measured']:.3g}")
    console.print(table)
    table = Table(f"M = {MEMBERS}", "who", "ms", "GFLOP", "over dense", "over LoRA")
    for title, found in timings(result):
        for name, value in found["milliseconds"].items():
            table.add_row(
                title,
                name,
                f"{value:.1f}",
                f"{found['gigaflops'][name]:.1f}",
                *(
                    f"{found['ratios'].get(f'{name} over {loop}', float('nan')):.2f}"
                    for loop in ("dense", "lora")
                ),
            )
        table.add_section()
    console.print(table)
    if resnet := result.get("resnet"):
        table = Table("ResNet-20, batch 64, M = 1", "ms", "GFLOP", "ms of the arithmetic alone")
        for name, value in resnet["milliseconds"].items():
            flops, floor = resnet["gigaflops"][name], resnet["floor_milliseconds"][name]
            table.add_row(name, f"{value:.1f}", f"{flops:.1f}", f"{floor:.1f}")
        console.print(table)
    if memory := result.get("memory"):
        table = Table("memory", "MB")
        for how, growth in memory["growth"].items():
            for name, value in growth.items():
                table.add_row(f"M = 1 to 10, allocator {how}: {name}", f"{value / 1e6:.1f}")
        for name, value in memory["held"].items():
            table.add_row(f"held: {name}", f"{value / 1e6:.1f}")
        console.print(table)


def timings(result: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every comparison of times with its title."""
    found = [
        (title, result[part])
        for part, title in (("step", "step, batch 16"), ("half", "step, batch 16, bfloat16"))
        if part in result
    ]
    found += [(f"predict, batch {each['batch']}", each) for each in result.get("predict", [])]
    for each in result.get("trunk", []):
        found += [
            (f"last quarter: {what}, batch {each['batch']}", each[what])
            for what in ("step", "predict")
        ]
    return found
