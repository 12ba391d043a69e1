"""The tokens that are still in the race: found without sorting the vocabulary.

Owns: selection (the k largest, all above a floor, the nucleus) and the filters of llama.cpp's
chain. Pure. A set of candidates is two arrays, token ids and logits, the largest logit first and
equal ones by id, so that no answer depends on a sort's whim.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from aivailable.wire.generation import Sampling
from aivailable.worker.engine import Logits

Ids: TypeAlias = npt.NDArray[np.int64]
Floats: TypeAlias = npt.NDArray[np.float64]

FOLD_ROWS: Final = 64
"""The row is folded into this many lines; the maximum of each column tells where the large are."""
MAXIMA_ROWS: Final = 16
"""These maxima are folded again, into this many lines."""
TAKEN_MAX_TIMES: Final = 4
"""Columns looked into for every token wanted; where more would be, the second fold was no help."""
LEAST: Final = np.finfo(np.float32).min
NUCLEUS_DEPTHS: Final = (4.0, 8.0, 16.0)
"""Distances from the largest logit within which top-p's nucleus is looked for, nearest first."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Token ids with their logits, best first. Never empty."""

    ids: Ids
    logits: Floats

    def first(self, count: int) -> Candidates:
        """The best `count` of them, at least one."""
        count = max(1, count)
        return self if count >= len(self.ids) else Candidates(self.ids[:count], self.logits[:count])

    def weights(self) -> Floats:
        """exp(logit - best logit): probabilities that are not normalized."""
        weights: Floats = np.exp(self.logits - self.logits[0])
        return weights


def ordered(row: Logits, ids: npt.NDArray[np.intp]) -> Candidates:
    """Candidates of these ids (ascending), without those of logit -inf."""
    return _sorted(ids, row[ids])


def _sorted(ids: npt.NDArray[np.intp], values: Logits) -> Candidates:
    """The largest first; nothing but the one that is not a number, if one is not."""
    order = np.negative(values).argsort(kind="stable")
    ids = ids[order].astype(np.int64, copy=False)
    logits: Floats = values[order].astype(np.float64)
    last = float(logits[-1])
    if last > -math.inf:
        return Candidates(ids, logits)
    if last == -math.inf:
        return Candidates(ids, logits).first(int(np.count_nonzero(logits > -math.inf)))
    return Candidates(ids[-1:], logits[-1:])


def largest(row: Logits, count: int) -> Candidates:
    """The `count` largest. Linear, and reads the row once: at least `count` elements reach the
    count-th largest of the column maxima, so that only few columns are looked into. Of a row with
    a NaN only that."""
    size = row.shape[0]
    columns = size // FOLD_ROWS
    if columns < 2 * count:
        if count >= size:
            return ordered(row, np.arange(size))
        floor = np.partition(row, size - count)[size - count]
        return ordered(row, (~(row < floor)).nonzero()[0]).first(count)
    folded = row[: columns * FOLD_ROWS].reshape(FOLD_ROWS, columns)
    maxima: Logits = np.maximum.reduce(folded, axis=0)
    taken, floor = _columns_of(maxima, count)
    # Of one dimension: numpy finds what is set in two far more slowly.
    values = folded[:, taken].ravel()
    hits = _not_below(values, floor)
    lines = hits // len(taken)
    ids = lines * columns + taken[hits - lines * len(taken)]
    values = values[hits]
    if size % FOLD_ROWS:
        rest = _not_below(row[columns * FOLD_ROWS :], floor) + columns * FOLD_ROWS
        ids, values = np.concatenate((ids, rest)), np.concatenate((values, row[rest]))
    if not len(ids):
        return ordered(row, np.array([row.argmax()]))
    return _sorted(ids, values).first(count)


def _columns_of(maxima: Logits, count: int) -> tuple[npt.NDArray[np.intp], np.float32]:
    """The columns that may hold one of the `count` largest, and a number that these reach."""
    width = len(maxima) // MAXIMA_ROWS
    if width >= 2 * count:
        # Folded once more a handful of numbers is left: sorted faster than the maxima parted.
        coarse = np.maximum.reduce(
            maxima[: width * MAXIMA_ROWS].reshape(MAXIMA_ROWS, width), axis=0
        )
        coarse.sort()
        # What a grammar or a bias forbids is never looked for.
        floor = max(coarse[width - count], LEAST)
        taken = _not_below(maxima, floor)
        if len(taken) <= TAKEN_MAX_TIMES * count:
            return taken, floor
    floor = max(np.partition(maxima, len(maxima) - count)[len(maxima) - count], LEAST)
    return _not_below(maxima, floor), floor


def _not_below(values: Logits, floor: np.float32) -> npt.NDArray[np.intp]:
    """Where they reach the floor or are no numbers."""
    below = np.less(values, floor)
    found: npt.NDArray[np.intp] = np.logical_not(below, out=below).nonzero()[0]
    return found


def draw_from_all(row: Logits, temperature: float, roll: float, scratch: Logits) -> int:
    """A draw from the whole vocabulary, in the order of ids: which line of the folded row first,
    then where in it. `roll` in [0, 1)."""
    np.subtract(row, row.max(), out=scratch)
    if temperature != 1.0:
        np.divide(scratch, np.float32(temperature), out=scratch)
    np.exp(scratch, out=scratch)
    size = row.shape[0]
    width = max(1, size // FOLD_ROWS)
    starts = np.arange(0, size, width)
    lines = np.cumsum(np.add.reduceat(scratch, starts), dtype=np.float64)
    at = roll * lines[-1]
    line = min(int(np.searchsorted(lines, at, side="right")), len(lines) - 1)
    rest = at - (lines[line - 1] if line else 0.0)
    begin = line * width
    within = np.cumsum(scratch[begin : begin + width], dtype=np.float64)
    found = int(np.searchsorted(within, min(rest, within[-1]), side="right"))
    if found < len(within):
        return int(begin + found)
    # The sum of a line may differ from its parts' in the last digit: its last possible token.
    return int(begin + np.flatnonzero(scratch[begin : begin + width])[-1])


def above(row: Logits, floor: float) -> Candidates:
    """Every token whose logit is at least `floor`; the largest in any case."""
    ids = np.flatnonzero(row >= np.float32(floor))
    return ordered(row, ids if len(ids) else np.array([row.argmax()]))


def nucleus(row: Logits, top_p: float, min_p: float, scratch: Logits) -> Candidates:
    """top-p and then min-p over the whole vocabulary: both keep a beginning of the sorted row, so
    that what is below min-p's floor needs no sorting. `scratch`: a row to compute in."""
    best = float(row.max())
    np.subtract(row, np.float32(best), out=scratch)
    np.exp(scratch, out=scratch)
    wanted = top_p * float(scratch.sum(dtype=np.float64))
    depths = (-math.log(min_p),) if min_p > 0.0 else (*NUCLEUS_DEPTHS, math.inf)
    for depth in depths:
        found = above(row, best - depth)
        mass = found.weights().cumsum()
        if mass[-1] >= wanted or depth == depths[-1]:
            return found.first(int(mass.searchsorted(wanted, side="left")) + 1)
    raise AssertionError("the last depth always returns")


def within_sigma(row: Logits, sigmas: float) -> Candidates:
    """top-n-sigma (arXiv 2411.07641): within n standard deviations of the largest logit."""
    values = row[row > -math.inf].astype(np.float64)
    return above(row, float(values.max() - sigmas * values.std()))


def keeps_all(sampling: Sampling) -> bool:
    """Whether no filter is on."""
    return (
        sampling.top_n_sigma <= 0.0
        and sampling.top_k <= 0
        and sampling.typical_p >= 1.0
        and sampling.top_p >= 1.0
        and sampling.min_p <= 0.0
    )


def selected(row: Logits, sampling: Sampling, scratch: Logits) -> Candidates:
    """The candidates after top-n-sigma, top-k, typical, top-p and min-p, in this order
    (llama.cpp, `common/sampling.cpp`, the default chain)."""
    plain = sampling.top_n_sigma <= 0.0 and sampling.typical_p >= 1.0
    if plain and sampling.top_k <= 0:
        if sampling.top_p < 1.0:
            return nucleus(row, sampling.top_p, sampling.min_p, scratch)
        if sampling.min_p > 0.0:
            return above(row, float(row.max()) + math.log(sampling.min_p))
    if sampling.top_n_sigma > 0.0:
        found = within_sigma(row, sampling.top_n_sigma)
        found = found.first(sampling.top_k) if sampling.top_k > 0 else found
    else:
        found = largest(row, sampling.top_k if sampling.top_k > 0 else row.shape[0])
    return narrowed(found, sampling)


def narrowed(found: Candidates, sampling: Sampling) -> Candidates:
    """What typical, top-p and min-p leave of what top-k found."""
    if sampling.typical_p < 1.0:
        found = typical(found, sampling.typical_p)
    weights = found.weights()
    keep = len(weights)
    if sampling.top_p < 1.0:
        mass = weights.cumsum()
        keep = int(mass.searchsorted(sampling.top_p * mass[-1], side="left")) + 1
    if sampling.min_p > 0.0:
        keep = min(keep, int(np.count_nonzero(weights >= sampling.min_p)))
    return found.first(keep)


def typical(found: Candidates, share: float) -> Candidates:
    """Locally typical sampling (arXiv 2202.00666): nearest to the entropy first, until their
    probabilities exceed `share`."""
    probabilities = found.weights()
    probabilities /= probabilities.sum()
    surprise = -np.log(np.maximum(probabilities, 1e-300))
    entropy = float((probabilities * surprise).sum())
    order = np.argsort(np.abs(surprise - entropy), kind="stable")
    mass = np.cumsum(probabilities[order])
    keep = int(np.searchsorted(mass, share, side="right")) + 1
    kept = np.sort(order[:keep])
    return Candidates(found.ids[kept], found.logits[kept])


def without_top_choices(found: Candidates, threshold: float) -> Candidates:
    """XTC: of all tokens that reach the threshold only the least probable stays
    (llama.cpp `llama_sample_xtc_apply`)."""
    if threshold > 0.5 or len(found.ids) < 2:
        return found
    weights = found.weights()
    reach = int(np.count_nonzero(weights >= threshold * weights.sum()))
    if reach < 2:
        return found
    return Candidates(found.ids[reach - 1 :], found.logits[reach - 1 :])
