"""How many bytes a deployment would need: now, for each token more and for each slot more.

Owns the questions to the dry run and to the formula, and what a question is about
(`ModelCandidate`). Must not decide whether that fits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from aivailable.core.state.records import Companion, Growth, Model
from aivailable.errors import GgufError, RequestError
from aivailable.gguf.companion_options import LORA, PROJECTOR, lora_items, with_paths
from aivailable.gguf.memory import CONTEXT_STEP_TOKENS, need
from aivailable.peer.deploying.companions import FoundCompanion
from aivailable.peer.deploying.growth import divided_up, most_context, most_slots, steepest
from aivailable.peer.ports import Ports, Prediction, PredictRequest
from aivailable.peer.service import DeployRequest

CONTEXT_AUTO_MAX_TOKENS = 32_768
"""The most of an automatic context where the file does not say what it was trained for."""


@dataclass(frozen=True, slots=True)
class ModelCandidate:
    """A model that is asked about: of the catalogue, or a file that is not in it (`path`), whose
    digest is a stand-in, since a question does not hash gigabytes. And the files that go with it.
    """

    model: Model
    path: Path | None = None
    found: tuple[FoundCompanion, ...] = ()

    @property
    def companions(self) -> tuple[Companion, ...]:
        return tuple(one.companion for one in self.found)

    @property
    def held(self) -> tuple[str, ...]:
        """Digests of the companions that this node holds, each once."""
        digests = (one.companion.digest for one in self.found if one.path is not None)
        return tuple(dict.fromkeys(digests))


class Sizing:
    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    async def growth(
        self,
        request: DeployRequest,
        candidate: ModelCandidate,
        context: int,
        slots: int,
        least: Prediction,
    ) -> Growth | None:
        """What each token more costs, between the least context and the largest, and each slot
        more with the largest context; None = both are fixed. Raises RequestError.

        Compute grows ever faster and a cache with a sliding window ever slower: the chord and the
        first step, whichever is more, is never too little in between."""
        facts = candidate.model.facts
        most = context
        if request.context_max is not None:
            most = request.context_max or facts.context_train or CONTEXT_AUTO_MAX_TOKENS
            most = min(most, facts.context_train or most, most_context(slots))
            most = max(context, most)
        slots_most = slots
        if request.slots_max is not None:
            slots_most = max(slots, most_slots(request.slots_max, most))
        if (most, slots_most) == (context, slots):
            return None
        counts = range(slots, slots_most + 1)
        if most == context:
            grown = Growth(context, 0, 0)
            return await self._with_slots(grown, candidate, request.options, counts, least)
        kv_type = request.options.get("kv_type", "f16")
        far = largest = await self.predict(candidate, most, slots, request.options)
        here = need(facts, context, slots, kv_type)
        step = need(facts, context + CONTEXT_STEP_TOKENS, slots, kv_type).kv_bytes - here.kv_bytes
        if far.by != least.by:  # One of the dry runs gave no sizes; never mix it with the formula.
            size = need(facts, most, slots, kv_type)
            far = Prediction(size.weights_bytes, size.kv_bytes, size.compute_bytes, "formula")
            least = Prediction(here.weights_bytes, here.kv_bytes, here.compute_bytes, "formula")
        more = most - context
        grown = Growth(
            context_max=most,
            token_kv_bytes=max(
                divided_up(far.kv_bytes - least.kv_bytes, more),
                divided_up(step, CONTEXT_STEP_TOKENS),
            ),
            token_compute_bytes=divided_up(max(0, far.compute_bytes - least.compute_bytes), more),
        )
        return await self._with_slots(grown, candidate, request.options, counts, largest)

    async def _with_slots(
        self,
        grown: Growth,
        candidate: ModelCandidate,
        options: Mapping[str, str],
        counts: range,
        few: Prediction,
    ) -> Growth:
        """With what each slot more costs, from the first of `counts`, of which `few` is the need
        with the largest context, to the last.

        The formula gives the shape between the two dry runs: compute has kinks and cells come in
        steps, so the chord alone may lie below."""
        if len(counts) == 1:
            return grown
        many = await self.predict(candidate, grown.context_max, counts[-1], options)
        curve = [self._by_formula(candidate, grown.context_max, n, options) for n in counts]
        if few.by != many.by:
            few, many = curve[0], curve[-1]
        return replace(
            grown,
            slots_max=counts[-1],
            slot_kv_bytes=steepest(many.kv_bytes - few.kv_bytes, [size.kv_bytes for size in curve]),
            slot_compute_bytes=steepest(
                many.compute_bytes - few.compute_bytes, [size.compute_bytes for size in curve]
            ),
        )

    async def predict(
        self, candidate: ModelCandidate, context: int, slots: int, options: Mapping[str, str]
    ) -> Prediction:
        """By the files when all are here, else by what is recorded of them and the formula.
        Raises RequestError."""
        file = self._ports.model_store.held().get(candidate.model.digest)
        path = file.path if file is not None else candidate.path
        here = {
            (one.companion.option, one.companion.path): str(one.path)
            for one in candidate.found
            if one.path is not None
        }
        try:
            if path is not None and len(here) == len(candidate.found):
                local = with_paths(options, here) if here else options
                return await self._ports.predict(PredictRequest(path, context, slots, dict(local)))
            return self._by_formula(candidate, context, slots, options)
        except ValueError as error:
            raise RequestError(400, "invalid_options", str(error)) from error
        except GgufError as error:
            raise RequestError(400, "bad_model_file", str(error)) from error

    def _by_formula(
        self, candidate: ModelCandidate, context: int, slots: int, options: Mapping[str, str]
    ) -> Prediction:
        """Of a companion its file's size stands for its tensors. Raises ValueError."""
        sizes = {(entry.option, entry.path): entry.size_bytes for entry in candidate.companions}
        named = lora_items(options.get(LORA, ""))
        adapters = sum(sizes.get((LORA, path), 0) for path, _ in named)
        projector = sum(size for (option, _), size in sizes.items() if option == PROJECTOR)
        encoding = sum(entry.compute_bytes for entry in candidate.companions)
        size = need(
            candidate.model.facts,
            context,
            slots,
            options.get("kv_type", "f16"),
            draft=options.get("draft"),
            pooling=options.get("pooling"),
            adapters_bytes=adapters,
        )
        return Prediction(
            size.weights_bytes + projector,
            size.kv_bytes,
            size.compute_bytes + encoding,
            "formula",
        )
