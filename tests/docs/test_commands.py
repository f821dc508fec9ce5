"""Every command in README and docs runs; every link and every function named in docs exists."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SMALL = {
    "demo": ["--requests", "12"],
    "record": ["--limit", "3"],
    "replay": ["--requests", "12", "--slo-p95-ms", "60000"],
    "benchmarks/bench_cycle.py": ["--rounds", "1"],
    "benchmarks/bench_trace.py": ["--cycles", "2000", "--rounds", "1"],
    "benchmarks/faulty_pair.py": ["--requests", "3"],
    "benchmarks/diagnosis.py": ["--runs", "1", "--healthy", "1", "--only", "host_overhead"],
    "benchmarks/bench_decision.py": ["--cycles", "50", "--warm-up", "20"],
    "benchmarks/live_equals_replay.py": ["--requests", "3"],
    "benchmarks/trees.py": ["--per-class", "1"],
    "benchmarks/sampling_rules.py": ["--per-class", "1", "--tokens", "4", "--draws", "8"],
    "benchmarks/draft_step.py": ["--rounds", "1"],
    "benchmarks/suite.py": ["--requests", "20", "--only", "steady"],
    "benchmarks/no_ledger.py": ["--requests", "20"],
    "simulate": ["--requests", "40", "--slo-p95-ms", "60000"],
    "benchmarks/scale.py": ["--requests", "60", "--replicas", "4", "--single", "0"],
    "benchmarks/recovery.py": ["--seeds", "2"],
    "benchmarks/cold_start.py": ["--seeds", "3", "--requests", "4"],
    "benchmarks/ablation.py": ["--requests", "20", "--only", "steady", "--confirm", "3"],
    "benchmarks/bayes_gap.py": ["--seeds", "3", "--requests", "40", "--row", "steady, closed"],
    "benchmarks/live_tree_ablation.py": ["--per-class", "1", "--rounds", "2", "--signal", "yields"],
    "benchmarks/tree_ablation.py": ["--requests", "10", "--only", "steady", "--only", "rewrites"],
    "benchmarks/serve_load.py": ["--seconds", "2", "--levels", "0.5"],
    "benchmarks/serve_memory.py": ["--requests", "60"],
    "benchmarks/typing_session.py": ["--documents", "1", "--words", "3"],
    "benchmarks/bundled_trace.py": ["--requests", "20"],
    "benchmarks/plan_check.py": ["--requests", "10", "--tau", "4", "--load", "0.6"],
    "benchmarks/peers/compare.py": ["--requests", "1", "--max-tokens", "3"],
    "benchmarks/lookup.py": ["--per-class", "1", "--rounds", "1"],
    "audit": ["--limit", "2", "--samples", "40", "--max-tokens", "8"],
    "benchmarks/audit_faults.py": ["--healthy", "1", "--runs", "1", "--only", "healthy", "--samples", "60"],
    "benchmarks/live_transformers.py": ["--requests", "2", "--max-tokens", "3", "--slo-p95-ms", "60000"],
}
"""Options that make a documented command small; the command itself stays as it is written."""
DOCUMENTED = "http://127.0.0.1:8000"
"""Where the servers of the pages listen; in the tests they take a free port."""
DOCUMENTS = json.loads((ROOT / "src/specpilot/demo/documents.json").read_text(encoding="utf-8"))["documents"]
"""They stand in for the reader's own texts."""
ALLOWED_STATUS = {
    "diagnose": (0, 1),
    "benchmarks/bench_trace.py": (0, 1),
    "benchmarks/faulty_pair.py": (0, 1),
    "demo": (0, 1),
    "benchmarks/bench_cycle.py": (0, 1),
    "benchmarks/recovery.py": (0, 1),
    "benchmarks/cold_start.py": (0, 1),
    "benchmarks/serve_load.py": (0, 1),
    "benchmarks/serve_memory.py": (0, 1),
    "benchmarks/scale.py": (0, 1),
    "benchmarks/plan_check.py": (0, 1),
}
"""Commands whose verdict depends on this machine's speed or on more seeds: tested is that they run."""


def commands(page: Path) -> list[list[str]]:
    """The shell commands of a page, comments removed."""
    lines = [
        line
        for kind, text in BLOCK.findall(page.read_text(encoding="utf-8"))
        if kind == "sh"
        for line in text.splitlines()
    ]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def snippets(page: Path) -> list[str]:
    """The Python snippets of a page."""
    return [text for kind, text in BLOCK.findall(page.read_text(encoding="utf-8")) if kind == "python"]


# The page with most benchmarks takes two minutes on an idle core and three times that beside other work.
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run_in_the_order_in_which_they_stand(page: Path, tmp_path: Path) -> None:
    """A page's commands run one after the other in an empty folder, made small."""
    (tmp_path / "out").mkdir()
    for folder in ("benchmarks", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "docs").mkdir()
    texts = ["\n\n".join(document["paragraphs"]) for document in DOCUMENTS]
    (tmp_path / "corpus.txt").write_text("\n<|doc|>\n".join(texts), encoding="utf-8")
    with contextlib.ExitStack() as servers:
        run_all(page, tmp_path, servers)


def run_all(page: Path, tmp_path: Path, servers: contextlib.ExitStack) -> None:
    """The page's commands in order; a server runs beside those that follow it."""
    url = ""
    for words in commands(page):
        if words[:2] == ["specpilot", "serve"]:
            url = servers.enter_context(server(words[2:], tmp_path))
            continue
        if words[0] == "curl":
            call = [
                url + word.removeprefix(DOCUMENTED) if word.startswith(DOCUMENTED) else word for word in words
            ]
            done = subprocess.run([*call, "--fail"], capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
            assert done.stdout
            continue
        if words[0] == "make":
            done = subprocess.run(
                ["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{words}: {done.stderr}"
            continue
        if words[0] == "specpilot":
            words = [url if word == DOCUMENTED else word for word in words]
            name, call = words[1], [sys.executable, "-m", "specpilot.cli.main", *words[1:]]
        elif words[0] == "python":
            name, call = words[1], [sys.executable, *words[1:]]
        else:
            pytest.fail(f"{page.name}: no way to test {words}")
        done = subprocess.run(
            [*call, *SMALL.get(name, [])], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode in ALLOWED_STATUS.get(name, (0,)), f"{words}: {done.stdout}\n{done.stderr}"


@contextlib.contextmanager
def server(options: list[str], folder: Path) -> Iterator[str]:
    """``specpilot serve`` on a free port; its address. It must end with status 0 when it is told to."""
    words = [sys.executable, "-m", "specpilot.cli.main", "serve", *options, "--port", "0"]
    with subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.search(r"http://\S+", line)
            assert found, line + process.stderr.read()
            yield found[0]
            process.terminate()
            assert process.wait(30.0) == 0
        finally:
            process.kill()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_snippets_run(page: Path) -> None:
    """A page's Python snippets run in one namespace, in order."""
    namespace: dict[str, object] = {}
    for text in snippets(page):
        exec(compile(text, page.name, "exec"), namespace)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "ARCHITECTURE.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links point at files of the repository."""
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "ARCHITECTURE.md"], ids=lambda page: page.name)
def test_no_heading_and_no_table_row_stands_twice(page: Path) -> None:
    """A replaced part of a page has gone (once a page held half of itself twice)."""
    lines = page.read_text(encoding="utf-8").splitlines()
    for start in ("#", "| ", "- **"):
        marked = [line for line in lines if line.startswith(start) and not line.startswith("| ---")]
        twice = {line for line in marked if marked.count(line) > 1}
        if start == "| ":  # headers of tables may repeat, rows of figures may not
            twice = {line for line in twice if len(re.findall(r"\d\.\d", line)) > 3}
        assert not twice, f"{page.name}: {sorted(twice)}"


def test_functions_named_in_the_policy_page_exist() -> None:
    """The right-hand column of the pseudocode names real code."""
    source = "\n".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "src/specpilot/control").glob("*.py")
    )
    text = (ROOT / "docs/policy.md").read_text(encoding="utf-8")
    code = next(body for kind, body in BLOCK.findall(text) if kind == "text")
    named = re.findall(r"\b([A-Z]\w+)\.(\w+)\b", code)
    assert len(named) > 10
    for owner, member in named:
        assert f"class {owner}" in source, owner
        assert re.search(rf"def {member}", source), f"{owner}.{member}"
    functions = [found for found in re.findall(r"\b([a-z]\w+)\.(\w+)\b", code) if found[1] != "py"]
    assert len(functions) > 5
    for module, function in functions:
        path = ROOT / f"src/specpilot/control/{module}.py"
        assert f"\ndef {function}(" in path.read_text(encoding="utf-8"), f"{module}.{function}"
