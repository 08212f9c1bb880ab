"""A measurement in a process of its own, so that its memory is given back."""

from __future__ import annotations

import json
import subprocess
import sys

MARK = "RESULT "


def give(result) -> None:
    """In the child: hands a JSON value to the parent."""
    print(MARK + json.dumps(result), flush=True)


def result_of(module: str, *arguments: str):
    """What `python -m module arguments` gave; SystemExit with all it said where it failed."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        sys.exit(f"{module} {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    return json.loads(lines[-1].removeprefix(MARK))
