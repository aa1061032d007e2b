"""The set-up as a new machine meets it: lock files, the search for Python, skips under CI=true.

It installs nothing: that the lock files install is shown by every first `make test`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = ROOT / "deploy" / "requirements.lock"
DEVELOPMENT = ROOT / "deploy" / "requirements-dev.lock"
PIN = re.compile(r"^([a-z0-9-]+)==([^ ]+)( ; [^\\]+)? \\\n((?:    --hash=.*\n)*)", re.MULTILINE)


def pins_of(path: Path) -> dict[str, str]:
    found = PIN.findall(path.read_text(encoding="utf-8"))
    return {name: version for name, version, _, hashes in found if "sha256:" in hashes}


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in {"CI", "PYTHON"}}
    return subprocess.run(
        command,
        cwd=ROOT,
        env=kept | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def script(tmp_path: Path, name: str, body: str) -> None:
    path = tmp_path / name
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.mark.parametrize("path", [RUNTIME, DEVELOPMENT], ids=lambda path: path.name)
def test_every_pinned_requirement_has_hashes_and_no_address(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(pins_of(path)) == sum("==" in line.split(";")[0] for line in lines) > 10
    assert not [line for line in lines if "://" in line or line.startswith("-")]


def test_every_dependency_of_the_project_is_pinned():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)
    build = project["dependency-groups"]["build"]
    assert set(project["build-system"]["requires"]) <= set(build)
    wanted = {
        re.split(r"[>=; ]", line)[0] for line in [*project["project"]["dependencies"], *build]
    }
    assert wanted <= pins_of(RUNTIME).keys()
    extra = project["project"]["optional-dependencies"]["dev"]
    assert {re.split(r"[>=; ]", line)[0] for line in extra} <= pins_of(DEVELOPMENT).keys()


def test_development_adds_to_what_runs_and_changes_nothing_in_it():
    assert pins_of(RUNTIME).items() <= pins_of(DEVELOPMENT).items()


def test_a_python_that_only_fails_is_passed_over(tmp_path):
    script(tmp_path, "python3.12", "exit 127")
    script(tmp_path, "python3.11", f'exec "{sys.executable}" "$@"')
    found = run("sh", ".ci/python.sh", PATH=f"{tmp_path}:{os.defpath}")
    assert (found.returncode, found.stdout) == (0, "python3.11\n")


def test_python_named_by_the_user_comes_first():
    found = run("sh", ".ci/python.sh", PYTHON=sys.executable)
    assert (found.returncode, found.stdout) == (0, sys.executable + "\n")


@pytest.mark.parametrize(
    ("probe", "sentence"),
    [
        ("exit 3", "Python 3.11 or newer is missing"),
        ("[ $# = 2 ] && case $2 in *ensurepip*) exit 4 ;; *) echo 3.11 ;; esac", "python3.11-venv"),
    ],
    ids=["too old", "without venv"],
)
def test_a_missing_python_is_one_plain_sentence(tmp_path, probe, sentence):
    for name in ("python3.12", "python3.11", "python3.13", "python3"):
        script(tmp_path, name, probe)
    answer = run("sh", ".ci/python.sh", PATH=f"{tmp_path}:{os.defpath}")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert sentence in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_make_alone_prints_the_targets():
    make = shutil.which("make")
    assert make, "make is one of the two prerequisites"
    printed = run(make, "--no-print-directory")
    assert printed.returncode == 0, printed.stderr
    targets = {line.split()[1] for line in printed.stdout.splitlines()}
    assert targets == {"help", "up", "test", "lint", "fix", "bench", "lock", "clean"}


@pytest.mark.parametrize(("where", "status"), [("test", 1), ("module", 2), ("expected", 0)])
def test_a_skip_fails_only_under_ci(tmp_path, where, status):
    body = {
        "test": "def test_a():\n    pytest.skip('no server')",
        "module": "pytest.skip('no server', allow_module_level=True)",
        "expected": "@pytest.mark.xfail\ndef test_a():\n    raise AssertionError",
    }[where]
    (tmp_path / "test_sample.py").write_text(f"import pytest\n\n{body}\n\ndef test_b(): pass\n")
    shutil.copy(ROOT / "tests" / "conftest.py", tmp_path)
    pytest_here = (sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(tmp_path))
    calm = run(*pytest_here, str(tmp_path))
    strict = run(*pytest_here, str(tmp_path), CI="true")
    assert strict.returncode == status, strict.stdout
    assert ("was skipped, which CI=true does not allow: " in strict.stdout) == (status != 0)
    assert ("no server" in strict.stdout) == (status != 0)
    # 5: a file that is skipped as a whole leaves no test to run.
    assert calm.returncode == (5 if where == "module" else 0), calm.stdout
