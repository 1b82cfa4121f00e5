"""A Minari data set into a store, episode by episode."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any, Final

import numpy as np

from ..engine import check_path
from ..errors import ArrowRBError, ColumnError, CorruptError, OptionError, StoreError, StoreNotFoundError
from ..schema import Rows, Schema, Tree, encode_batch
from .filling import Filler, Imported, Progress, check_progress, chunk_rows, filling

_DATA: Final = "data"


def import_minari(
    dataset: Any,
    target: Any,
    *,
    info: Mapping[str, Any] | None = None,
    float64: str = "keep",
    schema: Schema | None = None,
    hot_rows: int | None = None,
    max_rows: int | None = None,
    progress: Progress | None = None,
) -> Imported:
    """Add the episodes of a Minari data set to a store, with their true final observations and seeds.

    Needs the package ``minari``. Nothing is downloaded.

    Args:
        dataset: a ``minari.MinariDataset``, the path of one, or the id of one that has been downloaded.
        target: a `Store` that is open for writing, or the path of a new one, which appears when it is whole.
        info: of a new store: entries of ``infos`` to keep, see `Schema.from_env`.
        float64: of a new store, see `Schema.from_env`.
        schema: of a new store; by default that of the data set's spaces.
        hot_rows: of a new store, see `Store.create`; likewise `max_rows`.
        max_rows: see `Store.create`.
        progress: called with the transitions that are added, and all.

    Raises:
        StoreNotFoundError: if there is no such data set here.
        ColumnError: if an episode does not fit the schema.
        CorruptError: if it cannot be read.
    """
    check_progress(progress)
    dataset = open_dataset(dataset)

    def make_schema() -> Schema:
        return schema or _schema_of(dataset, info, float64)

    limits = {"hot_rows": hot_rows, "max_rows": max_rows}
    with filling(target, make_schema, limits, exact=schema is not None) as (store, path):
        size = chunk_rows(store.schema)
        with _reading(dataset):
            total = int(dataset.total_steps)
        with Filler(store, total, progress) as filler:
            parts: list[_Episode] = []
            for episode in _episodes(dataset, store.schema):
                parts.append(episode)
                if sum(part.num_steps for part in parts) >= size:
                    _add(filler, store.schema, parts)
                    parts = []
            _add(filler, store.schema, parts)
            if filler.num_transitions != total:
                raise CorruptError(
                    f"The data set says that it has {total:,} steps, but its episodes hold {filler.num_transitions:,}."
                )
        return Imported(path, filler.num_transitions, 0)


def open_dataset(dataset: Any) -> Any:
    """A Minari data set by its object, path or id."""
    if hasattr(dataset, "iterate_episodes"):
        return dataset
    path = check_path(dataset, "dataset", "a MinariDataset, the path or the id of one")
    text = str(path)
    try:
        import minari
    except ImportError as error:
        raise OptionError(
            f"Reading a Minari data set needs the package minari: pip install 'minari[hdf5]'. ({error})"
        ) from error
    with _reading(text):
        if path.is_dir():
            return minari.MinariDataset(path / _DATA if (path / _DATA).is_dir() else path)
        try:
            return minari.load_dataset(text)
        except FileNotFoundError:
            raise StoreNotFoundError(
                f"There is no Minari data set {text!r} here: no folder of that path, and none that was downloaded. "
                f"Download it first: minari download {text}"
            ) from None


@contextlib.contextmanager
def _reading(dataset: Any) -> Iterator[None]:
    """Whatever a damaged data set raises in the packages that read it is an error of ours."""
    name = getattr(getattr(dataset, "spec", None), "dataset_id", dataset)
    try:
        yield
    except ArrowRBError:
        raise
    except OSError as error:
        raise StoreError(f"The Minari data set {name} cannot be read: {error}.") from error
    except Exception as error:
        raise CorruptError(f"The Minari data set {name} cannot be read: {type(error).__name__}: {error}.") from error


def _schema_of(dataset: Any, info: Mapping[str, Any] | None, float64: str) -> Schema:
    with _reading(dataset):
        first = next(iter(dataset.iterate_episodes()), None)
        reward = ("float64", ()) if first is None else (np.asarray(first.rewards).dtype.name, first.rewards.shape[1:])
        like = SimpleNamespace(
            observation_space=dataset.observation_space, action_space=dataset.action_space, spec=dataset.env_spec
        )
    return Schema.from_env(like, info=info, float64=float64, reward=reward)


class _Episode:
    """One episode as columns of a batch: the leaves of its observations with their last, the rest by step."""

    def __init__(self, data: Any, seed: Any, schema: Schema) -> None:
        self.number = int(data.id)
        self.seed = None if seed is None else self._check_seed(seed)
        self.num_steps = len(data.rewards)
        self.observations = _leaves(schema.observation_tree, data.observations, "observations")
        self.columns = {
            "reward": np.asarray(data.rewards),
            "terminated": np.asarray(data.terminations, np.bool_),
            "truncated": np.asarray(data.truncations, np.bool_),
        }
        actions = _leaves(schema.action_tree, data.actions, "actions")
        self.columns |= {c.name: leaf for c, leaf in zip(_action_columns(schema), actions, strict=True)}
        self._take_infos(data.infos or {}, schema)
        for name, values in self.columns.items():
            if len(values) != self.num_steps:
                raise self._misfit(name, len(values), self.num_steps)
        for values in self.observations:
            if len(values) != self.num_steps + 1:
                raise self._misfit("observations", len(values), self.num_steps + 1)

    def _check_seed(self, seed: Any) -> int:
        try:
            whole = operator.index(seed)
        except TypeError:
            whole = -1
        if not 0 <= whole < 1 << 64:
            raise ColumnError(f"Episode {self.number} has the seed {seed!r}, expected a whole number of 64 bits.")
        return whole

    def _take_infos(self, infos: Mapping[str, Any], schema: Schema) -> None:
        """Infos have an entry for the reset and one a step, or one a step."""
        for name, extra in schema.info.items():
            found: Any = infos
            for key in [name] if name in infos else name.split("."):
                found = found.get(key) if isinstance(found, Mapping) else None
            if found is None:
                continue
            values = np.asarray(found)
            if extra.owner == "observation":
                if len(values) != self.num_steps + 1:
                    raise self._misfit(f"infos[{name!r}]", len(values), self.num_steps + 1)
                self.columns[name], self.columns["next_" + name] = values[:-1], values[1:]
            else:
                self.columns[name] = values[1:] if len(values) == self.num_steps + 1 else values

    def _misfit(self, name: str, count: int, expected: int) -> ColumnError:
        return ColumnError(f"Episode {self.number} has {count} {name}, expected {expected}: it is damaged.")


def _action_columns(schema: Schema) -> list[Any]:
    return [column for column in schema.transition_columns if column.name.split(".")[0] == "action"]


def _leaves(tree: Tree, value: Any, name: str) -> list[Any]:
    return [np.asarray(leaf) for leaf in tree.leaves(value, name)]


def _episodes(dataset: Any, schema: Schema) -> Iterator[_Episode]:
    indices = [int(index) for index in dataset.episode_indices]
    with _reading(dataset):
        described = dict(zip(indices, dataset.storage.get_episode_metadata(indices), strict=True))
        seen: set[int] = set()
        for data in dataset.iterate_episodes():
            if int(data.id) in seen:
                raise CorruptError(f"Episode {int(data.id)} is in the data set twice: it is damaged.")
            seen.add(int(data.id))
            yield _Episode(data, described.get(int(data.id), {}).get("seed"), schema)


def _add(filler: Filler, schema: Schema, episodes: list[_Episode]) -> None:
    """Commit some episodes."""
    episodes = [episode for episode in episodes if episode.num_steps]
    if not episodes:
        return
    names = [column.name for column in schema.observation_columns[: len(schema.observation_tree.paths)]]
    batch: dict[str, Any] = {}
    for place, name in enumerate(names):
        leaves = [episode.observations[place] for episode in episodes]
        batch[name] = np.concatenate([leaf[:-1] for leaf in leaves])
        batch["next_" + name] = np.concatenate([leaf[1:] for leaf in leaves])
    for name in dict.fromkeys(name for episode in episodes for name in episode.columns):
        batch[name] = _joined(episodes, name)
    lengths = [episode.num_steps for episode in episodes]
    batch["episode_id"] = np.repeat([episode.number for episode in episodes], lengths)
    batch["step"] = np.concatenate([np.arange(length) for length in lengths])
    rows: Rows = encode_batch(schema, batch)
    starts = np.cumsum([0, *lengths[:-1]]).tolist()
    seeds = [(start, episode.seed) for start, episode in zip(starts, episodes, strict=True) if episode.seed is not None]
    filler.add(rows, tuple(seeds))
    filler.tell(rows.num_rows)


def _joined(episodes: list[_Episode], name: str) -> Any:
    """A column of all episodes; masked in those that lack it (an entry of infos)."""
    like = next(episode.columns[name] for episode in episodes if name in episode.columns)
    parts = [
        episode.columns.get(name, np.zeros((episode.num_steps, *like.shape[1:]), like.dtype)) for episode in episodes
    ]
    values = np.concatenate(parts)
    lacks = np.repeat([name not in episode.columns for episode in episodes], [len(part) for part in parts])
    if not lacks.any():
        return values
    return np.ma.MaskedArray(values, np.broadcast_to(lacks.reshape(-1, *[1] * (values.ndim - 1)), values.shape))
