"""A real GPU build of llama.cpp on a real Vulkan device, a software one if there is no card.

Needs a runtime made by `aivailable runtime add vulkan`, named by AIVAILABLE_TEST_VULKAN (its
interpreter, HOME/runtimes/vulkan/bin/python); skipped without. Where no card has a Vulkan driver,
Mesa's lavapipe is one: Debian's mesa-vulkan-drivers, and GGML_VK_VISIBLE_DEVICES=0, which is the
default here. Run with:

    AIVAILABLE_TEST_VULKAN=… python -m pytest tests/worker/llama/test_vulkan_llama.py

Shows what no scripted log can: the full-offload check accepts what llama.cpp really does on a
device, refuses what it silently leaves on the CPU, and predicts the device's bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures.models import gemma_path, smollm2_path
from fixtures.worker_process import MIB, WorkerProcess

from aivailable.peer.deploying.memory_predictor import MemoryPredictor, by_formula
from aivailable.peer.devices.offload import survey
from aivailable.peer.devices.trials import Trials
from aivailable.peer.ports import PredictRequest
from aivailable.peer.runtimes import Interpreters, Starter
from aivailable.wire.generation import Finished, Generate, Sampling
from aivailable.wire.worker import DeviceClaim, Load, LoadFailed, Ready

VARIABLE = "AIVAILABLE_TEST_VULKAN"
INTERPRETER = os.environ.get(VARIABLE, "")
pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.skipif(
        not INTERPRETER, reason=f"{VARIABLE} names no interpreter of a Vulkan runtime"
    ),
]
DEVICE = os.environ.get("GGML_VK_VISIBLE_DEVICES", "0")
CLAIM = DeviceClaim("vulkan0", "vulkan", 0, 1024 * MIB)
TEXT_TOKENS = 24
STEP_LIMIT_S = 300.0
"""On the software device a step of the larger model takes half a minute."""

CONFIGURATIONS = [
    (smollm2_path, 2048, 2, {}),
    (smollm2_path, 8192, 1, {"kv_type": "q8_0"}),
    (smollm2_path, 512, 8, {"ubatch": "128", "flash_attention": "off"}),
    (smollm2_path, 1024, 4, {"kv_type": "q8_0", "ubatch": "256", "draft": "0"}),
    (gemma_path, 2048, 2, {}),
    (gemma_path, 4096, 4, {"kv_type": "q8_0", "ubatch": "256"}),
]
FEWER_LAYERS = "native.n_gpu_layers = 5"
NO_CACHE = "native.offload_kqv = False"


class OneRuntime(Interpreters):
    """Vulkan's is the one of the variable, wherever it lies."""

    def of(self, backend: str) -> str:
        return INTERPRETER if backend == "vulkan" else self.own


def starter() -> Starter:
    return Starter(OneRuntime(None), places=lambda: {CLAIM.device_id: DEVICE})


def load(path: Path, context: int, slots: int, options: dict[str, str], **change: object) -> Load:
    values: dict[str, object] = {"devices": (CLAIM,), "options": options, **change}
    return Load("r1", "llama", str(path), context, slots, **values)  # type: ignore[arg-type]


def worker(how: tuple[str, ...] = ("-m", "aivailable.worker")) -> WorkerProcess:
    start = starter().start((CLAIM,))
    return WorkerProcess(start.interpreter, start.environment, how, STEP_LIMIT_S)


@pytest.mark.parametrize(("model", "context", "slots", "options"), CONFIGURATIONS)
async def test_what_is_wholly_on_the_device_is_ready_and_as_large_as_predicted(
    model: Callable[[], Path], context: int, slots: int, options: dict[str, str]
) -> None:
    asked = PredictRequest(model(), context, slots, options)
    predicted = await MemoryPredictor(starter=starter(), device=lambda: CLAIM).predict(asked)
    assert predicted.by == "oracle"
    with worker() as process:
        ready = process.load(load(model(), context, slots, options))
    if model is gemma_path and isinstance(ready, LoadFailed):
        # Its output is the table of its 262,144 tokens. Where a device takes no buffer of 512 MiB,
        # llama.cpp says that every layer is on the GPU, and computes the last one on the CPU.
        assert ready.code == "not_fully_offloaded"
        assert "1 of the tensors are in main memory" in ready.message
        return
    assert isinstance(ready, Ready), ready
    used = ready.used_bytes[CLAIM.device_id]
    parts = (predicted.weights_bytes, predicted.kv_bytes, predicted.compute_bytes)
    formula = by_formula(asked)
    guessed = formula.weights_bytes + formula.kv_bytes + formula.compute_bytes
    print(f"\n{model.__name__} {context}×{slots} {options}: used {used}, predicted {parts} ")
    print(f"dry run {sum(parts) / used - 1:+.3%}, formula {guessed / used - 1:+.2%}")
    assert sum(parts) == pytest.approx(used, rel=0.01)
    assert guessed == pytest.approx(used, rel=0.05)
    assert used >= ready.kv_bytes > 0


def test_the_device_says_what_the_cpu_says() -> None:
    """Greedy text agrees until two words are nearly as likely: here for its first words."""
    question = Generate(
        "r",
        "d",
        messages=({"role": "user", "content": "Name three colours."},),
        sampling=Sampling(temperature=0.0),
        max_tokens=TEXT_TOKENS,
    )
    texts = []
    on_cpu = DeviceClaim("cpu0", "cpu", 0, 1024 * MIB)
    for process, claim in ((worker(), CLAIM), (WorkerProcess(), on_cpu)):
        with process:
            ready = process.load(load(smollm2_path(), 512, 2, {}, devices=(claim,)))
            assert isinstance(ready, Ready), ready
            answer = process.answers(question)["r"]
            assert isinstance(answer.end, Finished)
            texts.append(answer.text)
    assert texts[0].split()[:4] == texts[1].split()[:4]


@pytest.mark.parametrize(
    ("which", "change", "said"),
    [
        ("model_parameters", FEWER_LAYERS, r"\d+ of \d+ layers are on the GPU"),
        ("context_parameters", NO_CACHE, "KV cache on CPU"),
    ],
)
def test_what_is_left_on_the_cpu_is_refused(which: str, change: str, said: str) -> None:
    """llama.cpp loads such a model without a word, and would decode with it."""
    told = (
        "import sys, aivailable.worker.llama.engine as e\n"
        f"whole = e.{which}\n"
        "def less(library, chosen):\n"
        "    native = whole(library, chosen)\n"
        f"    {change}\n"
        "    return native\n"
        f"e.{which} = less\n"
        "from aivailable.worker.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    with worker(("-c", told)) as process:
        failed = process.load(load(smollm2_path(), 512, 2, {}))
    assert isinstance(failed, LoadFailed)
    assert failed.code == "not_fully_offloaded"
    assert re.search(said, failed.message), failed.message


@pytest.mark.parametrize(
    ("claim", "code"),
    [
        (DeviceClaim("vulkan7", "vulkan", 7, 1024 * MIB), "not_fully_offloaded"),
        # Its number now shows another device than the card that was claimed.
        (DeviceClaim("ffff:ff:00.0", "vulkan", 0, 1024 * MIB), "not_fully_offloaded"),
        (DeviceClaim("vulkan0", "vulkan", 0, 60 * MIB), "over_claim"),
    ],
)
def test_another_device_or_too_small_a_claim_is_refused(claim: DeviceClaim, code: str) -> None:
    with worker() as process:
        failed = process.load(load(smollm2_path(), 512, 2, {}, devices=(claim,)))
    assert isinstance(failed, LoadFailed)
    assert failed.code == code


async def test_the_device_is_listed_tried_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GGML_VK_VISIBLE_DEVICES", DEVICE)
    (found,) = (await survey(Interpreters(None, INTERPRETER))).offered
    assert (found.backend, found.index, found.place) == ("vulkan", 0, DEVICE)
    assert found.total_bytes > CLAIM.claim_bytes
    trials = Trials(starter(), benchmark_s=2.0, small=True)
    verdict = await trials.smoke(CLAIM, found.place)
    assert verdict.usable, verdict.words
    speed = await trials.measure(CLAIM)
    assert not isinstance(speed, str), speed
    assert min(speed.decode, speed.prefill) > 0
