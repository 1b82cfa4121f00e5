"""Every error that arrowrb raises on purpose: one base, each mixed with the built-in that it resembles.

    ArrowRBError
    +-- SchemaError (ValueError)            a space, extra or cast that cannot be stored; schemas that differ
    +-- ColumnError (ValueError)            a column of the wrong name, shape, dtype, length, or with nulls
    +-- OptionError (ValueError)            an argument outside what is allowed
    +-- UsageError (RuntimeError)           calls in an order that makes no sense
    |   +-- ClosedError                     the store, sampler or collector is closed
    |   +-- ReadOnlyError                   writing to a store that was opened for reading
    |   +-- EmptyError                      sampling where there is nothing to sample
    +-- RowError (LookupError)              a row id that names no transition, or one that is gone
    +-- StoreError (OSError)                what lies on disk
    |   +-- StoreNotFoundError              no store at this path
    |   +-- StoreExistsError                a store is there already
    |   +-- LockedError                     another writer holds the shard
    |   +-- FormatError                     written by a newer version, or by something else
    |   +-- CorruptError                    damaged
    |   +-- FullError                       no room left on the device
    +-- EnvironmentFault (RuntimeError)      an environment or policy that breaks the rules of Gymnasium
    +-- WorkerError (RuntimeError)          a worker of a collector that ended
    +-- QueryError (ValueError)             SQL that is wrong, or that would write
    +-- WaitError (TimeoutError)            a wait that took too long; says what it waited for

A message says field, expected, got, remedy.
"""

from __future__ import annotations


class ArrowRBError(Exception):
    """Base of every error that arrowrb raises on purpose."""


class SchemaError(ArrowRBError, ValueError):
    """A space, extra or cast that cannot be stored, or two schemas that differ."""


class ColumnError(ArrowRBError, ValueError):
    """A column of the wrong name, shape, dtype or length, or with nulls where none are allowed."""


class OptionError(ArrowRBError, ValueError):
    """An argument outside what is allowed."""


class UsageError(ArrowRBError, RuntimeError):
    """Calls in an order that makes no sense."""


class ClosedError(UsageError):
    """The store, sampler or collector is closed."""


class ReadOnlyError(UsageError):
    """Writing to a store that was opened for reading."""


class EmptyError(UsageError):
    """Sampling where there is nothing to sample."""


class RowError(ArrowRBError, LookupError):
    """A row id that names no transition, or one whose rows are gone."""


class StoreError(ArrowRBError, OSError):
    """Something about what lies on disk."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """There is no store at this path."""


class StoreExistsError(StoreError, FileExistsError):
    """A store is there already."""


class LockedError(StoreError):
    """Another writer holds the shard."""


class FormatError(StoreError):
    """Written by a newer version of arrowrb, or by something else."""


class CorruptError(StoreError):
    """A file of the store is damaged."""


class FullError(StoreError):
    """No room is left on the device."""


class EnvironmentFault(ArrowRBError, RuntimeError):
    """An environment or policy that breaks the rules of Gymnasium."""


class WorkerError(ArrowRBError, RuntimeError):
    """A worker of a collector that could not be started, or has ended."""


class QueryError(ArrowRBError, ValueError):
    """SQL that is wrong, or that would do more than read."""


class WaitError(ArrowRBError, TimeoutError):
    """A wait that took too long; the message says what it waited for."""
