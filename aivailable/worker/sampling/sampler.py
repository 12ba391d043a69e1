"""One request's chain: bias, penalties, DRY, filters, temperature, one keyed draw.

Owns: the order, which is that of llama.cpp's default chain (`common/sampling.cpp`: logit-bias,
penalties, dry, top-n-sigma, top-k, typical, top-p, min-p, xtc, temperature, dist), and the state
that depends on the tokens so far. Made by job; it must not know text or grammars.

Unlike upstream, mirostat keeps bias, penalties and DRY before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from aivailable.errors import WorkerError
from aivailable.wire.generation import Sampling
from aivailable.worker.engine import Logits
from aivailable.worker.sampling.candidates import (
    Candidates,
    draw_from_all,
    keeps_all,
    largest,
    narrowed,
    selected,
    without_top_choices,
)
from aivailable.worker.sampling.dice import DRAW, REDRAW, XTC, gumbels, uniform
from aivailable.worker.sampling.mirostat import Mirostat
from aivailable.worker.sampling.penalties import Bias, Dry, Penalties

Mask = npt.NDArray[np.bool_]
"""True for every token that may come; as long as the vocabulary."""


class NoToken(WorkerError):
    """No token can be drawn: the logits are not numbers, or everything is forbidden."""


class Sampler:
    """Draws one answer's tokens. `take` it every token, the prompt's first.

    `scratch`, `changed`: memory for a row each, which other samplers may use between two draws.
    """

    def __init__(
        self,
        sampling: Sampling,
        seed: int,
        piece: Callable[[int], bytes],
        scratch: Logits,
        forbidden: Iterable[int] = (),
        changed: Logits | None = None,
    ) -> None:
        bias = {int(token): value for token, value in sampling.logit_bias.items()}
        bias.update(dict.fromkeys(forbidden, -math.inf))
        self._sampling = sampling
        self._seed = seed
        self._scratch = scratch
        self._changed = np.empty_like(scratch) if changed is None else changed
        self._bias = Bias(bias)
        self._penalties = Penalties(sampling)
        self._dry = Dry(sampling, piece)
        self._xtc = sampling.xtc_probability > 0.0 and sampling.xtc_threshold <= 0.5
        self._greedy = sampling.temperature <= 0.0 and not self._xtc
        adaptive = sampling.mirostat > 0 and sampling.temperature > 0.0
        self._mirostat = Mirostat(sampling) if adaptive else None
        self._unfiltered = not self._xtc and self._mirostat is None and keeps_all(sampling)
        self._ranked = self._mirostat is None and sampling.top_k > 0 >= sampling.top_n_sigma
        self._remade = self._penalties.active or self._dry.active
        self._plain = not (self._bias.active or self._remade)
        self._pending: Candidates | None = None

    @property
    def needs_every_row(self) -> bool:
        """Whether a continuation must see the logits of the replayed tokens, too."""
        return self._mirostat is not None

    @property
    def remembers(self) -> bool:
        """Whether the tokens of the prompt matter."""
        return self._penalties.active or self._dry.active

    def take(self, token: int, *, answer: bool) -> None:
        """The token stands: one of the prompt, a replayed or a drawn one."""
        if self._pending is not None and self._mirostat is not None:
            self._mirostat.learn(self._pending, token)
        self._pending = None
        if self._penalties.active:
            self._penalties.take(token, answer=answer)
        if self._dry.active:
            self._dry.take(token)

    def changed(self, row: Logits, tokens: Sequence[int]) -> Logits:
        """The row after bias, penalties and DRY: in the memory given for it, where the next call
        overwrites it, or the row itself where nothing is to change."""
        if self._plain:
            return row
        # A new array for every token would be new pages from the kernel for every token.
        np.copyto(self._changed, row)
        row = self._changed
        if self._bias.active:
            self._bias.apply(row)
        if self._penalties.active:
            self._penalties.apply(row, tokens)
        if self._dry.active:
            self._dry.apply(row)
        return row

    def obvious(self, row: Logits) -> int | None:
        """The token that `draw` would take from the `changed` row, where the unchanged one says it:
        the largest stays the largest when only others lose. Saves a copy of a large row."""
        if not self._greedy or self._remade or not self._bias.lowers:
            return None
        best = int(row.argmax())
        return None if best in self._bias or not math.isfinite(row[best]) else best

    def draw(self, row: Logits, position: int, *, again: bool = False) -> int:
        """A token from a `changed` (and perhaps masked) row. `position`: how many tokens of the
        answer there are already. `again`: after a refusal. Raises NoToken."""
        if self._greedy:
            best = int(row.argmax())
            _check(row[best])
            return best
        purpose = REDRAW if again else DRAW
        if self._unfiltered:
            # Numbers for all tokens would cost more than everything else.
            _check(row.max())
            roll = uniform(self._seed, position, purpose)
            return draw_from_all(row, self._sampling.temperature, roll, self._scratch)
        found = self.distribution(row, position)
        if len(found.ids) == 1:
            return int(found.ids[0])
        noise = gumbels(self._seed, position, purpose, found.ids)
        return int(found.ids[(found.logits + noise).argmax()])

    def distribution(self, row: Logits, position: int) -> Candidates:
        """The tokens that may be drawn, with logits divided by the temperature. Raises NoToken."""
        sampling = self._sampling
        if self._ranked:
            # The largest says it, too: the row is read once.
            found = largest(row, sampling.top_k)
            _check(found.logits[0])
            found = narrowed(found, sampling)
        else:
            _check(row.max())
            if self._mirostat is not None:
                self._pending = self._mirostat.select(row, self._scratch)
                return self._pending
            found = selected(row, sampling, self._scratch)
        if self._xtc and uniform(self._seed, position, XTC) <= sampling.xtc_probability:
            found = without_top_choices(found, sampling.xtc_threshold)
        if sampling.temperature <= 0.0:
            return found.first(1)
        return Candidates(found.ids, found.logits / sampling.temperature)


def _check(best: np.float32 | np.float64) -> None:
    """The largest logit of a row. Raises NoToken."""
    if not math.isfinite(best):
        raise NoToken("the model computed no finite logits, or every token is forbidden")
