"""The project's commands; `nox -l` lists them. All but lint and core run in the ComfyUI of tools/get_comfyui.py."""

import argparse
import json
import sys
from pathlib import Path

import nox

nox.options.sessions = ["lint", "tests"]
nox.options.default_venv_backend = "none"
ROOT = Path(__file__).parent
TWO = ["-n2", "--dist=loadfile", "--no-loadscope-reorder"]  # processes
COVERED = ["--cov", "--cov-report=term:skip-covered"]
PASSIVE = {"OMP_WAIT_POLICY": "passive"}  # OpenMP threads that spin starve shared cores


def host_python(session: nox.Session, *options: str) -> str:
    """Sets the host up (seconds when it is there) and returns its Python."""
    session.run(sys.executable, "tools/get_comfyui.py", *options, external=True)
    return json.loads((ROOT / ".comfyui" / "host.json").read_text(encoding="utf-8"))["python"]


def host_of(session: nox.Session, *options: str) -> tuple[str, list[str]]:
    """The Python of the host that `-- --comfyui PATH [--python PATH]` names, or else of the pinned one; and the other
    arguments after --."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--comfyui")
    parser.add_argument("--python")
    host, rest = parser.parse_known_args(session.posargs)
    return host_python(session, *options, *(f"--{name}={value}" for name, value in vars(host).items() if value)), rest


def install(session: nox.Session, *packages: str) -> None:
    """Installs packages at the versions that the test environment pins."""
    session.install("-c", "tools/comfyui-requirements.txt", "-c", "tools/test-requirements.txt", *packages)


@nox.session
def demo(session: nox.Session) -> None:
    """Erases a character in a real ComfyUI server and leaves pictures, numbers and a checkpoint in demo_output/."""
    session.run(host_python(session), "tools/demo.py", *session.posargs, external=True, env=PASSIVE)


@nox.session
def ui(session: nox.Session) -> None:
    """Starts ComfyUI with this pack and the miniature model, to be looked at in a browser."""
    session.run(host_python(session), "tools/comfyui_server.py", external=True)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, with the floor of coverage that pyproject.toml states; arguments after -- go to pytest instead.

    The web UI's tests need a Chromium. Two processes take them file by file, also those of folders that are named.
    `-- --comfyui PATH [--python PATH]` runs them in a ComfyUI that is there already; --record puts the result into the
    table of hosts.
    """
    python, options = host_of(session, "--tests")
    if not set(options) - {"--record"}:
        options = [*TWO, *COVERED, *options]
    elif all((ROOT / option).is_dir() for option in options):
        options = [*TWO, *options]
    session.run(python, "tools/run_pytest.py", *options, external=True, env=PASSIVE)


@nox.session(venv_backend="venv", reuse_venv=True)
def lint(session: nox.Session) -> None:
    """ruff over everything, mypy's strict mode over the shipped sources; needs no ComfyUI."""
    install(session, "ruff", "mypy", "torch", "numpy", "safetensors", "pillow")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    link = Path(session.create_tmp()).resolve() / "pure_pack"  # a package needs a name that Python can import
    link.unlink(missing_ok=True)
    link.symlink_to(ROOT)
    with session.chdir(link.parent):
        session.run("mypy", "--config-file", str(ROOT / "pyproject.toml"))


@nox.session(venv_backend="venv", reuse_venv=True)
def core(session: nox.Session) -> None:
    """The tests of the mathematics alone; needs no ComfyUI."""
    install(session, "pytest", "hypothesis", "psutil", "torch", "numpy", "scipy", "safetensors", "pillow")
    session.run("pytest", "tests/core", *session.posargs, env=PASSIVE)


@nox.session
def efficacy(session: nox.Session) -> None:
    """Regenerates the tables of docs/evidence.md and those behind them; arguments after -- choose sections.

    Over an hour on 2 cores.
    """
    benchmark(session, "efficacy")
    if not session.posargs:
        benchmark(session, "transformers")
        benchmark(session, "transfer")


@nox.session
def gpu(session: nox.Session) -> None:
    """On an NVIDIA card: tests/gpu there, then docs/tables/gpu.md.

    `-- --comfyui PATH` as for the tests, `-- --only SDXL` for one MODEL.
    """
    python, rest = host_of(session)
    environment = {**PASSIVE, "PURE_DEVICE": "cuda"}
    session.run(python, "tools/run_pytest.py", "tests/gpu", "--record", external=True, env=environment)
    with session.chdir("tools"):
        session.run(python, "-m", "benchmarks.gpu", "--write", *rest, external=True, env=environment)


@nox.session
def families(session: nox.Session) -> None:
    """Regenerates docs/tables/families.md: every U-Net family at full width, one at a time."""
    benchmark(session, "families")


@nox.session
def speed(session: nox.Session) -> None:
    """Regenerates docs/tables/performance.md; arguments after -- choose sections."""
    benchmark(session, "speed")


def benchmark(session: nox.Session, name: str) -> None:
    """Runs one of tools/benchmarks and lets it write its tables."""
    python = host_python(session)
    with session.chdir("tools"):
        session.run(python, "-m", f"benchmarks.{name}", "--write", *session.posargs, external=True, env=PASSIVE)
