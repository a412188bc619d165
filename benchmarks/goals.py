"""Goals of a row, and the statistics that decide whether they are reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True, slots=True, kw_only=True)
class GoalResult:
    """Whether a goal is reached."""

    text: str
    side: str | None
    """The fastest of querybox's sides; None if a side is missing."""
    value: float | None
    reached: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A bound on the median over all rounds of `compute(ours, theirs)`."""

    text: str
    ours: tuple[str, ...]
    """querybox's sides; the one with the lowest median is used."""
    peer: str
    compute: Callable[[float, float], float]
    reached: Callable[[float], bool]

    def judge(self, samples: Mapping[str, Sequence[float]]) -> GoalResult:
        """Decide whether the goal is reached, from the interleaved samples of all sides by name."""
        ours = [name for name in self.ours if samples.get(name)]
        if not ours or not samples.get(self.peer):
            return GoalResult(text=self.text, side=None, value=None, reached=False)
        best = min(ours, key=lambda name: median(samples[name]))
        pairs = zip(samples[best], samples[self.peer], strict=True)
        value = median(self.compute(mine, theirs) for mine, theirs in pairs)
        return GoalResult(text=self.text, side=best, value=value, reached=self.reached(value))


def faster(ours: Sequence[str], peer: str, factor: float) -> Goal:
    """Require that the peer takes at least `factor` times as long."""
    return Goal(
        text=f"at least {factor:g}x as fast as {peer}",
        ours=tuple(ours),
        peer=peer,
        compute=lambda mine, theirs: theirs / mine,
        reached=lambda value: value >= factor,
    )


def smaller(ours: Sequence[str], peer: str, share: float) -> Goal:
    """Require at most `share` of what the peer needs."""
    return Goal(
        text=f"at most {share:g}x of {peer}",
        ours=tuple(ours),
        peer=peer,
        compute=lambda mine, theirs: mine / theirs,
        reached=lambda value: value <= share,
    )


def beyond(ours: str, peer: str, limit: float) -> Goal:
    """Require less than `limit` seconds more than the peer."""
    return Goal(
        text=f"less than {limit:g} s beyond {peer}",
        ours=(ours,),
        peer=peer,
        compute=lambda mine, theirs: mine - theirs,
        reached=lambda value: value < limit,
    )


def within(ours: str, reference: str, limit: float) -> Goal:
    """Require that two of querybox's sides differ by at most `limit`."""
    return Goal(
        text=f"within {limit:g} of {reference}",
        ours=(ours,),
        peer=reference,
        compute=lambda mine, other: abs(mine - other),
        reached=lambda value: value <= limit,
    )


def under(ours: str, limit: float) -> Goal:
    """Require less than `limit` seconds, independent of other sides."""
    return Goal(
        text=f"less than {limit:g} s",
        ours=(ours,),
        peer=ours,
        compute=lambda mine, _: mine,
        reached=lambda value: value < limit,
    )


def spread(samples: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile."""
    if len(samples) == 1:
        return samples[0], samples[0], samples[0]
    low, middle, high = quantiles(samples, n=4, method="inclusive")
    return low, middle, high


def ratio(samples: Sequence[float], peer: Sequence[float]) -> float:
    """Return how many times as much the peer takes, as the median over the rounds."""
    return median(theirs / mine for mine, theirs in zip(samples, peer, strict=True))
