"""What a comparison measures beside quality, foreign data and cost, and how.

On the command line `--evaluate attacks,membership --set attacks.steps=20`; in a suite

evaluate = ["attacks", "membership"]    # "all" is all but shadows, which fit many posteriors

[attacks]
eps = [0.1, 0.3]
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from bayesify.core.errors import OptionError
from bayesify.core.fields import near
from bayesify.core.options import table
from bayesify.experiments.choices import with_options

ASPECTS = ("attacks", "corruptions", "membership", "certificates", "far-away", "shadows")
ALL = ("attacks", "corruptions", "membership", "certificates", "far-away")

_OPTIONS = {  # imported when asked for: what corrupts images takes a while to load
    "attacks": "bayesify.evaluation.robustness.curves:Attacks",
    "corruptions": "bayesify.evaluation.shift.severities:Corruptions",
    "shadows": "bayesify.evaluation.privacy.shadow:Shadows",
}


@dataclass(frozen=True)
class Aspects:
    """The aspects, and the options of those that have any.

    Example:
        >>> chosen = Aspects().changed(["attacks"], {"attacks": {"steps": "3"}})
        >>> chosen.options["attacks"].steps
        3
    """

    names: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def changed(
        self, names: Iterable[str] | None, settings: Mapping[str, Mapping[str, Any]]
    ) -> "Aspects":
        """The same with other names, unless they are None, and with some options replaced.

        Args:
            names: Of `ASPECTS`; "all" stands for `ALL`, "none" for nothing.
            settings: Options by aspect, as text or typed values.

        Raises:
            OptionError: an aspect or an option is unknown, or options are given for what is not
                measured.
        """
        chosen = self.names if names is None else _named(names)
        for name in settings:
            if name not in chosen:
                raise OptionError(
                    f"an option of {name} is given, which is not measured: expected {name!r} "
                    f"among what to evaluate."
                )
        made = {}
        for name in chosen:
            if name in _OPTIONS:
                start = self.options.get(name) or table(_OPTIONS[name])()
                made[name] = with_options(start, settings.get(name, {}))
            elif settings.get(name):
                raise OptionError(f"{name} has no options, got {', '.join(settings[name])}.")
        return Aspects(chosen, made)

    def to_json(self) -> dict[str, Any]:
        """As plain values; empty where nothing is measured."""
        return {
            name: asdict(self.options[name]) if name in self.options else {} for name in self.names
        }


def _named(names: Iterable[str]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for name in names:
        if name not in (*ASPECTS, "all", "none"):
            raise OptionError(
                f"evaluate: unknown {name!r}, expected some of {', '.join(ASPECTS)}, or all"
                f"{near(name, ASPECTS)}"
            )
        found |= dict.fromkeys(ALL if name == "all" else () if name == "none" else (name,))
    return tuple(name for name in ASPECTS if name in found)
