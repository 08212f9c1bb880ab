"""The archive that would be published: the listed parts alone, small, and nothing that a registry scan flags."""

import ast
import re
import subprocess
import sys

import pack
from pack import archived

LISTED = {
    "__init__.py",
    "nodes",
    "pure_core",
    "web",
    "locales",
    "example_workflows",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
}
PICTURES = (".jpg", ".png")
ROOT = pack.PROJECT


def shipped_sources():
    return {f: ast.parse((ROOT / f).read_text(encoding="utf-8")) for f in archived() if f.endswith(".py")}


def test_the_archive_is_what_is_listed_and_small():
    parts = {f.split("/")[0] for f in archived()}
    assert parts == LISTED
    assert sum((ROOT / f).stat().st_size for f in archived() if not f.endswith(PICTURES)) < 2**20
    assert any(
        f.startswith("tests/")
        for f in subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.splitlines()
    )  # control: there is something to leave out


def test_git_knows_every_file_that_would_be_shipped():
    """A new file has to be added before the tests below can see it."""
    unknown = subprocess.run(
        ["git", "ls-files", "--others", "--exclude-standard", "--", *sorted(LISTED)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert unknown == [], "git add these files: the archive holds only what git knows"


FLAGGED_CALLS = {"eval", "exec", "compile", "__import__"}
FLAGGED_MODULES = {
    "subprocess",
    "multiprocessing",
    "socket",
    "ssl",
    "websockets",
    "requests",
    "urllib",
    "http",
    "aiohttp",
    "httpx",
    "ftplib",
    "pickle",
    "ctypes",
    "importlib",
    "builtins",
    "base64",
    "marshal",
    "shelve",
}
FLAGGED_ATTRIBUTES = {
    "environ",
    "getenv",
    "putenv",
    "system",
    "popen",
    "hub",
    "urlopen",
}  # and torch.load, which unpickles
FLAGGED_WORDS = re.compile(
    r"\b(eval|Function|fetch|XMLHttpRequest|WebSocket|importScripts|innerHTML)\b|https?://"
)  # of what runs in the browser


def faults(tree):
    """What a registry's scan would flag in a source."""
    out = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FLAGGED_CALLS:
            out.append(node.func.id)
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
        out += [n for n in names if n.split(".")[0] in FLAGGED_MODULES]
        if isinstance(node, ast.ImportFrom):
            out += [a.name for a in node.names if a.name in FLAGGED_ATTRIBUTES]
        if isinstance(node, ast.Attribute) and (node.attr in FLAGGED_ATTRIBUTES or ast.unparse(node) == "torch.load"):
            out.append(node.attr)
    return out


def test_nothing_shipped_is_flagged():
    assert {f: faults(tree) for f, tree in shipped_sources().items() if faults(tree)} == {}
    assert set(
        faults(
            ast.parse("import pickle, os, torch\nfrom os import getenv\nos.environ['x'] = eval('1')\ntorch.load('x')")
        )
    ) == {"pickle", "getenv", "eval", "environ", "load"}  # control


def test_nothing_that_runs_in_the_browser_is_flagged():
    scripts = [f for f in archived() if f.endswith(".js")]
    assert scripts
    assert {
        f: FLAGGED_WORDS.findall((ROOT / f).read_text(encoding="utf-8"))
        for f in scripts
        if FLAGGED_WORDS.search((ROOT / f).read_text(encoding="utf-8"))
    } == {}
    assert FLAGGED_WORDS.search("await fetch('x')")  # control


def test_a_scanner_finds_every_node_in_the_sources():
    """Classes that derive directly from io.ComfyNode, each with a literal node_id."""
    found = []
    for tree in shipped_sources().values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "io.ComfyNode" for base in node.bases):
                ids = [
                    k.value.value
                    for call in ast.walk(node)
                    if isinstance(call, ast.Call)
                    for k in call.keywords
                    if k.arg == "node_id" and isinstance(k.value, ast.Constant)
                ]
                assert len(ids) == 1, node.name
                assert ids[0].startswith("PURE_"), node.name
                found += ids
    assert sorted(found) == sorted(page.stem for page in (ROOT / "web" / "docs").glob("*.md"))


def test_no_placeholder_is_published_by_accident():
    """The publish workflow refuses while publisher and owner are not filled in."""
    text, workflow = (
        (ROOT / "pyproject.toml").read_text(encoding="utf-8"),
        (ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8"),
    )
    words = re.search(r"grep -nE '([^']+)' pyproject.toml", workflow)[1]
    assert {w for w in ("PUBLISHER_ID", "REPOSITORY_OWNER") if w in text} <= set(words.split("|"))


def test_the_mathematics_imports_without_a_host():
    modules = sorted(f"p.pure_core.{file.stem}" for file in (ROOT / "pure_core").glob("[!_]*.py"))
    assert len(modules) > 15
    code = (
        "import sys, importlib.util as u; s = u.spec_from_file_location('p', r'%s', "
        "submodule_search_locations=[r'%s']); m = u.module_from_spec(s); sys.modules['p'] = m; "
        f"s.loader.exec_module(m); import {', '.join(modules)}; "
        "print(sorted(n for n in sys.modules if n.split('.')[0] in ('comfy', 'nodes', 'comfy_api', 'folder_paths', "
        "'server')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code % (ROOT / "__init__.py", ROOT)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT / "tools",
    )
    assert done.stdout.strip() == "[]"
