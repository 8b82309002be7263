"""PAC-Bayes: upper bounds on the risk of a randomised predictor, from its risk on n examples.

For a loss in [0, 1], a law P on the weights that does not depend on the n examples, and delta in
(0, 1), with probability at least 1 - delta over n independent examples, for *all* laws Q at once:

    kl(L^ || L) <= (KL(Q || P) + ln(2 sqrt(n) / delta)) / n                     (Seeger, Maurer)
    L <= L^ + sqrt((KL(Q || P) + ln(2 sqrt(n) / delta)) / (2 n))                (McAllester)
    L <= (1 - exp(-lam L^ - (KL(Q || P) + ln(1 / delta)) / n)) / (1 - exp(-lam))       (Catoni)

L^ and L are the Gibbs risks: the mean loss of a single weight draw from Q, on the examples and in
the population. kl(q || p) is the divergence of two Bernoulli laws, KL is in nats, and lam is fixed
before the examples are seen. Whatever else of the predictor was trained (frozen layers, the mean of
P) must not depend on these n examples either: hold them out. The risk of the majority vote is at
most 2 L.

Sources: Maurer 2004, arXiv cs/0411099, theorem 5 (his n >= 8 is not needed: the constant holds for
every n, Germain et al. 2015, arXiv 1503.08329); McAllester 1999 and 2003; Catoni 2007, arXiv
0712.0248, theorem 1.2.6; Langford & Caruana 2001; review: Alquier 2021, arXiv 2110.11216.
"""

import math
import numbers
from collections.abc import Sequence

from bayesify.core.errors import OptionError

LAMS = tuple(2.0**power for power in range(-6, 6))
"""Rates of `catoni_grid_bound`, 1/64 to 32.

The best rate is logit(bound) - logit(risk): small for many examples, large for a risk near 0.
"""


def bernoulli_kl(q: float, p: float) -> float:
    """kl(q || p) = q ln(q / p) + (1 - q) ln((1 - q) / (1 - p)), nats.

    Args:
        q: Probability in [0, 1].
        p: Probability in [0, 1]; where it excludes what q allows, the divergence is infinite.

    Raises:
        OptionError: when one is no probability.

    Example:
        >>> round(bernoulli_kl(0.0, 0.5), 6)      # ln 2
        0.693147
    """
    _check_share("q", q)
    _check_share("p", p)
    if p in (0, 1):
        return 0.0 if q == p else math.inf
    return max(0.0, _term(q, p, p - q) + _term(1 - q, 1 - p, q - p))


def invert_kl(q: float, budget: float) -> float:
    """The largest p >= q with kl(q || p) <= budget, to double precision.

    Args:
        q: Probability in [0, 1].
        budget: Nats, at least 0; infinite gives 1.

    Raises:
        OptionError: when q is no probability or the budget is negative.

    Example:
        >>> invert_kl(0.0, 1.0)                   # 1 - exp(-1)
        0.632120558828...
    """
    _check_share("q", q)
    if not budget >= 0:
        raise OptionError(f"budget={budget}: expected a number of nats, at least 0.")
    if budget == math.inf:
        return 1.0
    low, high = float(q), 1.0
    while low < (middle := (low + high) / 2) < high:  # until no number lies between them
        low, high = (middle, high) if bernoulli_kl(q, middle) <= budget else (low, middle)
    return low


def seeger_bound(empirical_risk: float, kl: float, n: int, delta: float) -> float:
    """The p with kl(empirical risk || p) = (KL + ln(2 sqrt(n) / delta)) / n: tightest in practice.

    Source: Maurer 2004, arXiv cs/0411099, theorem 5, after Seeger 2002.

    Args:
        empirical_risk: Gibbs risk on the n examples, in [0, 1]. Estimated from weight draws, it
            must be replaced by its own upper bound, `monte_carlo_bound`.
        kl: KL(Q || P), nats; infinite gives 1.
        n: Examples.
        delta: Probability with which the bound may fail, in (0, 1).

    Raises:
        OptionError: when an argument is out of range.

    Example:
        >>> round(seeger_bound(0.05, kl=10.0, n=1000, delta=0.05), 4)
        0.1008
    """
    _check(empirical_risk, kl, n, delta)
    return invert_kl(empirical_risk, _complexity(kl, n, delta))


def mcallester_bound(empirical_risk: float, kl: float, n: int, delta: float) -> float:
    """The empirical risk + sqrt((KL + ln(2 sqrt(n) / delta)) / (2 n)), at most 1.

    By Pinsker's inequality never below `seeger_bound`. Arguments and errors as there.

    Source: McAllester 1999 and 2003, with the constant of Maurer 2004, arXiv cs/0411099.

    Example:
        >>> round(mcallester_bound(0.05, kl=10.0, n=1000, delta=0.05), 4)
        0.1426
    """
    _check(empirical_risk, kl, n, delta)
    return min(1.0, empirical_risk + math.sqrt(_complexity(kl, n, delta) / 2))


def catoni_bound(empirical_risk: float, kl: float, n: int, delta: float, *, lam: float) -> float:
    """(1 - exp(-lam risk - (KL + ln(1 / delta)) / n)) / (1 - exp(-lam)), at most 1.

    Valid for one `lam` chosen before the examples are seen; to try several, `catoni_grid_bound`.

    Source: Catoni 2007, arXiv 0712.0248, theorem 1.2.6.

    Args:
        empirical_risk: As in `seeger_bound`, as are `kl`, `n` and `delta`.
        kl: KL(Q || P), nats.
        n: Examples.
        delta: Probability with which the bound may fail.
        lam: Rate above 0: how much the empirical risk counts against KL / n.

    Raises:
        OptionError: when an argument is out of range.

    Example:
        >>> round(catoni_bound(0.05, kl=10.0, n=1000, delta=0.05, lam=1.0), 4)
        0.0966
    """
    _check(empirical_risk, kl, n, delta)
    if not 0 < lam < math.inf:
        raise OptionError(f"lam={lam}: expected a finite number above 0.")
    exponent = lam * empirical_risk + (kl - math.log(delta)) / n
    return min(1.0, math.expm1(-exponent) / math.expm1(-lam))


def catoni_grid_bound(
    empirical_risk: float, kl: float, n: int, delta: float, *, lams: Sequence[float] = LAMS
) -> float:
    """The smallest `catoni_bound` over a grid of rates, each of which may fail with delta / len.

    By the union bound all hold at once with probability 1 - delta, so the best may be picked with
    the examples in hand. The grid itself must be fixed beforehand.

    Args:
        empirical_risk: As in `seeger_bound`, as are `kl`, `n` and `delta`.
        kl: KL(Q || P), nats.
        n: Examples.
        delta: Probability with which the bound may fail.
        lams: Rates above 0, at least one.

    Raises:
        OptionError: when an argument is out of range or the grid is empty.

    Example:
        >>> round(catoni_grid_bound(0.05, kl=10.0, n=1000, delta=0.05), 4)
        0.1003
    """
    _check(empirical_risk, kl, n, delta)
    if not lams:
        raise OptionError("lams is empty: expected at least one rate above 0.")
    share = delta / len(lams)
    return min(catoni_bound(empirical_risk, kl, n, share, lam=each) for each in lams)


def monte_carlo_bound(sampled_risk: float, draws: int, delta: float) -> float:
    """Upper bound on the Gibbs risk L^ on given examples, from the mean over m weight draws.

    With probability 1 - delta over the draws L^ <= p, where kl(sampled risk || p) = ln(2/delta)/m.
    Put p in the place of the empirical risk of a bound that fails with probability delta', and the
    whole fails with probability at most delta + delta'.

    Source: Langford & Caruana 2001 ((Not) bounding the true error), whose interval has two sides;
    the upper one alone would do with ln(1 / delta).

    Args:
        sampled_risk: Mean risk of the draws on all n examples, in [0, 1].
        draws: Independent weight draws m from Q.
        delta: Probability with which the bound may fail, in (0, 1).

    Raises:
        OptionError: when an argument is out of range.

    Example:
        >>> round(monte_carlo_bound(0.05, draws=500, delta=0.01), 4)
        0.0882
    """
    _check_share("sampled_risk", sampled_risk)
    _check_count("draws", draws)
    _check_delta(delta)
    return invert_kl(sampled_risk, math.log(2 / delta) / draws)


def _term(q: float, p: float, gap: float) -> float:
    """Q ln(q / p), where gap = p - q is known more exactly than p and q are."""
    if q == 0:
        return 0.0
    if abs(gap) < q / 2:
        return -q * math.log1p(gap / q)
    return q * (math.log(q) - math.log(p))


def _complexity(kl: float, n: int, delta: float) -> float:
    return (kl + math.log(2 * math.sqrt(n) / delta)) / n


def _check(empirical_risk: float, kl: float, n: int, delta: float) -> None:
    _check_share("empirical_risk", empirical_risk)
    if not kl >= 0:
        raise OptionError(f"kl={kl}: expected a divergence in nats, at least 0.")
    _check_count("n", n)
    _check_delta(delta)


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise OptionError(f"{name}={value}: expected a number from 0 to 1.")


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, numbers.Integral) or value < 1:
        raise OptionError(f"{name}={value}: expected a whole number, at least 1.")


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise OptionError(
            f"delta={delta}: expected a probability above 0 and below 1, such as 0.05."
        )
