"""A runtime from nothing, by a real venv and pip from a folder of wheels, and every way to fail.

The wheels are stubs that lead to this interpreter's packages, so that nothing is downloaded or
compiled and the engine in the runtime is the real one all the same.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import importlib.metadata
import json
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from aivailable.cli import app
from aivailable.core.state.records import Backend
from aivailable.errors import WorkerError
from aivailable.peer.devices.trials import Trials
from aivailable.peer.runtimes import Interpreters, Starter, builder, children
from aivailable.peer.runtimes.adding import add
from aivailable.peer.runtimes.builder import Builder, BuildRequest, half_made, remove, whole
from aivailable.peer.runtimes.children import run_child
from aivailable.peer.runtimes.recipes import BuildTools, Recipe, RuntimeTrouble
from aivailable.peer.serving.worker_process import SubprocessLauncher
from aivailable.wire.worker import DeviceClaim

RECIPE = Recipe(Backend.CPU, ("-DGGML_NATIVE=OFF",))
TOOLS = BuildTools(compiler="/usr/bin/c++", installer="apt")


def wheel(folder: Path, name: str, version: str, **files: str) -> None:
    """A wheel of these files. Name with `-`, as on the index."""
    plain = name.replace("-", "_")
    info = f"{plain}-{version}.dist-info"
    content = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for path, text in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        lines.append(f"{path},sha256={digest.decode()},{len(text.encode())}")
    content[f"{info}/RECORD"] = "\n".join((*lines, f"{info}/RECORD,,", ""))
    with zipfile.ZipFile(folder / f"{plain}-{version}-py3-none-any.whl", "w") as file:
        for path, text in content.items():
            file.writestr(path, text)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stubs of all that a runtime needs; the engine's leads to ours."""
    folder = tmp_path_factory.mktemp("wheels")
    for name in ("jinja2", "msgpack", "numpy"):
        wheel(folder, name, importlib.metadata.version(name))
    paths = [path for path in sys.path if path.endswith("site-packages")]
    wheel(folder, "llama-cpp-python", "0.3.36", **{"aivailable_stub.pth": "\n".join((*paths, ""))})
    return folder


async def no_cards(backend: Backend) -> tuple[str, ...]:
    return ()


def builder_of(
    home: Path, said: list[str], wheels: Path | None = None, recipe: Recipe = RECIPE
) -> Builder:
    request = BuildRequest(
        Backend.CPU, () if wheels is None else (str(wheels),), offline=wheels is not None
    )
    return Builder(home, request, recipe, TOOLS, said.append)


@pytest.mark.slow
async def test_a_runtime_is_made_tried_used_and_removed(tmp_path: Path, wheels: Path) -> None:
    pytest.importorskip("llama_cpp", reason="no inference engine is installed")
    said: list[str] = []
    made = await add(tmp_path, Backend.CPU, (), (str(wheels),), True, said.append, no_cards)
    assert [line[:4] for line in said] == [f"{number}/6 " for number in range(1, 7)]
    assert made.version == "0.3.36"
    assert made == whole(tmp_path, Backend.CPU)
    assert half_made(tmp_path, Backend.CPU) is None
    # It is its own interpreter with our code, found for the backend and used for a real decode.
    interpreters = Interpreters(tmp_path)
    question = "import sys, aivailable; print(sys.prefix, aivailable.__file__)"
    child = await asyncio.create_subprocess_exec(
        interpreters.of("sim"), "-c", question, stdout=asyncio.subprocess.PIPE
    )
    told = (await child.communicate())[0].decode().split()
    assert told[0] == str(made.path)
    starter = Starter(interpreters)
    assert (await Trials(starter).smoke(DeviceClaim("cpu0", "cpu", 0, 0))).usable
    assert remove(tmp_path, Backend.CPU)
    assert interpreters.of("cpu") == sys.executable
    assert not remove(tmp_path, Backend.CPU)


class Steps:
    """Stands in for the children: writes down what would run, fails where told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[str] = []
        self.fail = ""
        self.version = "0.3.36"
        monkeypatch.setattr(builder, "run_child", self.run)

    async def run(
        self, command: list[str], environment: dict[str, str], log: Path, *_: object
    ) -> builder.Child:
        text = " ".join(command[1:])
        self.commands.append(text)
        if self.fail and self.fail in text:
            return builder.Child("exit status 1: it broke", "")
        draft = log.parent / "cpu.draft"
        if "-m venv" in text:
            version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
            (draft / "lib" / version / "site-packages").mkdir(parents=True)
        if " download " in text:
            (draft / "source").mkdir()
            with tarfile.open(draft / "source" / "llama_cpp_python.tar.gz", "w:gz") as file:
                file.add(Path(__file__), "llama_cpp_python/pyproject.toml")
        if " wheel " in text:
            assert (draft / "source" / "unpacked" / "llama_cpp_python" / "pyproject.toml").exists()
            assert f"build-dir={draft / 'build'}" in text
            assert environment["CMAKE_ARGS"].startswith("-DGGML_NATIVE=")
            (draft / "wheels").mkdir(exist_ok=True)
            (draft / "wheels" / "llama_cpp_python.whl").touch()
        return builder.Child("", self.version)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


@pytest.mark.parametrize(
    ("fail", "done"),
    [
        ("-m venv", []),
        ("jinja2", ["venv"]),
        (" download ", ["venv", "beside"]),
        (" wheel ", ["venv", "beside", "source"]),
        (".whl", ["venv", "beside", "source", "wheel"]),
        ("trial", ["venv", "beside", "source", "wheel", "engine"]),
    ],
)
async def test_a_step_that_fails_is_the_next_one_that_runs(
    tmp_path: Path, steps: Steps, fail: str, done: list[str]
) -> None:
    steps.fail = fail
    with pytest.raises(RuntimeTrouble, match=r"it broke; all it said is in .*cpu\.log"):
        await builder_of(tmp_path, []).make()
    assert half_made(tmp_path, Backend.CPU) == tuple(done)
    assert Interpreters(tmp_path).of("cpu") == sys.executable
    steps.fail, before = "", len(steps.commands)
    said: list[str] = []
    made = await builder_of(tmp_path, said).make()
    assert sum("done before" in line for line in said) == len(done)
    again = steps.commands[before:]
    assert len(again) == 7 - len(done)
    assert whole(tmp_path, Backend.CPU) == made
    assert json.loads((made.path / "runtime.json").read_text())["version"] == "0.3.36"


async def test_another_recipe_begins_anew(tmp_path: Path, steps: Steps) -> None:
    steps.fail = " wheel "
    with pytest.raises(RuntimeTrouble):
        await builder_of(tmp_path, []).make()
    steps.fail = ""
    said: list[str] = []
    other = Recipe(Backend.CPU, ("-DGGML_NATIVE=ON",))
    await builder_of(tmp_path, said, recipe=other).make()
    assert "beginning anew" in said[0]


async def test_a_half_written_list_of_steps_begins_anew(tmp_path: Path, steps: Steps) -> None:
    draft = tmp_path / "runtimes" / "cpu.draft"
    draft.mkdir(parents=True)
    (draft / "steps.json").write_text('{"fingerprint": ')
    await builder_of(tmp_path, []).make()
    assert whole(tmp_path, Backend.CPU) is not None


async def test_the_one_before_serves_until_the_new_one_passes(tmp_path: Path, steps: Steps) -> None:
    first = await builder_of(tmp_path, []).make()
    steps.version = "0.3.1"
    with pytest.raises(RuntimeTrouble, match=r"0\.3\.36 is needed"):
        await builder_of(tmp_path, []).make()
    assert whole(tmp_path, Backend.CPU) == first
    steps.version = "0.3.36"
    await builder_of(tmp_path, []).make()
    assert sorted(one.name for one in (tmp_path / "runtimes").iterdir()) == ["cpu", "cpu.lock"]


async def test_one_at_a_time(tmp_path: Path, steps: Steps) -> None:
    (tmp_path / "runtimes").mkdir()
    with (
        builder._alone(tmp_path / "runtimes" / "cpu.lock"),
        pytest.raises(RuntimeTrouble, match="another"),
    ):
        await builder_of(tmp_path, []).make()
    assert steps.commands == []


async def test_without_compiler_disk_or_right_nothing_begins(
    tmp_path: Path, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = BuildRequest(Backend.CPU)
    with pytest.raises(RuntimeTrouble, match=r"sudo apt install g\+\+"):
        await Builder(tmp_path, request, RECIPE, BuildTools(installer="apt"), print).make()
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(RuntimeTrouble, match=r"runtimes: Not a directory"):
        await builder_of(file, []).make()
    monkeypatch.setattr(builder, "DISK_BYTES", {Backend.CPU: 1 << 60})
    with pytest.raises(RuntimeTrouble, match="GiB free"):
        await builder_of(tmp_path, []).make()
    assert steps.commands == []


def gone(pid: str) -> bool:
    return not Path(f"/proc/{pid}/cwd").exists()


async def test_a_child_that_is_broken_off_takes_its_group_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(children, "SAY_EVERY_S", 0.0)
    compiles = asyncio.Event()
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        compiles.set()

    script = "sh -c 'echo $$; echo \"[3/9] x\"; exec sleep 60' & wait"
    log = tmp_path / "log"
    running = asyncio.ensure_future(run_child(["sh", "-c", script], {}, log, 60.0, say))
    await asyncio.wait_for(compiles.wait(), 30)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert said == ["    compiled 3 of 9"]
    pid = next(line for line in log.read_text().splitlines() if line.strip().isdecimal())
    assert gone(pid)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'x.cu: error: No space left on device'; exit 2", "the disk is full"),
        (
            "echo \"nvcc fatal : Unsupported gpu architecture 'compute_61'\"; exit 1",
            "does not know",
        ),
        (
            "echo a; echo 'ERROR: No matching distribution found for x'; echo b; exit 1",
            "no package",
        ),
        ("kill -9 $$", "killed by signal 9"),
        ("exec sleep 60", "no end within"),
    ],
)
async def test_how_a_child_ended_is_told_in_a_sentence(
    tmp_path: Path, script: str, words: str
) -> None:
    limit_s = 0.3 if "sleep" in script else 30.0
    child = await run_child(["sh", "-c", script], {}, tmp_path / "log", limit_s, print)
    assert words in child.trouble


def test_the_commands_say_what_is_there(tmp_path: Path) -> None:
    runner = CliRunner()

    def said(*arguments: str) -> str:
        result = runner.invoke(app, ["runtime", *arguments, "--home", str(tmp_path)])
        return " ".join((result.output + result.stderr).split())

    assert "none besides" in said("list")
    assert "there is no runtime 'metal'" in said("add", "metal")
    assert "--offline needs --find-links" in said("add", "cpu", "--offline")
    assert "there is no runtime cuda" in said("remove", "cuda")
    draft = tmp_path / "runtimes" / "vulkan.draft"
    draft.mkdir(parents=True)
    (draft / "steps.json").write_text('{"fingerprint": "x", "done": ["venv"]}')
    assert "vulkan: half made, after venv" in said("list")
    assert "runtime vulkan is removed" in said("remove", "vulkan")


async def test_a_worker_starts_from_its_runtime(tmp_path: Path) -> None:
    from fixtures.worker_process import fake_load

    launcher = SubprocessLauncher(None, starter=Starter(Interpreters(None, str(tmp_path / "gone"))))
    with pytest.raises(WorkerError, match="gone"):
        await launcher.launch(fake_load())
