"""Streams of random numbers: a generator for each seed and each use of it.

Two generators that start from one number give one sequence, whatever it is used for: the noise of
a prediction would be that of the initial weights, and an order of batches that of an attack. So a
seed becomes a generator here alone, by a hash of the seed and the name of its use:

    fit                 what a method draws: weights, masks, starts of members
    global              torch's global generators in a fit: dropout, shuffling, `reset_parameters`
    predict             the weight samples that a posterior predicts with
    resume              what a method draws that goes on after a fit
    rehearsal, check, footprint, targets, trace, recalibrate
                        what is tried once, or measured, beside a fit
    attack, start       the starts of attacks; that of one example
    certify, directions, halves, retrain, compress
                        evaluation, and what is done with a posterior

Initial weights (`models.build`), the cut of data into parts, the examples that certify, and data
sets that are made are not among them: they are what `torch.manual_seed` or numpy make of the seed
itself, so that networks and data stay what they are, and saved posteriors find theirs again.
"""

import hashlib

import torch

USES = (
    *("fit", "global", "predict", "resume"),
    *("rehearsal", "check", "footprint", "targets", "trace", "recalibrate"),
    *("attack", "start", "certify", "directions", "halves", "retrain", "compress"),
)


def salted(seed: int, use: str) -> int:
    """A number of 63 bits that a generator can start from, the same on every machine.

    torch's generator on the CPU starts from the lower 32 of them.

    Args:
        seed: Any whole number.
        use: One of `USES`.

    Example:
        >>> salted(0, "fit") == salted(0, "predict")
        False
    """
    if use not in USES:
        raise ValueError(f"expected one of {', '.join(USES)}, got {use!r}")
    hashed = hashlib.sha256(f"{use} {seed}".encode()).digest()
    return int.from_bytes(hashed[:8], "little") >> 1


def stream(seed: int, use: str) -> torch.Generator:
    """A generator on the CPU at the start of the stream of `seed` for `use`.

    Example:
        >>> torch.rand(1, generator=stream(0, "fit")) == torch.rand(1, generator=stream(0, "fit"))
        tensor([True])
    """
    return torch.Generator().manual_seed(salted(seed, use))
