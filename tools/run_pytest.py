"""Runs pytest in the ComfyUI that was set up: python tools/run_pytest.py [pytest's arguments]

A ComfyUI that was there before has no pytest, and is not installed into: what the tests need comes from a folder beside
it, after its own packages.
"""

import sys

from get_comfyui import Host, get_test_packages

if not Host.load().has_test_packages:
    sys.path.append(str(get_test_packages()))

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(sys.argv[1:]))
