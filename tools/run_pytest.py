"""Runs pytest in the ComfyUI that was set up: python tools/run_pytest.py [pytest's arguments]

A ComfyUI that was there before has no pytest, and is not installed into: what the tests need comes from a folder beside
it, after its own packages.
"""

import sys
from importlib.util import find_spec

from get_comfyui import get_test_packages

if find_spec("pytest") is None:
    sys.path.append(str(get_test_packages()))

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(sys.argv[1:]))
