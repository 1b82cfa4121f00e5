"""The public face: exactly these names."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

import arrowrb

NAMES = [
    "ArrowRBError",
    "BatchDataset",
    "Checkpoint",
    "ClosedError",
    "Collector",
    "ColumnError",
    "CorruptError",
    "EmptyError",
    "EnvironmentFault",
    "Episodes",
    "Evaluation",
    "Extra",
    "FormatError",
    "FullError",
    "Hindsight",
    "Imported",
    "LimiterInfo",
    "LockedError",
    "Mixture",
    "Monitor",
    "OptionError",
    "Participant",
    "Prioritized",
    "PrioritizedSequences",
    "Query",
    "QueryError",
    "ReadOnlyError",
    "Recorder",
    "RowError",
    "RunInfo",
    "SampleToInsertRatio",
    "Sampler",
    "SamplerInfo",
    "Schema",
    "SchemaError",
    "Sequences",
    "Shuffled",
    "Step",
    "Store",
    "StoreError",
    "StoreExistsError",
    "StoreInfo",
    "StoreNotFoundError",
    "Uniform",
    "UsageError",
    "WaitError",
    "Watermark",
    "Weighted",
    "Where",
    "WorkerError",
    "evaluate",
    "gae",
    "import_minari",
    "import_parquet",
    "merge",
    "repair",
    "to_torch",
    "verify",
]


def test_names_are_pinned() -> None:
    assert arrowrb.__all__ == NAMES
    assert sorted(arrowrb.__all__) == arrowrb.__all__


@pytest.mark.parametrize("name", NAMES)
def test_name_resolves(name: str) -> None:
    value = getattr(arrowrb, name)
    assert value.__name__ == name
    assert value.__doc__
    assert getattr(arrowrb, name) is value


def test_dir_lists_names_before_they_are_loaded() -> None:
    assert set(NAMES) <= set(dir(arrowrb))


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="module 'arrowrb' has no attribute 'nothing'"):
        arrowrb.nothing  # noqa: B018


def test_errors_have_one_base() -> None:
    from arrowrb import errors

    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    assert len(classes) > 10
    for each in classes:
        assert issubclass(each, arrowrb.ArrowRBError)
        builtins = [base for base in each.__mro__ if base.__module__ == "builtins"]
        assert each is arrowrb.ArrowRBError or builtins[0] not in (Exception, BaseException, object)
        assert each.__name__ in (errors.__doc__ or "")


def test_version_agrees_with_the_project() -> None:
    project = Path(arrowrb.__file__).parent.parent / "pyproject.toml"
    assert arrowrb.__version__ == tomllib.loads(project.read_text())["project"]["version"]


def test_types_are_shipped() -> None:
    assert (Path(arrowrb.__file__).parent / "py.typed").exists()
