"""How others would place the same demand: what `bench.packing` compares with.

Owns these placements on plain lists of free bytes, written anew from the cited rules. Each is
given the same usable bytes of every card, and counts a replica only when it is fully on GPUs and
its deployment has no other one on that host, since that is what was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from aivailable.core.state.records import Deployment
from aivailable.gguf.facts import ModelFacts
from bench.fleets import Fleet

OLLAMA_MINIMUM_BYTES = 457 << 20
"""Kept for the CUDA context of each GPU: Ollama's cudaMinimumMemory, as remembered."""
OLLAMA_BATCH = 512

Rooms = list[list[int]]
Placements = dict[str, set[int]]
"""Nodes by deployment."""


def one_model_per_node(fleet: Fleet) -> Placements:
    """The baseline: one model per node, in the order of the demand, each on the smallest node that
    is still free and holds it, on one of its cards or split over them.

    The paper (arXiv 2511.11621) has one Ollama per node; the "2.3 ×" is that of summaries of it,
    and no text at hand says how its baseline gave models to nodes. So the rule here is what
    somebody does who sets the machines up by hand, with care, as models are asked for.
    """
    return _one_each(fleet, fleet.wanted)


def one_model_per_node_largest_first(fleet: Fleet) -> Placements:
    """The baseline at its best, with the whole demand known: the largest replica first."""
    return _one_each(fleet, sorted(fleet.wanted, key=lambda one: (-one.need_bytes, one.name)))


def _one_each(fleet: Fleet, order: Sequence[Deployment]) -> Placements:
    """Each replica on the smallest free node that holds it, until none is free."""
    free = list(range(len(fleet.nodes)))
    placed: Placements = {}
    for one in order:
        for _ in range(one.replicas_min):
            fits = [node for node in free if _shares(fleet.nodes[node], one) is not None]
            if fits:
                node = min(fits, key=lambda node: (sum(fleet.nodes[node]), node))
                free.remove(node)
                placed.setdefault(one.name, set()).add(node)
    return placed


def ollama_round_robin(fleet: Fleet) -> Placements:
    """An Ollama on every node, and a load balancer that sends each next replica's first request
    to the next node.

    Rules: ollama/ollama llm/memory.go (EstimateGPULayers) and server/sched.go (pickBestFitGPUs)
    at commit 000ce02098f6bfea486601b5cae35ba38f8824fc: one GPU, most free first, else all of the
    node; a model fits when its own estimate does. The graph's size is that of the llama
    architecture, written from memory: GraphSize was not at hand. What does not fit is refused
    here; the real one would evict another model or run partly on the CPU, and serve no more from
    VRAM by it.
    """
    rooms = [list(cards) for cards in fleet.nodes]
    placed: Placements = {}
    turn = 0
    for one, facts in zip(fleet.wanted, fleet.facts, strict=True):
        for _ in range(one.replicas_min):
            node = turn % len(rooms)
            turn += 1
            if node in placed.get(one.name, ()):
                continue
            order = sorted(range(len(rooms[node])), key=lambda gpu: (-rooms[node][gpu], gpu))
            tries = [[gpu] for gpu in order] + ([order] if len(order) > 1 else [])
            for gpus in tries:
                taken = _ollama_estimate([rooms[node][gpu] for gpu in gpus], one, facts)
                if taken is not None:
                    for gpu, count in zip(gpus, taken, strict=True):
                        rooms[node][gpu] -= count
                    placed.setdefault(one.name, set()).add(node)
                    break
    return placed


def gpustack_binpack(fleet: Fleet) -> Placements:
    """GPUStack's binpack: of all candidates that hold the model the one whose claim is the largest
    part of what its GPU has free; of several GPUs the largest such part counts.

    Rules: gpustack/gpustack gpustack/policies/scorers/placement_scorer.py (score_binpack) at
    commit 0172927139b3512ae7d28827dd9bc48fb8897958; one GPU before several of one worker, which
    is what its selector of candidates does as we remember it. Replicas in the order of the demand;
    RAM, the same for every candidate here, is left out. It is given our exact bytes.
    """
    rooms = [list(cards) for cards in fleet.nodes]
    placed: Placements = {}
    for one in fleet.wanted:
        for _ in range(one.replicas_min):
            candidates: list[tuple[float, int, dict[int, int]]] = []
            for several in (False, True):
                for node, free in enumerate(rooms):
                    if node in placed.get(one.name, ()):
                        continue
                    for shares in _candidates(free, one, several):
                        score = max(count / free[gpu] for gpu, count in shares.items())
                        candidates.append((score, -node, shares))
                if candidates:
                    break
            if candidates:
                _, minus_node, shares = max(candidates, key=lambda entry: entry[:2])
                for gpu, count in shares.items():
                    rooms[-minus_node][gpu] -= count
                placed.setdefault(one.name, set()).add(-minus_node)
    return placed


def _candidates(free: Sequence[int], one: Deployment, several: bool) -> list[dict[int, int]]:
    if not several:
        return [{gpu: one.need_bytes} for gpu, room in enumerate(free) if room >= one.need_bytes]
    for count in range(2, len(free) + 1):
        found = [
            shares
            for gpus in combinations(range(len(free)), count)
            if (shares := _split(free, gpus, one)) is not None
        ]
        if found:
            return found
    return []


def _shares(free: Sequence[int], one: Deployment) -> dict[int, int] | None:
    """On one card, else on the fewest."""
    for several in (False, True):
        found = _candidates(free, one, several)
        if found:
            return found[0]
    return None


def _split(free: Sequence[int], gpus: Sequence[int], one: Deployment) -> dict[int, int] | None:
    left = one.weights_bytes + one.kv_bytes
    if sum(free[gpu] - one.compute_bytes for gpu in gpus) < left:
        return None
    shares = {}
    for gpu in gpus:
        room = free[gpu] - one.compute_bytes
        if room <= 0:
            return None
        part = min(room, left)
        left -= part
        shares[gpu] = part + one.compute_bytes
    return shares


def _ollama_estimate(
    free: Sequence[int], one: Deployment, facts: ModelFacts
) -> tuple[int, ...] | None:
    """Bytes on each GPU when all layers fit there by its estimate; None when they do not."""
    cells = one.context * one.slots
    batch = min(cells, OLLAMA_BATCH)
    embedding, vocab, heads = facts.embedding, facts.vocab, facts.heads
    output = facts.weights_bytes * embedding * vocab // _parameters(facts)
    kv = 2 * cells * sum(facts.heads_kv) * (facts.key_length + facts.value_length)
    layer = (facts.weights_bytes - output + kv) // facts.layers
    full = max(
        4 * batch * (1 + 4 * embedding + cells * (1 + heads)), 4 * batch * (embedding + vocab)
    )
    partial = max(
        4 * batch * (1 + embedding + max(cells, embedding))
        + embedding * embedding * 9 // 16
        + 4 * cells * (batch * heads + facts.key_length * max(facts.heads_kv)),
        4 * batch * (embedding + vocab) + embedding * vocab * 105 // 128,
    )
    graph = full if len(free) == 1 else max(full, partial + 4 * batch * embedding)
    base = OLLAMA_MINIMUM_BYTES + layer
    taken = [base if room >= base + graph + layer else 0 for room in free]
    usable = [gpu for gpu, count in enumerate(taken) if count]
    for number, part in enumerate([*([layer] * facts.layers), output]):
        while usable:
            gpu = usable[number % len(usable)]
            if free[gpu] > taken[gpu] + graph + part:
                taken[gpu] += part
                break
            usable.remove(gpu)
        else:
            return None
    return tuple(count + graph if count > base else 0 for count in taken)


def _parameters(facts: ModelFacts) -> int:
    """Weights of a llama-like model, embedding and output counted apart."""
    head = facts.key_length
    attention = facts.embedding * head * (2 * facts.heads + 2 * max(facts.heads_kv))
    layer = attention + 3 * facts.embedding * facts.feed_forward
    return facts.layers * layer + 2 * facts.embedding * facts.vocab
