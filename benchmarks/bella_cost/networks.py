"""The networks that Bella's cost is measured on: members, dense networks and LoRA adapters.

The transformer is a BERT of the size of all-MiniLM (hidden 384, MLP 1536, 12 heads) with random
weights and a vocabulary of 8,000.
"""

import copy
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import bayesify
from bayesify.distributions.low_rank_particles import LowRankParticles
from bayesify.forward.outputs import read_tensor
from bayesify.training.data import TrainingData

try:
    from transformers import BertConfig, BertForSequenceClassification
except ImportError:
    BertConfig = BertForSequenceClassification = None
try:
    import peft
except ImportError:
    peft = None

MEMBERS, RANK, LAYERS, HIDDEN, MLP, HEADS, TOKENS, VOCABULARY, CLASSES = (
    *(5, 4, 6, 384),
    *(1536, 12, 64, 8000, 6),
)


LOOPS = ("dense", "lora", "autocast")
"""What is a network for each member; autocast: dense ones with products in bfloat16."""


class Encoder(nn.Module):
    """torch's own transformer of the same size, where transformers is not installed."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, HIDDEN)
        block = nn.TransformerEncoderLayer(
            HIDDEN, HEADS, MLP, 0.0, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(block, layers, enable_nested_tensor=False)
        self.head = nn.Linear(HIDDEN, CLASSES)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, C) of the first token."""
        return self.head(self.encoder(self.embedding(input_ids))[:, 0])


def transformer(layers: int = LAYERS) -> nn.Module:
    """Random weights, in eval mode."""
    torch.manual_seed(0)
    if BertConfig is None:
        return Encoder(layers).eval()
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        intermediate_size=MLP,
        num_labels=CLASSES,
    )
    return BertForSequenceClassification(config).eval()


def adapted(layers: int = LAYERS, last: int | None = None) -> bayesify.core.types.Where:
    """The two matrices of the MLP of each of the last blocks."""
    names = ("intermediate.dense", "output.dense") if BertConfig else ("linear1", "linear2")
    within = "layer" if BertConfig else "layers"
    chosen = range(layers - (last or layers), layers)
    return bayesify.matching(*(f"*.{within}.{i}.{name}.weight" for i in chosen for name in names))


def members_around(
    net: nn.Module, where: bayesify.core.types.Where, *, members: int = MEMBERS, rank: int = RANK
) -> LowRankParticles:
    """Members that differ from the network a little, in matrices alone."""
    return LowRankParticles.around(
        net, where=where, members=members, rank=rank, vectors=False, noise=0.01
    )


def batch_of(size: int, tokens: int = TOKENS) -> tuple[dict[str, Tensor], Tensor]:
    """Texts of one length, and their classes."""
    ids = torch.randint(VOCABULARY, (size, tokens))
    mask = {"attention_mask": torch.ones_like(ids)}
    return {"input_ids": ids} | mask, torch.randint(CLASSES, (size,))


def start(
    net: nn.Module, x: Any, vectorize: bool = True, num_data: int = 50_000, **options: Any
) -> bayesify.Run:
    """A run of Bella around `net`, which it freezes."""
    settings: dict[str, Any] = {"where": adapted(), "members": MEMBERS, "rank": RANK}
    settings |= {"vectors": False, "batches": "same"} | options
    target = torch.zeros(len(x["input_ids"] if isinstance(x, dict) else x), dtype=torch.long)
    return bayesify.Bella(pretrain=None, **settings).start(
        bayesify.Problem(
            model=net,
            likelihood=bayesify.Categorical(),
            data=TrainingData.of(
                lambda: iter([(x, target)]), num_data=num_data, steps_per_epoch=1000
            ),
            readout=read_tensor,
            vectorize=vectorize,
            generator=torch.Generator().manual_seed(0),
        )
    )


def own_batches(net: nn.Module, x: Any, **options: Any) -> bayesify.Run:
    """A run whose members see batches of their own, one by one.

    transformers asks whether a mask hides anything, which `torch.vmap` cannot run for masks of
    different members.
    """
    return start(copy.deepcopy(net), x, vectorize=False, batches="own", **options)


def at_once(run: Any) -> Any:
    """The run, told to run all members in one call."""
    run._terms.chunk_size, run._terms.trunk = MEMBERS, None
    return run


def stepping(run: bayesify.Run, x: Any, y: Tensor) -> Callable[[], Any]:
    """One step of all members."""
    return lambda: run.step(x, y)


def dense_members(net: nn.Module) -> list[Callable[..., None]]:
    """M copies, each with all its weights trained by an Adam of its own."""
    return [dense_member(copy.deepcopy(net)) for _ in range(MEMBERS)]


def dense_member(net: nn.Module) -> Callable[..., None]:
    """Ordinary training of all weights, without bayesify."""
    return training(net.requires_grad_(True), list(net.parameters()))


def lora_members(
    net: nn.Module, layers: int = LAYERS, last: int | None = None
) -> list[Callable[..., None]]:
    """M adapters of peft around one network; none where peft or transformers is not installed."""
    if peft is None or BertConfig is None:
        return []
    targets = [name.removesuffix(".weight") for name in adapted(layers, last)(net, None)]
    config = peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets)
    model = peft.get_peft_model(copy.deepcopy(net), config, adapter_name="member0").eval()
    for member in range(1, MEMBERS):
        model.add_adapter(f"member{member}", config)

    def one(name: str) -> Callable[..., None]:
        own = [each for path, each in model.named_parameters() if f".{name}." in path]
        return training(model, own, lambda: model.set_adapter(name))

    return [one(f"member{member}") for member in range(MEMBERS)]


def training(
    net: nn.Module, learnt: list[Tensor], before: Callable[[], Any] = lambda: None
) -> Callable[..., None]:
    """One step of one network."""
    optimiser = torch.optim.Adam(learnt, lr=1e-4, fused=True)

    def step(x: Any, y: Tensor) -> None:
        before()
        optimiser.zero_grad()
        output = net(**x) if isinstance(x, dict) else net(x)
        F.cross_entropy(read_tensor(output), y).backward()
        optimiser.step()

    return step


def in_turns(steps: list[Callable[..., None]], x: Any, y: Tensor) -> Callable[[], None]:
    """A step of the next member at each call."""
    for step in steps:  # makes the states of the optimisers
        step({name: each[:1] for name, each in x.items()}, y[:1])
    turns = itertools.cycle(steps)
    return lambda: next(turns)(x, y)


def merged(net: nn.Module, q: LowRankParticles) -> list[nn.Module]:
    """The members as dense networks of their own."""
    members = []
    for draw in q.draws(MEMBERS, 1):
        one = {part: {n: each[0] for n, each in named.items()} for part, named in draw.items()}
        weights = {n: w.dense() for n, w in q.weights(one).items()}
        member = copy.deepcopy(net)
        member.load_state_dict(weights, strict=False)
        members.append(member)
    return members


def summary(work: dict[str, Callable[[], Any]], measured: Callable[..., Any]) -> dict[str, Any]:
    """Milliseconds of M members, and Bella's over those of the others."""
    milliseconds = times_members(measured(work))
    over = {
        f"{name} over {loop}": milliseconds[name] / milliseconds[loop]
        for name in milliseconds
        for loop in LOOPS
        if loop in milliseconds and name.startswith("bella")
    }
    return {"milliseconds": milliseconds, "ratios": over}


def times_members(found: dict[str, float]) -> dict[str, float]:
    """Of a loop one turn was measured."""
    return {n: each * (MEMBERS if n in LOOPS else 1) for n, each in found.items()}
