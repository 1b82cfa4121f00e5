"""Schema: order and types of columns, extras, names, casts, JSON, equality."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import gymnasium
import numpy as np
import pyarrow as pa
import pytest
from gymnasium import spaces

from arrowrb.errors import FormatError, SchemaError
from arrowrb.schema import SYSTEM_COLUMNS, Column, Extra, Schema

BOX = spaces.Box(-1, 1, (3,), np.float32)
DISCRETE = spaces.Discrete(4)
SYSTEM = [
    "ordinal",
    "time",
    "episode_id",
    "lane",
    "step",
    "policy_version",
    "kind",
    "terminated",
    "truncated",
]


def names(columns):
    return [column.name for column in columns]


def test_importing_is_light():
    code = (
        "import sys, arrowrb.schema\n"
        "print([one for one in ('gymnasium', 'torch', 'duckdb', 'numba') if one in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def test_from_json_is_light():
    text = json.dumps(Schema.from_spaces(spaces.Dict({"a": BOX, "b": DISCRETE}), DISCRETE).to_json())
    code = (
        "import sys, json; from arrowrb.schema import Schema\n"
        "schema = Schema.from_json(json.loads(sys.stdin.read()))\n"
        "schema.arrow_schema, schema.plan, str(schema)\n"
        "print('gymnasium' in sys.modules, end=' '); schema.action_space; print('gymnasium' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=text, capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.split() == ["False", "True"]


def test_columns_in_file_order():
    schema = Schema.from_spaces(
        spaces.Dict({"camera": spaces.Box(0, 255, (8, 8), np.uint8), "speed": BOX}),
        spaces.Tuple([DISCRETE, BOX]),
        extras={"log_prob": "float32", "legal": Extra("bool", (4,), "observation", nullable=True)},
        info={"success": "bool"},
        reward=("float32", (2,)),
    )
    assert names(schema.columns) == [
        *SYSTEM,
        *("observation.camera", "observation.speed", "legal", "legal.valid"),
        *("action.0", "action.1", "reward", "log_prob", "success", "success.valid"),
    ]
    assert names(SYSTEM_COLUMNS) == SYSTEM
    assert [column.dtype for column in SYSTEM_COLUMNS] == [
        *("int64", "int64", "int64", "int32", "int32", "int32", "uint8", "bool", "bool")
    ]
    assert {column.owner for column in SYSTEM_COLUMNS[:7]} == {"row"}
    assert names(schema.observation_columns) == [*("observation.camera", "observation.speed", "legal", "legal.valid")]
    assert names(schema.transition_columns) == [
        *("terminated", "truncated", "action.0", "action.1", "reward", "log_prob", "success", "success.valid")
    ]
    assert schema.masks == {"legal": "legal.valid", "success": "success.valid"}
    assert set(schema.extras) == {"log_prob", "legal"}
    assert schema.info == {"success": Extra("bool", nullable=True)}
    assert set(schema.all_extras) == {"log_prob", "legal", "success"}
    assert schema.discrete_bounds == {"action.0": (0, 4)}
    assert schema.column("reward") == Column("reward", "float32", (2,), "transition", "float64")
    with pytest.raises(SchemaError, match="no column 'nothing'"):
        schema.column("nothing")


@pytest.mark.parametrize(
    ("dtype", "shape", "encoding", "arrow_type", "batch_type"),
    [
        ("bool", (), "primitive", pa.uint8(), pa.bool_()),
        ("bool", (3,), "tensor", pa.fixed_shape_tensor(pa.uint8(), (3,)), None),
        ("bool", (2000,), "binary", pa.binary(2000), None),
        ("uint8", (), "primitive", pa.uint8(), None),
        ("uint8", (2,), "binary", pa.binary(2), None),
        ("int16", (2, 3), "tensor", pa.fixed_shape_tensor(pa.int16(), (2, 3)), None),
        ("float16", (), "primitive", pa.float16(), None),
        ("float16", (2,), "tensor", pa.fixed_shape_tensor(pa.float16(), (2,)), None),
        ("bfloat16", (), "primitive", pa.uint16(), None),
        ("bfloat16", (2,), "tensor", pa.fixed_shape_tensor(pa.uint16(), (2,)), None),
        ("float32", (1024,), "tensor", pa.fixed_shape_tensor(pa.float32(), (1024,)), None),
        ("float32", (1025,), "binary", pa.binary(4100), None),
        ("float64", (1,), "tensor", pa.fixed_shape_tensor(pa.float64(), (1,)), None),
    ],
)
def test_arrow_types(dtype, shape, encoding, arrow_type, batch_type):
    column = Column("x", dtype, shape, "transition")
    assert column.encoding == encoding
    assert column.arrow_type == arrow_type
    assert column.batch_arrow_type == (batch_type or arrow_type)
    assert column.item_bytes == int(np.prod(shape)) * column.storage.itemsize
    field = column.field()
    assert not field.nullable
    assert field.metadata == {b"dtype": dtype.encode(), b"shape": json.dumps(list(shape)).encode()}
    batch = column.field(batch=True, name="next_x", nullable=True)
    assert (batch.name, batch.type, batch.nullable) == ("next_x", column.batch_arrow_type, True)


def test_from_env():
    env = gymnasium.make("CartPole-v1")
    schema = Schema.from_env(env, info={"success": "bool"}, float64="float32")
    assert schema.env_id == "CartPole-v1"
    assert {"python", "numpy", "gymnasium"} <= set(schema.versions)
    assert schema.column("reward") == Column("reward", "float32", (), "transition", "float64")
    assert schema.observation_space == env.observation_space
    assert "CartPole-v1" in str(schema)
    vector = gymnasium.make_vec("CartPole-v1", num_envs=2, vectorization_mode="sync")
    assert Schema.from_env(vector) == Schema.from_env(env)
    assert Schema.from_env(vector).env_id == "CartPole-v1"
    vector.spec = None
    assert Schema.from_env(vector).env_id is None
    vector.close()
    env.close()
    with pytest.raises(SchemaError, match="expected a gymnasium Env"):
        Schema.from_env("CartPole-v1")


def test_a_vector_environment_counts_before_env():
    class Both(gymnasium.Env):
        observation_space = spaces.Box(-1, 1, (2, 3), np.float32)
        action_space = spaces.MultiDiscrete([4, 4])
        single_observation_space = BOX
        single_action_space = DISCRETE

    assert Schema.from_env(Both()) == Schema.from_spaces(BOX, DISCRETE)


def test_casts_are_recorded():
    observation = spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float64), "b": BOX})
    options = {"extras": {"x": "float64", "y": "float16"}, "info": {"z": "float64"}}
    kept = Schema.from_spaces(observation, DISCRETE, **options)
    cast = Schema.from_spaces(observation, DISCRETE, float64="float32", **options)
    assert all(column.cast_from is None for column in kept.columns)
    assert [column.name for column in cast.columns if column.cast_from == "float64"] == [
        *("observation.a", "reward", "x", "z")
    ]
    assert all(column.dtype == "float32" for column in cast.columns if column.cast_from)
    assert cast != kept
    assert cast.observation_space == observation
    assert Schema.from_json(cast.to_json()) == cast
    assert any("cast from float64" in line for line in cast.differences(kept))
    assert "float32[2] (cast from float64)" in str(cast)


def test_extras():
    assert Extra("float32") == Extra("float32", (), "transition", False)
    assert Extra(np.float32, [2, np.int64(3)]) == Extra("float32", (2, 3))
    assert eval(repr(Extra("bool", (2,), "observation", True))) == Extra("bool", (2,), "observation", True)
    for bad in (
        {"dtype": "complex64"},
        {"dtype": "O"},
        {"dtype": None},
        {"dtype": "f4,f4"},
        {"dtype": "float32", "shape": (0,)},
        {"dtype": "float32", "shape": 3},
        {"dtype": "float32", "shape": (-1,)},
        {"dtype": "float32", "owner": "row"},
        {"dtype": "float32", "nullable": 1},
    ):
        with pytest.raises(SchemaError):
            Extra(**bad)
    schema = Schema.from_spaces(
        BOX,
        DISCRETE,
        extras={"a": "bfloat16", "b": ("float16", (2,)), "c": Extra("uint8", (), "transition", True)},
        info={
            "d": Extra("int8", (), "transition"),
            "e": Extra("int8", (), "observation"),
            "f.g": ("int8", (2,)),
        },
    )
    assert schema.masks == {"c": "c.valid", "d": "d.valid", "f.g": "f.g.valid"}
    assert Schema.from_json(schema.to_json()).info == schema.info
    for extras in ({"a": ("float32",)}, {"a": ("float32", (), 1)}, {"a": 5}, ["a"], {"a": ("x", ())}):
        with pytest.raises(SchemaError):
            Schema.from_spaces(BOX, DISCRETE, extras=extras)


@pytest.mark.parametrize(
    "name",
    [
        *SYSTEM,
        *("row_id", "observation", "action", "reward", "next_observation", "Reward", "ROW_ID"),
        *("num_steps", "discount", "weight", "mask", "is_first", "is_last", "is_terminal"),
        *("observation.x", "action.0", "next_observation.x", "a.valid", "", "a\nb", "\ud800", 5, "x" * 2000),
    ],
)
def test_reserved_names(name):
    for key in ("extras", "info"):
        with pytest.raises(SchemaError):
            Schema.from_spaces(BOX, DISCRETE, **{key: {name: "float32"}})


def test_clashing_names():
    owned = Extra("float32", owner="observation")
    for extras, info in (
        ({"x": "float32"}, {"x": "float32"}),
        ({"x": "float32", "X": "float32"}, None),
        ({"x": owned, "next_x": "float32"}, None),
        ({"next_x": "float32", "x": owned}, None),
        ({"x": owned}, {"NEXT_X": "float32"}),
        ({"observation_": owned, "next_observation_": owned}, None),
    ):
        with pytest.raises(SchemaError, match=r"clash|both"):
            Schema.from_spaces(BOX, DISCRETE, extras=extras, info=info)
    assert Schema.from_spaces(BOX, DISCRETE, extras={"next_goal": "float32", "x": "float32", "next_x": "bool"})
    # A part of a space may be called what an extra may not.
    space = spaces.Dict({"x": BOX, "x.valid": BOX, "valid": BOX, "kind": BOX})
    schema = Schema.from_spaces(space, DISCRETE)
    assert schema.masks == {}
    assert "observation.x\\.valid" in names(schema.columns)


@pytest.mark.parametrize("reward", ["float32", ("float32",), ("bool", ()), ("bfloat16", ()), ("float32", (0,)), None])
def test_refused_rewards(reward):
    with pytest.raises(SchemaError, match="reward"):
        Schema.from_spaces(BOX, DISCRETE, reward=reward)


def test_refused_float64():
    with pytest.raises(SchemaError, match="float64 is 'float16'"):
        Schema.from_spaces(BOX, DISCRETE, float64="float16")


def test_equality_and_differences():
    one = Schema.from_spaces(BOX, DISCRETE)
    other = Schema.from_spaces(spaces.Box(-2, 2, (3,), np.float32), spaces.Discrete(4, start=1))
    assert one != other
    assert one != "schema"
    assert one == Schema.from_spaces(BOX, DISCRETE)
    assert one.differences(one) == []
    assert [line.split(":")[0] for line in one.differences(other)] == ["observation space", "action space"]
    more = Schema.from_spaces(BOX, DISCRETE, extras={"x": "bool"})
    assert one.differences(more) == ["x: absent, other bool"]
    ab, ba = (Schema.from_spaces(BOX, DISCRETE, extras=dict.fromkeys(keys, "bool")) for keys in ("ab", "ba"))
    assert ab != ba
    assert ab.differences(ba) == ["columns: the same in another order"]
    assert len({one, other, more, Schema.from_spaces(BOX, DISCRETE)}) == 3


def test_immutable_and_picklable():
    schema = Schema.from_spaces(BOX, DISCRETE, extras={"x": "bool"}, info={"y": "bool"})
    with pytest.raises(AttributeError):
        schema.columns = ()
    with pytest.raises(TypeError):
        schema.extras["y"] = Extra("bool")
    document = schema.to_json()
    document["observation_space"]["shape"].append(9)
    assert schema.to_json()["observation_space"]["shape"] == [3]
    document = schema.to_json()
    again = Schema.from_json(document)
    document["observation_space"]["shape"].append(9)
    assert again.observation_space == BOX
    copied = pickle.loads(pickle.dumps(schema))
    assert copied == schema
    assert (copied.info, copied.versions) == (schema.info, schema.versions)


def damaged():
    good = Schema.from_spaces(
        BOX, DISCRETE, extras={"x": Extra("float32", (2,), "observation", True)}, info={"y": "bool"}
    ).to_json()
    for key in good:
        for value in (None, 5, "x", [], {}, [5], {"a": 5}):
            # Absent and empty values that are fine.
            if (key, value) in [("env_id", None), ("env_id", "x"), ("versions", {}), ("version", 5)]:
                continue
            yield f"{key}={value}", {**good, key: value}
        if key != "env_id":
            yield f"without {key}", {name: value for name, value in good.items() if name != key}
    for path, value in [
        (("extras", 0, "name"), "reward"),
        (("extras", 0, "dtype"), "O"),
        (("extras", 0, "dtype"), ["float32"]),
        (("extras", 0, "shape"), [2**31]),
        (("extras", 0, "shape"), "22"),
        (("extras", 0, "owner"), ["observation"]),
        (("extras", 0, "nullable"), None),
        (("reward", "dtype"), "bool"),
        (("reward", "shape"), [0]),
        (("columns", 0, "name"), "x"),
        (("columns", 12, "shape"), [3]),
        (("columns", 12, "dtype"), "float64"),
        (("versions", "numpy"), 2),
        (("versions", "numpy"), "2" * 5000),
        (("env_id",), "x" * 5000),
        (("version",), True),
        (("version",), 0),
    ]:
        document = copy.deepcopy(good)
        place = document
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        yield f"{path}={str(value)[:20]}", document
    document = copy.deepcopy(good)
    document["extras"] *= 2
    yield "extra twice", document
    document = copy.deepcopy(good)
    document["extras"] = [{**document["extras"][0], "name": f"x{index}"} for index in range(5000)]
    yield "too many", document


DAMAGED = dict(damaged())


@pytest.mark.parametrize("name", DAMAGED)
def test_from_json_refuses_what_is_damaged(name):
    with pytest.raises(SchemaError):
        Schema.from_json(DAMAGED[name])


def test_from_json_refuses_other_things():
    for data in (None, [], "x", 5):
        with pytest.raises(SchemaError):
            Schema.from_json(data)
    document = Schema.from_spaces(BOX, DISCRETE).to_json()
    with pytest.raises(FormatError, match="Update arrowrb"):
        Schema.from_json({**document, "version": 2})
