"""Runtimes that an earlier version made or began: used as they are, no engine built again.

The first version's workers needed no msgspec, so its runtimes have none.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures.worker_process import WorkerProcess, fake_load

from aivailable.core.state.records import Backend
from aivailable.peer.runtimes import Interpreters, builder
from aivailable.peer.runtimes.builder import Builder, BuildRequest
from aivailable.peer.runtimes.recipes import BESIDE, BuildTools, Recipe
from aivailable.wire.generation import Finished, Generate
from aivailable.wire.worker import Hello, Ready

VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"
ENGINE_V1 = "llama-cpp-python==0.3.36"
NEEDED_V1 = ("jinja2", "markupsafe", "msgpack", "numpy")


def of_first_version(home: Path) -> Path:
    """A whole runtime as the first version left it: an environment of its own with what a worker
    needed then, a link to the code of that time, which is gone, and the record."""
    path = home / "runtimes" / "cpu"
    path.parent.mkdir(parents=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", path], check=True)
    packages = path / "lib" / VERSION / "site-packages"
    for name in NEEDED_V1:
        found = importlib.util.find_spec(name)
        assert found is not None
        assert found.origin is not None
        (packages / name).symlink_to(Path(found.origin).parent)
    (packages / "aivailable").symlink_to(home / "of-that-time" / "aivailable")
    record = {
        "backend": "cpu",
        "path": str(path),
        "python": VERSION.removeprefix("python"),
        "version": "0.3.36",
        "made_at_ms": 1_700_000_000_000,
        "options": ["-DGGML_NATIVE=OFF"],
    }
    (path / "runtime.json").write_text(json.dumps(record, indent=2))
    return path


def imports(python: str, module: str) -> bool:
    ended = subprocess.run([python, "-c", f"import {module}"], capture_output=True, check=False)
    return ended.returncode == 0


def test_a_home_of_the_first_version_is_upgraded(tmp_path: Path) -> None:
    path = of_first_version(tmp_path)
    python = str(path / "bin" / "python")
    assert imports(python, "msgpack")
    assert not imports(python, "msgspec")
    interpreters = Interpreters(tmp_path)
    assert interpreters.of("sim") == python
    assert imports(python, "msgspec")
    assert not imports(python, "aiohttp"), "nothing else of ours may get in"
    with WorkerProcess(interpreters.of("sim"), how=("-m", "aivailable.worker")) as worker:
        assert isinstance(worker.receive(), Hello)
        worker.send(fake_load())
        while not isinstance(answer := worker.receive(), Ready):
            assert answer is not None
        worker.send(Generate("q1", "tiny", prompt="one two three", max_tokens=3))
        ended = None
        while ended is None:
            step = worker.receive()
            ended = next((one for one in step.finished), None)
        assert ended == Finished("q1", "length", ended.text, ended.prompt_tokens, 3)
    # Nothing is installed into it: what it had is what it has.
    assert not (path / "lib" / VERSION / "site-packages" / "msgspec").exists()


def test_what_is_lent_follows_an_upgrade_of_ours(tmp_path: Path) -> None:
    path = of_first_version(tmp_path)
    interpreters = Interpreters(tmp_path)
    assert interpreters.find(Backend.CPU) is not None
    shutil.rmtree(path / "lent")
    (path / "lent").mkdir()
    (path / "lent" / "msgspec").symlink_to(tmp_path / "gone")
    assert interpreters.find(Backend.CPU) is not None
    assert imports(interpreters.of("cpu"), "msgspec")


def test_one_of_another_python_is_not_used(tmp_path: Path) -> None:
    path = of_first_version(tmp_path)
    (path / "lib" / VERSION).rename(path / "lib" / "python3.9")
    assert Interpreters(tmp_path).of("cpu") == sys.executable


async def test_a_half_made_one_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its built engine: a build takes hours."""
    options = ("-DGGML_NATIVE=OFF",)
    told = [sys.version, sys.executable, ENGINE_V1, *BESIDE, *options, "False"]
    draft = tmp_path / "runtimes" / "cpu.draft"
    (draft / "wheels").mkdir(parents=True)
    (draft / "wheels" / "llama_cpp_python.whl").touch()
    (draft / "lib" / VERSION / "site-packages").mkdir(parents=True)
    done = ["venv", "beside", "source", "wheel"]
    document = {"fingerprint": hashlib.sha256("\0".join(told).encode()).hexdigest(), "done": done}
    (draft / "steps.json").write_text(json.dumps(document))
    commands: list[str] = []

    async def run(command: list[str], *_: object) -> builder.Child:
        commands.append(" ".join(command[1:]))
        return builder.Child("", "0.3.36")

    monkeypatch.setattr(builder, "run_child", run)
    said: list[str] = []
    recipe = Recipe(Backend.CPU, options)
    tools = BuildTools(compiler="/usr/bin/c++")
    made = await Builder(tmp_path, BuildRequest(Backend.CPU), recipe, tools, said.append).make()
    assert sum("done before" in line for line in said) == len(done)
    assert [words.split()[-1].rpartition("/")[2] for words in commands[:1]] == [
        "llama_cpp_python.whl"
    ]
    assert (made.path / "lent" / "msgspec" / "__init__.py").exists()
