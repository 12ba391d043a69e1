"""Random fleets of real cards, and what people ask of them: the input of `bench.packing`.

Owns the tables and the draw. Card sizes are those of the GTX 1650, GTX 1060, GTX 1080, GTX 1080 Ti,
RTX 3060, Tesla P100, RTX 3090 and A40. Model sizes and shapes are those of well-known GGUF files,
written from memory and not checked one by one: what matters here is how they spread. Cache and
compute come from gguf/memory.py.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from aivailable.core.cluster.liveness import Heard, Liveness
from aivailable.core.state.records import (
    Backend,
    Cluster,
    Control,
    Deployment,
    Device,
    Inventory,
    Member,
)
from aivailable.core.state.state import State
from aivailable.gguf.facts import ModelFacts
from aivailable.gguf.memory import need
from aivailable.wire.peer import Heartbeat

CARDS_GIB = (4, 6, 8, 11, 12, 16, 24, 48)
GPUS_PER_NODE_MAX = 4
CONTEXTS = (4096, 8192)
SLOTS = (1, 2, 4)
REPLICAS_MAX = 3
LOAD = (0.7, 1.2)
"""Demanded bytes as a share of the fleet's: from what should all fit to what cannot."""
UBATCH = 512

SHAPES = (
    ("smollm2-135m q4_k_m", 105_454_432, 30, 576, 9, 3, 64, 49152, 1536),
    ("qwen2.5-0.5b q4_k_m", 397_808_192, 24, 896, 14, 2, 64, 151936, 4864),
    ("llama-3.2-1b q4_k_m", 807_694_464, 16, 2048, 32, 8, 64, 128256, 8192),
    ("qwen2.5-1.5b q4_k_m", 986_048_768, 28, 1536, 12, 2, 128, 151936, 8960),
    ("qwen2.5-3b q4_k_m", 1_929_903_264, 36, 2048, 16, 2, 128, 151936, 11008),
    ("llama-3.2-3b q4_k_m", 2_019_377_696, 28, 3072, 24, 8, 128, 128256, 8192),
    ("phi-3.5-mini q4_k_m", 2_393_232_672, 32, 3072, 32, 32, 96, 32064, 8192),
    ("mistral-7b-v0.3 q4_k_m", 4_372_812_000, 32, 4096, 32, 8, 128, 32768, 14336),
    ("qwen2.5-7b q4_k_m", 4_683_074_240, 28, 3584, 28, 4, 128, 152064, 18944),
    ("llama-3.1-8b q4_k_m", 4_920_739_232, 32, 4096, 32, 8, 128, 128256, 14336),
    ("gemma-2-9b q4_k_m", 5_761_057_728, 42, 3584, 16, 8, 256, 256000, 14336),
    ("mistral-nemo-12b q4_k_m", 7_477_208_192, 40, 5120, 32, 8, 128, 131072, 14336),
    ("llama-3.1-8b q8_0", 8_540_775_840, 32, 4096, 32, 8, 128, 128256, 14336),
    ("qwen2.5-14b q4_k_m", 8_988_110_976, 48, 5120, 40, 8, 128, 152064, 13824),
    ("phi-4-14b q4_k_m", 9_053_114_816, 40, 5120, 40, 10, 128, 100352, 17920),
    ("mistral-small-24b q4_k_m", 14_333_908_832, 40, 5120, 32, 8, 128, 131072, 32768),
    ("gemma-2-27b q4_k_m", 16_645_381_792, 46, 4608, 32, 16, 128, 256000, 36864),
    ("qwen2.5-32b q4_k_m", 19_851_336_256, 64, 5120, 40, 8, 128, 152064, 27648),
    ("llama-3.3-70b q2_k", 26_375_109_632, 80, 8192, 64, 8, 128, 128256, 28672),
    ("mixtral-8x7b q4_k_m", 26_441_533_376, 32, 4096, 32, 8, 128, 32000, 14336),
    ("llama-3.3-70b q4_k_m", 42_520_395_584, 80, 8192, 64, 8, 128, 128256, 28672),
)
"""Name, bytes of the file, layers, embedding, heads, KV heads, head length, vocabulary, FFN."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """`wanted` is in the order in which people asked; its bytes are on the deployments."""

    nodes: tuple[tuple[int, ...], ...]
    """Bytes of each card that models may use, by node."""
    wanted: tuple[Deployment, ...]
    facts: tuple[ModelFacts, ...]
    """Of each wanted deployment's model."""
    state: State
    liveness: Liveness

    def capacity_bytes(self) -> int:
        return sum(sum(cards) for cards in self.nodes)


def draw(seed: int, nodes: int) -> Fleet:
    """The same fleet for the same seed, everywhere."""
    chance = random.Random(seed)
    machines = [
        tuple(chance.choice(CARDS_GIB) << 30 for _ in range(chance.randint(1, GPUS_PER_NODE_MAX)))
        for _ in range(nodes)
    ]
    load = chance.uniform(*LOAD)
    return fleet_of(machines, chance, load)


def fleet_of(machines: Sequence[tuple[int, ...]], chance: random.Random, load: float) -> Fleet:
    """Deployments are drawn until they ask for `load` times what the cards have; nobody asks for
    what is larger than every single machine."""
    state, liveness = idle_cluster(machines)
    margin = state.settings.margin_bytes
    usable = tuple(tuple(card - margin for card in cards) for cards in machines)
    largest = max(sum(cards) for cards in usable)
    asked, limit = 0, load * sum(sum(cards) for cards in usable)
    wanted: list[Deployment] = []
    facts: list[ModelFacts] = []
    while asked < limit:
        shape = model(*chance.choice(SHAPES))
        one = deployment(len(wanted), shape, chance, len(machines))
        if one.need_bytes > largest:
            continue
        wanted.append(one)
        facts.append(shape)
        asked += one.need_bytes * one.replicas_min
    deployed = {one.name: one for one in wanted}
    state = State(
        cluster=state.cluster,
        control=state.control,
        members=state.members,
        inventories=state.inventories,
        deployments=deployed,
    )
    return Fleet(usable, tuple(wanted), tuple(facts), state, liveness)


def model(
    name: str,
    size: int,
    layers: int,
    embedding: int,
    heads: int,
    heads_kv: int,
    head: int,
    vocab: int,
    feed_forward: int,
) -> ModelFacts:
    return ModelFacts(
        "llama",
        name,
        131_072,
        layers,
        embedding,
        (heads_kv,) * layers,
        head,
        head,
        vocab,
        size,
        heads=heads,
        feed_forward=feed_forward,
    )


def deployment(number: int, shape: ModelFacts, chance: random.Random, nodes: int) -> Deployment:
    """A model with a random context, slots and replicas; no file has to be fetched for it."""
    context, slots = chance.choice(CONTEXTS), chance.choice(SLOTS)
    replicas = chance.randint(1, min(REPLICAS_MAX, nodes))
    bytes_ = need(shape, context, slots, "f16", UBATCH, True)
    return Deployment(
        f"d{number:04}",
        f"{number:064}",
        context=context,
        slots=slots,
        replicas_min=replicas,
        replicas_max=replicas,
        weights_bytes=bytes_.weights_bytes,
        kv_bytes=bytes_.kv_bytes,
        compute_bytes=bytes_.compute_bytes,
    )


def idle_cluster(machines: Sequence[tuple[int, ...]]) -> tuple[State, Liveness]:
    """Founded, everybody up and heard by everybody, nothing deployed."""
    names = [f"n{number:03}" for number in range(len(machines))]
    state = State(
        cluster=Cluster("bench", "bench", names[0], 0),
        control=Control(names[0], 1),
        members={name: Member(name, name, b"") for name in names},
        inventories={
            name: Inventory(
                name,
                tuple(
                    Device(f"gpu{index}", "card", "nvidia", Backend.CUDA, index, card)
                    for index, card in enumerate(cards)
                ),
                ("llama",),
            )
            for name, cards in zip(names, machines, strict=True)
        },
    )
    heard = {
        name: Heard(
            name,
            Heartbeat(name, "i", 1, 1, tuple(other for other in names if other != name), (), ()),
            1000.0,
        )
        for name in names
    }
    return state, Liveness(names[0], 1000.0, tuple(names[1:]), heard, 0.0)
