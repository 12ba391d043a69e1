"""Accounting of llama.cpp's buffers, from log lines of a GPU load; needs no GPU and no library."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aivailable.gguf import ModelFacts
from aivailable.wire.worker import DeviceClaim
from aivailable.worker.engine import LoadRefused
from aivailable.worker.llama import claims
from aivailable.worker.llama.claims import Claimed, claim_devices
from aivailable.worker.llama.library import (
    GpuDevice,
    Log,
    device_array,
    parse_buffers,
    parse_flash_attention,
    parse_kv_bytes,
    parse_moved,
    parse_offloaded,
)
from aivailable.worker.llama.parameters import parameters

MIB = 1 << 20
FACTS = ModelFacts("llama", "m", 8192, 2, 64, (2, 2), 32, 32, 1000, 1 << 30)
GPU_LOG = """
load_tensors: offloading output layer to GPU
load_tensors: offloaded 31/31 layers to GPU
load_tensors:   CPU_Mapped model buffer size =    28.69 MiB
load_tensors:        CUDA0 model buffer size =    50.00 MiB
load_tensors:        CUDA1 model buffer size =    42.00 MiB
llama_context:  CUDA_Host  output buffer size =     0.38 MiB
llama_kv_cache:      CUDA0 KV buffer size =    48.00 MiB
llama_kv_cache:      CUDA1 KV buffer size =    42.00 MiB
llama_kv_cache: size =   90.00 MiB (  4096 cells,  30 layers,  2/1 seqs), K (f16):   45.00 MiB
sched_reserve:      CUDA0 compute buffer size =    21.51 MiB
sched_reserve:      CUDA1 compute buffer size =    20.00 MiB
sched_reserve:  CUDA_Host compute buffer size =     5.01 MiB
""".splitlines()
EMBEDDING_BYTES = 29 * MIB


def claimed(first: int = 120 * MIB, second: int = 120 * MIB) -> Claimed:
    claims = (DeviceClaim("01:00.0", "cuda", 0, first), DeviceClaim("02:00.0", "cuda", 1, second))
    gpus = (GpuDevice("CUDA0", 1, 0, 0), GpuDevice("CUDA1", 2, 0, 0))
    return Claimed(claims, gpus, device_array((1, 2)), None)


def check(lines: list[str]) -> None:
    claimed().refuse_cpu(parse_buffers(lines), parse_offloaded(lines), EMBEDDING_BYTES)


def test_used_bytes_are_by_device_without_the_host() -> None:
    check(GPU_LOG)
    used = claimed().used(parse_buffers(GPU_LOG))
    assert used["01:00.0"] == pytest.approx((50 + 48 + 21.51) * MIB, abs=100)
    assert used["02:00.0"] == 104 * MIB
    assert parse_kv_bytes(GPU_LOG) == 90 * MIB


def test_one_device_over_its_claim_is_refused() -> None:
    with pytest.raises(LoadRefused, match=r"02:00.0: 104.0 MiB used, 100.0 MiB claimed") as caught:
        claimed(second=100 * MIB).used(parse_buffers(GPU_LOG))
    assert caught.value.code == "over_claim"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("offloaded 31/31", "offloaded 30/31", "30 of 31 layers"),
        ("load_tensors: offloaded", "nothing", "no layers"),
        ("CUDA1 KV buffer", "CPU KV buffer", "KV cache on CPU"),
        (
            "CPU_Mapped model buffer size =    28.69",
            "CPU model buffer size = 128.69",
            "main memory",
        ),
    ],
)
def test_nothing_may_silently_be_on_the_cpu(old: str, new: str, said: str) -> None:
    lines = [line.replace(old, new) for line in GPU_LOG]
    with pytest.raises(LoadRefused, match=said) as caught:
        check(lines)
    assert caught.value.code == "not_fully_offloaded"


def test_a_tied_output_that_the_device_cannot_take_is_refused() -> None:
    """All layers are said to be on the GPU, and main memory holds the embeddings once, as ever."""
    told = "x: tensor 'token_embd.weight' (q8_0) (and {} others) cannot be used with preferred "
    told += "buffer type Vulkan_Host, using CPU instead"
    assert parse_moved(GPU_LOG) == 0
    for others in (0, 1):
        stranded = parse_moved([*GPU_LOG, told.format(others)]) - 1
        buffers, offloaded = parse_buffers(GPU_LOG), parse_offloaded(GPU_LOG)
        if not others:
            claimed().refuse_cpu(buffers, offloaded, EMBEDDING_BYTES, stranded=stranded)
            continue
        with pytest.raises(LoadRefused, match="1 of the tensors") as caught:
            claimed().refuse_cpu(buffers, offloaded, EMBEDDING_BYTES, stranded=stranded)
        assert caught.value.code == "not_fully_offloaded"


@pytest.mark.parametrize(
    ("claimed_id", "shown", "about", "refused"),
    [
        ("0000:03:00.0", "0000:03:00.0", "AMD Radeon RX 580", False),
        ("0000:03:00.0", "0000:04:00.0", "AMD Radeon Vega", True),
        ("0000:03:00.0", "", "AMD Radeon RX 580", False),
        ("0000:03:00.0", "", "llvmpipe (LLVM 15.0.6, 256 bits)", True),
        ("vulkan0", "", "llvmpipe (LLVM 15.0.6, 256 bits)", False),
    ],
)
def test_a_number_that_shows_another_device_is_refused(
    monkeypatch: pytest.MonkeyPatch, claimed_id: str, shown: str, about: str, refused: bool
) -> None:
    """Numbers shift when a card is gone, and Vulkan's next one may be the CPU."""
    library = SimpleNamespace(llama_supports_gpu_offload=lambda: True, llama_max_devices=lambda: 1)
    there = (GpuDevice("Vulkan0", 1, 0, 0, about, shown),)
    monkeypatch.setattr(claims, "gpu_devices", lambda _: there)
    claim = DeviceClaim(claimed_id, "vulkan", 0, MIB)
    if not refused:
        assert claim_devices(library, (claim,)).gpus == there
        return
    with pytest.raises(LoadRefused, match=f"Vulkan0 is {about[:8]}.*, not {claimed_id}") as caught:
        claim_devices(library, (claim,))
    assert caught.value.code == "not_fully_offloaded"


def test_simulated_devices_share_main_memory_in_order() -> None:
    claims = tuple(DeviceClaim(f"sim{n}", "sim", n, 100 * MIB) for n in range(3))
    on_cpu = Claimed(claims, (), device_array(()), None)
    log = ["x:  CPU_Mapped model buffer size = 150.00 MiB", "x: CPU KV buffer size = 20.00 MiB"]
    used = on_cpu.used(parse_buffers(log))
    assert used == {"sim0": 100 * MIB, "sim1": 70 * MIB, "sim2": 0}


@given(
    context=st.integers(16, 1 << 16),
    slots=st.integers(1, 64),
    ubatch=st.integers(32, 4096),
    on_gpu=st.booleans(),
)
def test_a_step_always_fits_the_batch_and_the_batch_the_context(
    context: int, slots: int, ubatch: int, on_gpu: bool
) -> None:
    chosen = parameters(FACTS, context, slots, {"ubatch": str(ubatch)}, on_gpu=on_gpu)
    assert 2 <= chosen.least <= chosen.chunk <= chosen.step <= chosen.batch <= chosen.cells
    assert slots < chosen.step
    assert slots <= chosen.sequences <= 256
    assert chosen.cells >= context * slots
    assert chosen.cells % 256 == 0
    assert on_gpu or chosen.step <= max(63, slots + 2)


@pytest.mark.parametrize(
    ("line", "chosen"),
    [
        ("resolve_fused_ops: Flash Attention enabled", "on"),
        ("resolve_fused_ops: Flash Attention not supported, set to disabled", "off"),
        ("llama_context: Flash Attention was auto, set to enabled", "on"),
        ("llama_context: Flash Attention was auto, set to disabled", "off"),
        ("llama_context: flash_attn    = auto", ""),
    ],
)
def test_what_flash_attention_became_is_read(line: str, chosen: str) -> None:
    assert parse_flash_attention(["other", line]) == chosen


def test_an_error_message_has_the_errors_not_what_was_said_last() -> None:
    library = SimpleNamespace(llama_log_callback=lambda take: take, llama_log_set=lambda *_: None)
    log = Log(library)
    say = log.callback
    say(2, b"loading tensor a\n", None)
    assert log.tail() == "loading tensor a"
    say(4, b"tensor 'b' not found\n", None)
    for number in range(9):
        say(1, b"freeing %d\n" % number, None)
    say(4, b"failed to load model\n", None)
    assert log.tail() == "tensor 'b' not found | failed to load model"
    log.lines.clear()
    say(2, b"another load\n", None)
    assert log.tail() == "another load"
