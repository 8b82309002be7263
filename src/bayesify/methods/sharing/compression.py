"""A saved posterior in few bytes: weights that share Gaussians, packed; and what that saves."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

from bayesify.core.errors import OptionError, UnsupportedModelError
from bayesify.core.streams import stream
from bayesify.distributions.mean_field import MeanField
from bayesify.distributions.shared.normal import SharedNormal
from bayesify.methods.sharing.codebook import share
from bayesify.posteriors.persistence import disk_bytes
from bayesify.posteriors.weight import WeightPosterior
from bayesify.weights.named import buffers_of, weights_of

MOST_CODES, MOST_OUTLIERS = 2**15, 0.5


def compressed(
    posterior: WeightPosterior,
    *,
    codes: int = 256,
    outliers: float = 0.01,
    blending: bool = False,
    seed: int = 0,
) -> WeightPosterior:
    """The same posterior with Gaussians that many weights share; needs no data.

    Args:
        posterior: A mean-field one (of `STF`, `MeanFieldVI`, `DiagonalLaplace`), all of whose
            random weights are shared, biases and norms among them: leave these out of the fit by
            `where=bayesify.matrices`. One that `WeightSharing` fitted comes back as it is: it is
            packed whenever it is saved. Not changed; the result shares its model and likelihood.
        codes: Gaussians K. Each weight takes ceil(log2 K) bits.
        outliers: Share of the weights that keep a Gaussian of their own.
        blending: Whether weights far from their Gaussian are blended of two.
        seed: Of the clustering.

    Raises:
        OptionError: numbers of codes or outliers that make no sense.
        UnsupportedModelError: weights of another distribution.

    Example:
        >>> import torch
        >>> from bayesify import DiagonalLaplace, fit, save
        >>> net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.Linear(128, 10))
        >>> data = torch.randn(100, 64), torch.randint(10, (100,))
        >>> wide = fit(net, data, DiagonalLaplace(pretrain=None, factor=0.1))
        >>> small = compressed(wide, codes=16)
        >>> wide.trainable_parameters, small.trainable_parameters      # scales alone; all numbers
        (9610, 224)
    """
    if not (1 <= codes <= MOST_CODES and 0 <= outliers <= MOST_OUTLIERS):
        raise OptionError(
            f"compressed(codes={codes}, outliers={outliers}): expected 1 to {MOST_CODES} codes, "
            f"and a share of outliers from 0 to {MOST_OUTLIERS}."
        )
    q, record = posterior.q, posterior.record
    if isinstance(q, MeanField):
        scale = {name: each.detach() for name, each in q.scale.items()}
        generator = stream(seed, "compress")
        _, shared = share(
            q.point(),
            scale,
            codes=codes,
            outliers=outliers,
            blending=blending,
            generator=generator,
        )
        q = shared.rounded()
        how = {"codes": codes, "outliers": outliers, "blending": blending, "seed": seed}
        if record is not None:
            record = replace(record, options=record.options | {"compressed": how})
    elif not isinstance(q, SharedNormal):
        raise UnsupportedModelError(
            f"compressed: expected independent Gaussians over the weights (STF, MeanFieldVI, "
            f"DiagonalLaplace, WeightSharing), got {type(q).__name__}; fit one of these first, "
            f"e.g. bayesify.fit(net, data, DiagonalLaplace(pretrain=None), validation=held_out)."
        )
    small = posterior.replaced(q)
    small.record = record
    return small


@dataclass(frozen=True)
class Sizes:
    """Bytes of a saved posterior beside what else could be saved of the network.

    Attributes:
        saved: All files of the folder, the manifest among them.
        network: The weights and buffers of one deterministic network, as they are.
        pair: These, and a standard deviation for every random weight: mean-field without sharing.

    Example:
        >>> sizes = Sizes(saved=250, network=1000, pair=2000)
        >>> sizes.of_network, sizes.of_pair
        (0.25, 0.125)
    """

    saved: int
    network: int
    pair: int

    @classmethod
    def of(cls, folder: str | Path, posterior: WeightPosterior) -> "Sizes":
        """Of the folder that `posterior` was saved in.

        Raises:
            OptionError: it was saved with base=False, so that most of it is missing.
        """
        if posterior.base() and not (Path(folder) / "base.safetensors").exists():
            raise OptionError(f"{folder} was saved with base=False; save it with its base weights.")
        weights = weights_of(posterior.model)
        held = weights | buffers_of(posterior.model)
        network = sum(each.numel() * each.element_size() for each in held.values())
        random = [weights[name] for name in posterior.q.names if name in weights]
        scales = sum(each.numel() * each.element_size() for each in random)
        return cls(disk_bytes(Path(folder)), network, network + scales)

    @property
    def of_network(self) -> float:
        """Saved bytes as a share of the network's."""
        return self.saved / self.network

    @property
    def of_pair(self) -> float:
        """Saved bytes as a share of the pair's."""
        return self.saved / self.pair

    def to_json(self) -> dict[str, float]:
        """As plain values."""
        held = {each.name: getattr(self, each.name) for each in fields(self)}
        return held | {"of_network": self.of_network, "of_pair": self.of_pair}
