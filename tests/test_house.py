"""What a fresh machine relies on: pinned requirements, the Makefile, the licence."""

from __future__ import annotations

import os
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = [line for line in (ROOT / "requirements-dev.txt").read_text().splitlines() if line and not line.startswith("#")]


def name_of(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None
    return match[0].lower().replace("-", "_")


@pytest.mark.parametrize("pin", PINS)
def test_requirements_are_pinned(pin: str) -> None:
    assert re.fullmatch(r"[\w.-]+(\[\w+\])?==[\w.]+", pin)


def test_all_that_the_package_needs_is_pinned() -> None:
    needed = {name_of(each) for each in [*PROJECT["project"]["dependencies"], *PROJECT["build-system"]["requires"]]}
    assert needed <= {name_of(pin) for pin in PINS}


def test_the_package_itself_takes_ranges() -> None:
    for requirement in PROJECT["project"]["dependencies"]:
        assert re.fullmatch(r"[\w.-]+>=[\w.]+", requirement)


def test_the_lowest_versions_are_not_above_the_pins() -> None:
    for requirement in PROJECT["project"]["dependencies"]:
        name, lowest = requirement.split(">=")
        installed = version(name).split("+")[0]
        assert [int(part) for part in lowest.split(".")] <= [int(part) for part in re.findall(r"\d+", installed)]


def test_continuous_integration_runs() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "make" in script.read_text()


def test_no_place_of_installation_is_prescribed() -> None:
    for path in (ROOT / "Makefile", ROOT / "requirements-dev.txt", ROOT / ".ci" / "run", ROOT / "pyproject.toml"):
        assert not re.search(r"https?://|--(extra-)?index-url|--find-links", path.read_text()), path


def test_licence() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert PROJECT["project"]["license"] == "Apache-2.0"
