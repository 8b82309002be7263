"""Curves over rank and members from the results of `bella-ablation.toml`.

    bayesify compare --suite benchmarks/bella_digits/bella-ablation.toml --out runs/bella-ablation
    python -m benchmarks.bella_digits.ablation runs/bella-ablation docs/figures/bella_ablation.svg

Seeds differ by more than anything else, so what is drawn is the difference from one member of the
lowest rank with the same seed, and its standard error.
"""

import json
import sys
from pathlib import Path
from statistics import mean, stdev

from bayesify.experiments.report.style import PALETTE, new_figure, plain, settings, to_svg

SHOWN = {"nll": "NLL, difference", "ood_auroc": "AUROC of foreign images, difference"}
BESIDE = 0.04
"""How far the points of one rank stand apart, on the logarithmic axis."""


def main() -> None:
    """Draw the results of the folder `argv[1]` into the file `argv[2]`."""
    cells: dict[tuple[int, int], dict[int, dict[str, float]]] = {}
    for line in (Path(sys.argv[1]) / "results.jsonl").read_text().splitlines():
        record = json.loads(line)
        cell = record["options"]["members"], record["options"]["rank"]
        cells.setdefault(cell, {})[record["seed"]] = record["metrics"]
    members, ranks = (sorted({cell[i] for cell in cells}) for i in (0, 1))
    base = cells[members[0], ranks[0]]
    with settings():
        figure = new_figure(9, 3.6)
        for axis, (name, label) in zip(figure.subplots(1, len(SHOWN)), SHOWN.items(), strict=True):
            for number, count in enumerate(members):
                gaps = [
                    [each[name] - base[seed][name] for seed, each in cells[count, rank].items()]
                    for rank in ranks
                ]
                axis.errorbar(
                    [rank * (1 + BESIDE * number) for rank in ranks],
                    [mean(each) for each in gaps],
                    [stdev(each) / len(each) ** 0.5 for each in gaps],
                    marker="o",
                    markersize=4,
                    color=PALETTE[number],
                    label=f"{count} {'member' if count == 1 else 'members'}",
                )
            axis.set(xscale="log", xlabel="rank", ylabel=label)
            axis.set_xticks(ranks, [str(rank) for rank in ranks])
            axis.minorticks_off()
            plain(axis)
        figure.legend(
            *axis.get_legend_handles_labels(), frameon=False, loc="outside upper right", ncols=4
        )
        Path(sys.argv[2]).write_text(to_svg(figure, "bella_ablation") + "\n")


if __name__ == "__main__":
    main()
