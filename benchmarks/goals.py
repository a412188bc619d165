"""What a row has to show, and the numbers that say so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalResult:
    """Whether a goal is reached."""

    text: str
    side: str | None
    """The best of our sides, which counts; None where a side is missing."""
    value: float | None
    reached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A bound on one number: the median over the rounds of what `compute` makes of ours and theirs."""

    text: str
    ours: tuple[str, ...]
    """Our sides; the one with the lowest median counts."""
    peer: str
    compute: Callable[[float, float], float]
    reached: Callable[[float], bool]

    def judge(self, samples: Mapping[str, Sequence[float]]) -> GoalResult:
        """Decide on the samples of all sides by name, which were taken in turns."""
        ours = [name for name in self.ours if samples.get(name)]
        if not ours or not samples.get(self.peer):
            return GoalResult(text=self.text, side=None, value=None, reached=False)
        best = min(ours, key=lambda name: median(samples[name]))
        pairs = zip(samples[best], samples[self.peer], strict=True)
        value = median(self.compute(mine, theirs) for mine, theirs in pairs)
        return GoalResult(text=self.text, side=best, value=value, reached=self.reached(value))


def faster(ours: Sequence[str], peer: str, factor: float) -> Goal:
    """Demand that the peer takes at least `factor` times as long."""
    return Goal(
        text=f"at least {factor:g}x as fast as {peer}",
        ours=tuple(ours),
        peer=peer,
        compute=lambda mine, theirs: theirs / mine,
        reached=lambda value: value >= factor,
    )


def smaller(ours: Sequence[str], peer: str, share: float) -> Goal:
    """Demand at most `share` of what the peer needs."""
    return Goal(
        text=f"at most {share:g}x of {peer}",
        ours=tuple(ours),
        peer=peer,
        compute=lambda mine, theirs: mine / theirs,
        reached=lambda value: value <= share,
    )


def beyond(ours: str, peer: str, limit: float) -> Goal:
    """Demand less than `limit` more than the peer."""
    return Goal(
        text=f"less than {limit:g} s beyond {peer}",
        ours=(ours,),
        peer=peer,
        compute=lambda mine, theirs: mine - theirs,
        reached=lambda value: value < limit,
    )


def within(ours: str, reference: str, limit: float) -> Goal:
    """Demand at most `limit` between two of ours."""
    return Goal(
        text=f"within {limit:g} of {reference}",
        ours=(ours,),
        peer=reference,
        compute=lambda mine, other: abs(mine - other),
        reached=lambda value: value <= limit,
    )


def under(ours: str, limit: float) -> Goal:
    """Demand less than `limit`, whatever others need."""
    return Goal(
        text=f"less than {limit:g} s",
        ours=(ours,),
        peer=ours,
        compute=lambda mine, _: mine,
        reached=lambda value: value < limit,
    )


def spread(samples: Sequence[float]) -> tuple[float, float, float]:
    """Return lower quartile, median, upper quartile."""
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    low, middle, high = quantiles(samples, n=4, method="inclusive")
    return low, middle, high


def ratio(samples: Sequence[float], peer: Sequence[float]) -> float:
    """Return how many times as much the peer takes: the median over the rounds."""
    return median(theirs / mine for mine, theirs in zip(samples, peer, strict=True))
