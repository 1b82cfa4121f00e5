"""encode_batch: every kind of input, every error, and that nothing is lost on the way."""

from __future__ import annotations

import operator

import ml_dtypes
import numpy as np
import pyarrow as pa
import pytest
import torch
from gymnasium import spaces

from arrowrb.errors import ColumnError
from arrowrb.schema import Column, Extra, Rows, Schema, column_array, encode_batch, encode_row

BOX = spaces.Box(-1, 1, (3,), np.float32)
DISCRETE = spaces.Discrete(4)
FLAT = Schema.from_spaces(BOX, DISCRETE)
NESTED = Schema.from_spaces(
    spaces.Dict({"camera": spaces.Box(0, 255, (2, 2), np.uint8), "pair": spaces.Tuple([BOX, spaces.MultiBinary(2)])}),
    spaces.Tuple([DISCRETE, spaces.Box(-1, 1, (), np.float32)]),
)


def flat_batch(count=5, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "observation": rng.normal(size=(count, 3)).astype(np.float32),
        "action": rng.integers(0, 4, count),
        "reward": rng.normal(size=count),
        "next_observation": rng.normal(size=(count, 3)).astype(np.float32),
        "terminated": rng.integers(0, 2, count).astype(bool),
        "truncated": rng.integers(0, 2, count).astype(bool),
    }


def nested_batch(count=4):
    rng = np.random.default_rng(1)

    def observation():
        return {
            "camera": rng.integers(0, 256, (count, 2, 2), dtype=np.uint8),
            "pair": (
                rng.normal(size=(count, 3)).astype(np.float32),
                rng.integers(0, 2, (count, 2), dtype=np.int8),
            ),
        }

    batch = flat_batch(count)
    action = (batch["action"], np.zeros(count, np.float32))
    return {**batch, "observation": observation(), "next_observation": observation(), "action": action}


def same_rows(one: Rows, two: Rows):
    assert one.num_rows == two.num_rows
    for name in ("observation", "next_observation", "outcome"):
        arrays = getattr(one, name), getattr(two, name)
        for first, second in zip(*arrays, strict=True):
            assert (first.dtype, first.shape) == (second.dtype, second.shape)
            assert first.tobytes() == second.tobytes()


def check_layout(schema, rows):
    groups = [
        (schema.observation_columns, rows.observation),
        (schema.observation_columns, rows.next_observation),
        (schema.transition_columns, rows.outcome),
    ]
    for columns, arrays in groups:
        for column, array in zip(columns, arrays, strict=True):
            assert array.dtype == column.storage, column
            assert array.shape == (rows.num_rows, *column.shape), column
            assert array.flags.c_contiguous
            assert array.flags.aligned


def outcome(schema, rows, name):
    return rows.outcome[[column.name for column in schema.transition_columns].index(name)]


def record_batch(schema, batch, **more):
    """A batch as our own record batches are: flat dotted names, flags as booleans."""
    rows = encode_batch(schema, batch)
    arrays, fields = [], []
    for prefix, columns, values in (
        ("", schema.observation_columns, rows.observation),
        ("next_", schema.observation_columns, rows.next_observation),
        ("", schema.transition_columns, rows.outcome),
    ):
        for column, one in zip(columns, values, strict=True):
            arrays.append(column_array(column, one))
            fields.append(column.field(batch=True, name=prefix + column.name))
    for name, values in more.items():
        arrays.append(pa.array(values))
        fields.append(pa.field(name, arrays[-1].type))
    return pa.record_batch(arrays, schema=pa.schema(fields))


def test_exact_arrays_are_used_as_they_are():
    batch = flat_batch()
    rows = encode_batch(FLAT, batch)
    check_layout(FLAT, rows)
    assert rows.observation[0] is batch["observation"]
    assert rows.next_observation[0] is batch["next_observation"]
    assert outcome(FLAT, rows, "action") is batch["action"]
    assert outcome(FLAT, rows, "reward") is batch["reward"]
    assert np.shares_memory(outcome(FLAT, rows, "terminated"), batch["terminated"])
    assert (rows.lane, rows.episode_id, rows.step, rows.time, rows.policy_version) == (None,) * 5


class _Wrapped:
    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


def _read_only(array):
    array = array.copy()
    array.flags.writeable = False
    return array


def _unaligned(array):
    raw = np.zeros(array.nbytes + 1, np.uint8)
    raw[1:] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
    return raw[1:].view(array.dtype).reshape(array.shape)


def _gradient(array):
    tensor = torch.from_numpy(array)
    return tensor.requires_grad_() if tensor.is_floating_point() else tensor


KINDS = {
    "read-only": _read_only,
    "fortran": np.asfortranarray,
    "strided": lambda array: np.repeat(array, 2, axis=0)[::2],
    "unaligned": _unaligned,
    "big endian": lambda array: array.astype(array.dtype.newbyteorder(">")),
    "list": lambda array: array.tolist(),
    "list of arrays": list,
    "tuple": tuple,
    "object": lambda array: np.array([*array, None], object)[:-1],
    "masked": np.ma.array,
    "torch": torch.from_numpy,
    "torch with gradient": _gradient,
    "list of tensors": lambda array: list(torch.from_numpy(array)),
    "__array__": _Wrapped,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_array(kind):
    for schema, batch in ((FLAT, flat_batch()), (NESTED, nested_batch())):
        expected = encode_batch(schema, batch)
        given = {name: _map(KINDS[kind], value) for name, value in batch.items()}
        rows = encode_batch(schema, given)
        check_layout(schema, rows)
        same_rows(rows, expected)


def _map(function, value):
    if isinstance(value, dict):
        return {key: _map(function, one) for key, one in value.items()}
    if isinstance(value, tuple):
        return tuple(_map(function, one) for one in value)
    return function(value)


class FakeTensorDict:
    batch_size = torch.Size([4])

    def __init__(self, values):
        self.values = values

    def to_dict(self):
        return self.values


def test_every_kind_of_batch():
    batch = nested_batch()
    rows = encode_batch(NESTED, batch)
    check_layout(NESTED, rows)
    dotted = {name: batch[name] for name in ("reward", "terminated", "truncated")} | {
        "action.0": batch["action"][0],
        "action.1": batch["action"][1],
    }
    for root in ("observation", "next_observation"):
        dotted[f"{root}.camera"] = batch[root]["camera"]
        dotted[f"{root}.pair.0"], dotted[f"{root}.pair.1"] = batch[root]["pair"]
    arrow = record_batch(NESTED, batch)
    table = pa.Table.from_batches([arrow.slice(0, 1), arrow.slice(1, 2), arrow.slice(3)])
    for given in (dotted, arrow, table, FakeTensorDict(batch), _Mapping(batch)):
        same_rows(encode_batch(NESTED, given), rows)
    part = encode_batch(NESTED, table.slice(1, 2))
    assert part.num_rows == 2
    assert part.observation[0].tobytes() == rows.observation[0][1:3].tobytes()
    for bad in (5, None, [batch], "batch", pa.array([1])):
        with pytest.raises(ColumnError, match="The batch is of type"):
            encode_batch(NESTED, bad)


class _Mapping(dict):
    """A mapping that is not exactly a dict."""


def test_empty_batches():
    for count_zero in (
        flat_batch(0),
        {name: [] for name in flat_batch(0)},
        record_batch(FLAT, flat_batch(0)),
    ):
        rows = encode_batch(FLAT, count_zero, lane=3)
        assert rows.num_rows == 0
        check_layout(FLAT, rows)
        assert rows.lane.shape == (0,)


def test_nan_payloads_are_kept():
    batch = flat_batch()
    bits = np.random.default_rng(0).integers(0, 2**32, 15, dtype=np.uint32) | 0x7F800000
    batch["observation"] = bits.view(np.float32).reshape(5, 3)
    for given in (
        batch,
        record_batch(FLAT, batch),
        {**batch, "observation": torch.from_numpy(batch["observation"])},
    ):
        assert encode_batch(FLAT, given).observation[0].tobytes() == bits.tobytes()


def test_row_columns():
    batch = flat_batch(3)
    rows = encode_batch(FLAT, batch, lane=7)
    assert rows.lane.tolist() == [7, 7, 7]
    assert rows.lane.dtype == np.int32
    assert encode_batch(FLAT, batch, lane=[1, 2, 3]).lane.tolist() == [1, 2, 3]
    assert encode_batch(FLAT, batch, lane=np.array([1, 2, 3], np.uint8)).lane.dtype == np.int32
    given = {"lane": [0, 1, 2], "episode_id": [2**62, 0, 1], "step": np.array([0, 1, 2], np.int32)}
    given |= {"time": [-5, 0, 2**62], "policy_version": torch.tensor([-1, 0, 5])}
    for one in (
        {**batch, **given, "row_id": [9, 9, 9], "ordinal": [1, 2, 3], "kind": [1, 1, 1]},
        record_batch(FLAT, batch, **{name: np.asarray(values) for name, values in given.items()}, row_id=[9, 9, 9]),
    ):
        rows = encode_batch(FLAT, one)
        for name, values in given.items():
            array = getattr(rows, name)
            assert array.tolist() == np.asarray(values).tolist(), name
            assert array.dtype == (np.int32 if name == "lane" else np.int64)
    for name, values, message in [
        ("lane", [0, -1, 0], "value -1, expected 0 to 2147483647"),
        ("lane", [0, 2**31, 0], "value 2147483648"),
        ("lane", [0, 1], "2 rows, expected 3"),
        ("lane", [0, None, 1], "1 nulls"),
        ("lane", [0.0, 1.0, 2.0], "dtype float64"),
        ("episode_id", [0, -1, 0], "value -1"),
        ("step", [-1, 0, 0], "value -1"),
        ("policy_version", [2**31, 0, 0], "value 2147483648"),
        ("time", ["a", "b", "c"], "dtype <U1, expected int64"),
        ("kind", [1, 2, 1], "not transitions"),
        ("kind", [1, 1], "2 rows"),
    ]:
        with pytest.raises(ColumnError, match=f"'{name}'.*{message}"):
            encode_batch(FLAT, {**batch, name: values})
    for lane in (-1, 2**31, 2**70, [0, 1], [0, 1, -1], 0.5, True, "a", [0, None, 1]):
        with pytest.raises(ColumnError, match="lane"):
            encode_batch(FLAT, batch, lane=lane)
    with pytest.raises(ColumnError, match="as an argument"):
        encode_batch(FLAT, {**batch, "lane": [0, 0, 0]}, lane=0)


ERRORS = [
    (
        {"observation": np.zeros((5, 3))},
        r"'observation' has dtype float64, expected float32.*float64='float32'",
    ),
    ({"observation": np.zeros((5, 4), np.float32)}, r"'observation' has shape \(5, 4\), expected \[n, 3\]"),
    ({"observation": np.zeros(3, np.float32)}, r"'observation' has shape \(3,\).*one row"),
    ({"observation": np.zeros((5, 3), np.int64)}, "'observation' has dtype int64, expected float32"),
    ({"observation": np.zeros((5, 3), np.complex64)}, "'observation' has dtype complex64"),
    ({"observation": {"a": np.zeros(5)}}, "'observation' is a mapping"),
    ({"reward": np.zeros((5, 1))}, r"'reward' has shape \(5, 1\), expected \[n\].*last axis"),
    ({"reward": torch.zeros(5, 1, dtype=torch.float64)}, r"'reward' has shape \(5, 1\)"),
    ({"reward": 1.0}, "'reward' is of type float, expected an array.*add"),
    ({"reward": np.float64(1)}, "'reward' is a single value"),
    ({"reward": torch.tensor(1.0)}, "'reward' is a single value"),
    ({"reward": "abcde"}, "'reward' is of type str"),
    ({"reward": list("abcde")}, "'reward' has dtype <U1"),
    ({"reward": [1.0, 2.0, None, 4.0, 5.0]}, "'reward' has 1 nulls, expected none"),
    ({"reward": [1.0, 2.0, [3.0], 4.0, 5.0]}, "'reward' has rows of unequal shape"),
    ({"reward": [2**53 + 1] * 5}, "'reward' has the value 9007199254740993"),
    ({"reward": [2**80] * 5}, "'reward' has dtype object"),
    ({"reward": np.zeros(5, np.int64)}, "'reward' has dtype int64, expected float64"),
    ({"reward": np.zeros(4)}, "'reward' has 4 rows, expected 5 as in 'observation'"),
    ({"reward": np.ma.array(np.zeros(5), mask=[0, 1, 0, 0, 0])}, "'reward' has 1 nulls"),
    ({"action": np.array([0, 1, 4, 3, 2])}, "'action' has the value 4 in row 2, expected 0 to 3"),
    ({"action": np.array([0, 1, 2, 3, -1])}, "'action' has the value -1 in row 4"),
    ({"action": [0, 1, 2, 3, 9]}, "'action' has the value 9 in row 4"),
    ({"action": np.zeros(5)}, "'action' has dtype float64, expected int64"),
    ({"action": np.full(5, 2**63, np.uint64)}, "'action' has the value 9223372036854775808"),
    ({"terminated": np.array([0, 1, 2, 0, 0], np.uint8)}, "'terminated' has the value 2"),
    ({"terminated": np.zeros(5)}, "'terminated' has dtype float64, expected bool"),
    ({"truncated": pa.array([True, None, True, True, True])}, "'truncated' has 1 nulls"),
    ({"done": np.zeros(5, bool)}, "'done' is unknown, expected one of"),
    ({5: np.zeros(5, bool)}, "5 is unknown"),
    ({"next_reward": np.zeros(5)}, "'next_reward' is unknown"),
    ({"reward.valid": np.zeros(5, bool)}, "'reward.valid' is unknown"),
]


@pytest.mark.parametrize(("change", "message"), ERRORS, ids=[message[:40] for _, message in ERRORS])
def test_errors(change, message):
    with pytest.raises(ColumnError, match=f"Column {message}|^{message}"):
        encode_batch(FLAT, {**flat_batch(), **change})


@pytest.mark.parametrize("name", list(flat_batch()))
def test_missing_columns(name):
    batch = flat_batch()
    del batch[name]
    with pytest.raises(ColumnError, match=f"'{name}' is missing.*expected"):
        encode_batch(FLAT, batch)


def test_nested_errors_name_the_place():
    batch = nested_batch()
    del batch["next_observation"]["pair"]
    with pytest.raises(ColumnError, match=r"next_observation\[\"pair\"\].*missing"):
        encode_batch(NESTED, batch)
    batch = nested_batch()
    batch["observation"]["lidar"] = np.zeros(4)
    with pytest.raises(ColumnError, match="unknown key 'lidar'"):
        encode_batch(NESTED, batch)
    batch = nested_batch()
    batch["observation.camera"] = batch["observation"]["camera"]
    with pytest.raises(ColumnError, match=r"observation.camera.*beside the nested"):
        encode_batch(NESTED, batch)
    batch = nested_batch()
    batch["observation"]["pair"] = batch["observation"]["pair"][:1]
    with pytest.raises(ColumnError, match=r"observation\[\"pair\"\].*1 values"):
        encode_batch(NESTED, batch)


def test_columns_given_twice():
    batch = record_batch(FLAT, flat_batch())
    batch = pa.record_batch([*batch.columns, batch["reward"]], names=[*batch.schema.names, "reward"])
    with pytest.raises(ColumnError, match="'reward' is in the batch twice"):
        encode_batch(FLAT, batch)


def test_recorded_casts():
    schema = Schema.from_spaces(spaces.Box(-1, 1, (3,), np.float64), DISCRETE, float64="float32")
    batch = flat_batch()
    wide = np.random.default_rng(2).normal(size=(5, 3))
    wide[0] = [np.nan, np.inf, 1e300]
    rows = encode_batch(schema, {**batch, "observation": wide})
    with np.errstate(over="ignore"):
        assert rows.observation[0].tobytes() == wide.astype(np.float32).tobytes()
    assert rows.next_observation[0] is batch["next_observation"]
    assert outcome(schema, rows, "reward").tolist() == batch["reward"].astype(np.float32).tolist()
    for reward in (
        [0.1] * 5,
        torch.full((5,), 0.1, dtype=torch.float64),
        pa.array([0.1] * 5),
        [1, 2, 3, 4, 5],
    ):
        got = outcome(schema, encode_batch(schema, {**batch, "reward": reward}), "reward")
        expected = np.asarray(reward.to_pylist() if isinstance(reward, pa.Array) else reward).astype(np.float32)
        assert got.tolist() == expected.tolist()


def test_python_numbers_must_be_held_exactly():
    schema = Schema.from_spaces(BOX, DISCRETE, extras={"x": "float32"})
    batch = {**flat_batch(), "x": [0.5, float("nan"), float("inf"), -0.0, 2**24]}
    assert outcome(schema, encode_batch(schema, batch), "x")[[0, 2, 4]].tolist() == [0.5, np.inf, 2.0**24]
    for bad in (0.1, 1e300, 2**24 + 1):
        with pytest.raises(ColumnError, match=r"'x' has the value.*float32 holds exactly"):
            encode_batch(schema, {**batch, "x": [0.5] * 4 + [bad]})
    with pytest.raises(ColumnError, match="'x' has dtype float64, expected float32"):
        encode_batch(schema, {**batch, "x": np.full(5, 0.5)})


def test_a_narrow_reward_casts_what_environments_return():
    schema = Schema.from_spaces(BOX, DISCRETE, reward=("float32", ()))
    assert schema.column("reward").cast_from == "float64"
    for reward in (np.full(5, 0.1), [0.1] * 5):
        got = outcome(schema, encode_batch(schema, {**flat_batch(), "reward": reward}), "reward")
        assert got.tolist() == [float(np.float32(0.1))] * 5


def one_column(dtype, values, shape=(), **more):
    """What becomes of an extra `x` of this dtype."""
    schema = Schema.from_spaces(BOX, DISCRETE, extras={"x": Extra(dtype, shape, **more)})
    rows = encode_batch(schema, {**flat_batch(len(values)), "x": values})
    check_layout(schema, rows)
    return outcome(schema, rows, "x")


def test_lossless_conversions():
    for dtype in ("int8", "int16", "int64", "uint8", "uint64"):
        for source in ("int8", "int32", "uint16", "uint64", "bool"):
            assert one_column(dtype, np.array([0, 1, 1], source)).tolist() == [0, 1, 1]
    assert one_column("bool", np.array([0, 1], np.uint8)).tolist() == [0, 1]
    assert one_column("bool", [True, False]).tolist() == [1, 0]
    assert one_column("bool", [0, 1]).tolist() == [0, 1]
    assert one_column("float64", np.array([0.1], np.float32)).tolist() == [float(np.float32(0.1))]
    assert one_column("float16", [1, 2048]).tolist() == [1, 2048]
    assert one_column("float32", [True, False]).tolist() == [1, 0]
    assert one_column("uint64", [2**64 - 1]).tolist() == [2**64 - 1]
    for dtype, values in (
        ("int8", np.array([128])),
        ("int8", [-129]),
        ("uint8", np.array([-1])),
        ("int64", np.array([2**63], np.uint64)),
        ("float16", [2049]),
        ("float16", [0.1]),
        ("float16", np.zeros(1, np.float32)),
        ("float32", np.zeros(1, np.float64)),
        ("int64", [1.0]),
        ("bool", [1.0]),
        ("bool", [-1]),
    ):
        with pytest.raises(ColumnError, match="'x'"):
            one_column(dtype, values)


def test_half_floats():
    bits = np.arange(0, 2**16, 7, dtype=np.uint16)
    assert one_column("float16", bits.view(np.float16)).tobytes() == bits.tobytes()
    assert one_column("float16", torch.from_numpy(bits.view(np.float16))).tobytes() == bits.tobytes()
    for values in (
        bits,
        bits.view(np.int16),
        bits.view(ml_dtypes.bfloat16),
        torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16),
        pa.array(bits),
    ):
        assert one_column("bfloat16", values).tobytes() == bits.tobytes()
    pair = torch.tensor([[1.0, 2.0], [0.5, -1.0]], dtype=torch.bfloat16)
    for tensor in (pair, pair.T.contiguous().T):
        got = one_column("bfloat16", tensor, (2,))
        assert got.view(ml_dtypes.bfloat16).astype(float).tolist() == pair.tolist()
    assert one_column("bfloat16", [1.5, 2, float("inf")]).view(ml_dtypes.bfloat16).tolist() == [
        1.5,
        2,
        np.inf,
    ]
    assert np.isnan(one_column("bfloat16", [float("nan")]).view(ml_dtypes.bfloat16).astype(float)).all()
    for values in ([0.1], [1e300], np.zeros(1, np.float32), torch.zeros(1), ["a"]):
        with pytest.raises(ColumnError, match="'x'"):
            one_column("bfloat16", values)


def test_discrete_bounds_at_the_edges():
    for dtype, start, count in (
        (np.int8, -128, 127),
        (np.int8, -3, 6),
        (np.uint8, 250, 6),
        (np.int64, -(2**63), 3),
        (np.int32, 5, 1),
    ):
        schema = Schema.from_spaces(BOX, spaces.Discrete(count, start=start, dtype=dtype))
        info = np.iinfo(dtype)
        for value in {start - 1, start, start + count - 1, start + count, int(info.min), int(info.max)}:
            if not info.min <= value <= info.max:
                continue
            batch = {**flat_batch(2), "action": np.array([start, value], dtype)}
            if start <= value < start + count:
                assert outcome(schema, encode_batch(schema, batch), "action").tolist() == [start, value]
            else:
                with pytest.raises(ColumnError, match=f"value {value} in row 1, expected {start} to"):
                    encode_batch(schema, batch)


NULLABLE = Schema.from_spaces(
    BOX,
    DISCRETE,
    extras={
        "legal": Extra("bool", (2,), "observation", nullable=True),
        "state": Extra("float32", (2,), "observation"),
    },
    info={"score": "float64", "pixels": ("uint8", (2,))},
)


def nullable_batch():
    return {**flat_batch(3), "state": np.ones((3, 2), np.float32), "next_state": np.ones((3, 2), np.float32)}


def test_nullable_columns_may_be_absent():
    rows = encode_batch(NULLABLE, nullable_batch())
    check_layout(NULLABLE, rows)
    for name in ("score", "score.valid", "pixels", "pixels.valid"):
        assert not outcome(NULLABLE, rows, name).any()
    assert [column.name for column in NULLABLE.observation_columns] == [
        *("observation", "legal", "legal.valid", "state")
    ]
    assert not rows.observation[1].any()
    with pytest.raises(ColumnError, match="'next_state' is missing"):
        encode_batch(NULLABLE, {**flat_batch(3), "state": np.ones((3, 2), np.float32)})


@pytest.mark.parametrize(
    "given",
    [
        {"score": [1.5, None, 2.5]},
        {"score": pa.array([1.5, None, 2.5])},
        {"score": pa.chunked_array([[1.5], [None, 2.5]])},
        {"score": np.array([1.5, None, 2.5], object)},
        {"score": np.ma.array([1.5, 9.0, 2.5], mask=[0, 1, 0])},
        {"score": np.array([1.5, np.nan, 2.5]), "score.valid": [True, False, True]},
        {
            "score": torch.tensor([1.5, 9, 2.5], dtype=torch.float64),
            "score.valid": torch.tensor([True, False, True]),
        },
        {"score": pa.array([1.5, 9.0, 2.5]), "score.valid": np.array([1, 0, 1], np.uint8)},
        {"score": pa.array([1.5, None, 2.5]), "score.valid": pa.array([True, True, True])},
    ],
    ids=lambda given: type(given["score"]).__name__ + " with mask" * ("score.valid" in given),
)
def test_nulls_in_nullable_columns(given):
    rows = encode_batch(NULLABLE, {**nullable_batch(), **given})
    check_layout(NULLABLE, rows)
    assert outcome(NULLABLE, rows, "score").tolist() == [1.5, 0, 2.5]
    assert outcome(NULLABLE, rows, "score.valid").tolist() == [1, 0, 1]
    original = given["score"]
    if isinstance(original, np.ndarray) and original.dtype == float and not np.ma.isMaskedArray(original):
        assert np.isnan(original[1])  # the caller's array is left alone


def test_nullable_tensors_and_owners():
    pixels = [[1, 2], None, np.array([3, 4], np.uint8)]
    legal = pa.array([[True, False], None, None], pa.list_(pa.bool_(), 2))
    batch = {**nullable_batch(), "pixels": pixels, "legal": legal, "next_legal": [None, [True, True], None]}
    rows = encode_batch(NULLABLE, batch)
    check_layout(NULLABLE, rows)
    assert outcome(NULLABLE, rows, "pixels").tolist() == [[1, 2], [0, 0], [3, 4]]
    assert outcome(NULLABLE, rows, "pixels.valid").tolist() == [1, 0, 1]
    assert [array.tolist() for array in rows.observation[1:3]] == [[[1, 0], [0, 0], [0, 0]], [1, 0, 0]]
    assert [array.tolist() for array in rows.next_observation[1:3]] == [[[0, 0], [1, 1], [0, 0]], [0, 1, 0]]
    tensors = column_array(
        Column("x", "uint8", (2,), "transition"), np.ones((3, 2), np.uint8), valid=np.array([0, 1, 1])
    )
    nothing = {"pixels": pa.nulls(3), "score": [None, None, None]}
    for given, valid in (({"pixels": tensors}, [0, 1, 1]), (nothing, [0, 0, 0])):
        rows = encode_batch(NULLABLE, {**nullable_batch(), **given})
        assert outcome(NULLABLE, rows, "pixels.valid").tolist() == valid
        assert outcome(NULLABLE, rows, "pixels").tolist() == [[one, one] for one in valid]


def test_errors_of_nullable_columns():
    for given, message in [
        ({"score.valid": [True] * 3}, "'score.valid' is given without 'score'"),
        ({"score": [1.0] * 3, "score.valid": [True, None, True]}, "'score.valid' has 1 nulls"),
        ({"score": [1.0] * 3, "score.valid": [True]}, "'score.valid' has 1 rows, expected 3"),
        ({"score": [1.0] * 2}, "'score' has 2 rows, expected 3"),
        ({"score": np.zeros(3, np.int64)}, "'score' has dtype int64"),
        (
            {"pixels": np.ma.array(np.zeros((3, 2), np.uint8), mask=[[1, 0], [0, 0], [0, 0]])},
            "masked in part",
        ),
        ({"state": [None, [1.0, 1.0], [1.0, 1.0]]}, "'state' has 1 nulls"),
        ({"state.valid": [True] * 3}, "'state.valid' is unknown"),
    ]:
        with pytest.raises(ColumnError, match=message):
            encode_batch(NULLABLE, {**nullable_batch(), **given})


def test_rows_one_by_one():
    batch, nested = flat_batch(), nested_batch()
    whole = encode_batch(FLAT, batch), encode_batch(NESTED, nested)
    for index in range(4):
        for schema, source, rows in ((FLAT, batch, whole[0]), (NESTED, nested, whole[1])):
            for pick in (operator.itemgetter(index), lambda array, at=index: array[at].tolist()):
                one = encode_row(schema, {name: _map(pick, value) for name, value in source.items()}, lane=2)
                check_layout(schema, one)
                assert one.lane.tolist() == [2]
                for name in ("observation", "next_observation", "outcome"):
                    for first, second in zip(getattr(one, name), getattr(rows, name), strict=True):
                        assert first.tobytes() == second[index : index + 1].tobytes()
    row = {name: value[0] for name, value in nullable_batch().items()}
    rows = encode_row(NULLABLE, {**row, "score": None, "pixels": torch.tensor([1, 2]), "episode_id": 5})
    assert outcome(NULLABLE, rows, "score.valid").tolist() == [0]
    assert outcome(NULLABLE, rows, "pixels").tolist() == [[1, 2]]
    assert rows.episode_id.tolist() == [5]
    for change, message in [
        ({"reward": None}, "'reward' has 1 nulls"),
        ({"reward": [1.0]}, r"'reward' has shape \(1, 1\)"),
        ({"observation": np.zeros((1, 3), np.float32)}, r"'observation' has shape \(1, 1, 3\)"),
        ({"observation": np.zeros(3)}, "'observation' has dtype float64"),
        ({"action": 4}, "'action' has the value 4"),
        ({"done": True}, "'done' is unknown"),
        ({"terminated": 2}, "'terminated' has the value 2"),
    ]:
        with pytest.raises(ColumnError, match=message):
            encode_row(NULLABLE, {**row, **change})
