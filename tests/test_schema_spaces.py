"""Spaces -> JSON -> spaces, trees, and every space that is refused."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict

import gymnasium
import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arrowrb.errors import ColumnError, SchemaError
from arrowrb.schema import Schema, Tree
from arrowrb.schema.spaces import space_from_json, space_leaves, space_to_json
from arrowrb.schema.tree import column_name, place_name

SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
DISCRETE = spaces.Discrete(2)
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, max_side=3)


@st.composite
def boxes(draw):
    dtype = np.dtype(draw(st.sampled_from([*INTEGERS, "float16", "float32", "float64", "bool"])))
    shape = draw(SHAPES)
    uniform = draw(st.booleans())

    def values():
        if dtype.kind == "f":
            elements = st.floats(width=dtype.itemsize * 8, allow_nan=False)
        elif dtype.kind == "b":
            elements = st.booleans()
        else:
            info = np.iinfo(dtype)
            elements = st.integers(int(info.min), int(info.max))
        if uniform:
            return np.full(shape, draw(elements), dtype)
        return draw(hnp.arrays(dtype, shape, elements=elements))

    one, two = values(), values()
    return spaces.Box(np.asarray(np.minimum(one, two)), np.asarray(np.maximum(one, two)), shape, dtype.type)


@st.composite
def discretes(draw):
    dtype = draw(st.sampled_from(INTEGERS[:7]))
    info = np.iinfo(dtype)
    start = draw(st.integers(int(info.min), int(info.max) - 1))
    count = draw(st.integers(1, min(int(info.max) - start, int(info.max))))
    return spaces.Discrete(count, start=start, dtype=np.dtype(dtype).type)


@st.composite
def multi_discretes(draw):
    shape = draw(hnp.array_shapes(max_dims=2, max_side=3))
    nvec = draw(hnp.arrays(np.int32, shape, elements=st.integers(1, 9)))
    start = draw(hnp.arrays(np.int32, shape, elements=st.integers(-9, 9)))
    return spaces.MultiDiscrete(nvec, dtype=np.int32, start=start)


MULTI_BINARIES = st.one_of(st.integers(1, 5), st.tuples(st.integers(1, 3), st.integers(1, 3))).map(spaces.MultiBinary)
KEYS = st.text(st.sampled_from("ab.\\0 é"), min_size=1, max_size=3)
LEAVES = st.one_of(boxes(), discretes(), multi_discretes(), MULTI_BINARIES)
SPACES = st.recursive(
    LEAVES,
    lambda parts: st.one_of(
        st.lists(st.tuples(KEYS, parts), min_size=1, max_size=3, unique_by=lambda pair: pair[0]).map(
            lambda pairs: spaces.Dict(OrderedDict(pairs))
        ),
        st.lists(parts, min_size=1, max_size=3).map(spaces.Tuple),
    ),
    max_leaves=6,
)


def same_space(one, two):
    assert type(one) is type(two)
    if isinstance(one, spaces.Dict):
        assert list(one.spaces) == list(two.spaces)
        for key in one.spaces:
            same_space(one[key], two[key])
    elif isinstance(one, spaces.Tuple):
        for first, second in zip(one.spaces, two.spaces, strict=True):
            same_space(first, second)
    else:
        assert one == two
        assert one.dtype == two.dtype
        assert one.shape == two.shape
        if isinstance(one, spaces.Box):
            for name in ("low", "high", "bounded_below", "bounded_above"):
                assert getattr(one, name).tobytes() == getattr(two, name).tobytes(), name


def leaves_of(space, value):
    """An independent flattening, in the space's own order."""
    if isinstance(space, spaces.Dict):
        return [leaf for key in space.spaces for leaf in leaves_of(space[key], value[key])]
    if isinstance(space, spaces.Tuple):
        return [leaf for part, one in zip(space.spaces, value, strict=True) for leaf in leaves_of(part, one)]
    return [value]


@SETTINGS
@given(SPACES, SPACES, st.sampled_from(["keep", "float32"]))
def test_schema_round_trip(observation_space, action_space, float64):
    schema = Schema.from_spaces(observation_space, action_space, float64=float64)
    text = json.dumps(schema.to_json(), allow_nan=False)
    again = Schema.from_json(json.loads(text))
    assert again == schema
    assert hash(again) == hash(schema)
    assert again.to_json() == schema.to_json()
    same_space(again.observation_space, observation_space)
    same_space(again.action_space, action_space)
    assert Schema.from_spaces(again.observation_space, again.action_space, float64=float64) == schema
    names = [column.name for column in schema.columns]
    assert len(set(names)) == len(names)
    assert schema.arrow_schema.names == names
    assert str(schema).count("\n") == len(names) - 7


@SETTINGS
@given(SPACES)
def test_tree_flattens_and_builds(space):
    tree = Tree(tuple(leaf.path for leaf in space_leaves(space_to_json(space, "observation"), "observation")))
    value = _zeros(space)
    leaves = tree.leaves(value)
    expected = leaves_of(space, value)
    assert len(leaves) == len(expected) == len(tree.paths)
    assert all(one is two for one, two in zip(leaves, expected, strict=True))
    built = tree.build(leaves)
    assert [id(leaf) for leaf in leaves_of(space, built)] == [id(leaf) for leaf in leaves]
    assert tree == Tree(tree.paths, "another name")


def _zeros(space):
    if isinstance(space, spaces.Dict):
        return {key: _zeros(part) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(_zeros(part) for part in space.spaces)
    return np.zeros(space.shape, space.dtype)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-np.inf, np.inf, (3,), np.float32),
        spaces.Box(0, np.inf, (2, 2), np.float64),
        spaces.Box(-np.inf, np.inf, (3,), np.int32),
        spaces.Box(-np.inf, 5, (2,), np.int64),
        spaces.Box(np.array([-np.inf, 0]), np.array([0, np.inf]), dtype=np.int16),
        spaces.Box(np.array([-0.0, 0.0]), np.array([1.0, 1.0]), dtype=np.float64),
        spaces.Box(0, 255, (84, 84, 4), np.uint8),
        spaces.Box(0.1, 0.7, (), np.float32),
        spaces.Box(0, 1, (2,), np.bool_),
        spaces.Discrete(3, start=-1),
        spaces.MultiDiscrete([[1, 2], [3, 4]], start=[[0, 1], [2, -3]]),
        spaces.MultiDiscrete([2, 2], dtype=np.uint8),
        spaces.MultiBinary([2, 3]),
        spaces.MultiBinary(4),
        spaces.MultiBinary((4,)),
    ],
)
def test_bounds_are_kept_exactly(space):
    spec = json.loads(json.dumps(space_to_json(space, "action"), allow_nan=False))
    same_space(space_from_json(spec, "action"), space)


def test_uniform_bounds_are_one_value():
    spec = space_to_json(spaces.Box(-np.inf, 255, (210, 160, 3), np.float32), "observation")
    assert spec["low"] == "-inf"
    assert spec["high"] == 255.0
    spec = space_to_json(spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 2.0]), dtype=np.float64), "action")
    assert set(spec["low"]) == {"base64"}


def test_names_of_columns_and_places():
    assert column_name("observation", ()) == "observation"
    assert column_name("observation", ("camera", 0)) == "observation.camera.0"
    assert column_name("observation", ("a.b\\c",)) == "observation.a\\.b\\\\c"
    assert place_name("observation", ("camera", 0)) == 'observation["camera"][0]'


def test_dict_keeps_its_own_order():
    space = spaces.Dict(OrderedDict([("z", DISCRETE), ("a", DISCRETE)]))
    schema = Schema.from_spaces(space, DISCRETE)
    assert [column.name for column in schema.observation_columns] == ["observation.z", "observation.a"]


def nested(space):
    return spaces.Dict({"camera": spaces.Tuple([space, DISCRETE])})


class ObjectBox(spaces.Box):
    def __init__(self, dtype, shape=(2,)):
        super().__init__(0, 1, shape, np.float32)
        self.dtype = np.dtype(dtype)


REFUSED = {
    "Text": spaces.Text(5),
    "Sequence": spaces.Sequence(DISCRETE),
    "Graph": spaces.Graph(DISCRETE, None),
    "OneOf": spaces.OneOf([DISCRETE, DISCRETE]),
    "object": ObjectBox(object),
    "complex64": ObjectBox(np.complex64),
    "longdouble": ObjectBox(np.longdouble),
    "datetime": ObjectBox("datetime64[s]"),
    "big endian": ObjectBox(">f4"),
    "zero size": spaces.Box(0, 1, (3, 0), np.float32),
    "empty Dict": spaces.Dict({}),
    "empty Tuple": spaces.Tuple([]),
    "key of no text": spaces.Dict({1: DISCRETE}),
    "empty key": spaces.Dict({"": DISCRETE}),
    "key with a line end": spaces.Dict({"a\n": DISCRETE}),
    "key without UTF-8": spaces.Dict({"\ud800": DISCRETE}),
    "no space": 5,
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_spaces_name_the_place(name):
    space = REFUSED[name]
    for root in ("observation", "action"):
        with pytest.raises(SchemaError, match=f"^{root}"):
            Schema.from_spaces(*((space, DISCRETE) if root == "observation" else (DISCRETE, space)))
    if name == "no space":
        return
    with pytest.raises(SchemaError) as error:
        Schema.from_spaces(nested(space), DISCRETE)
    assert 'observation["camera"][0]' in str(error.value)


def test_too_deep_or_too_large():
    space = DISCRETE
    for _ in range(40):
        space = spaces.Tuple([space])
    with pytest.raises(SchemaError, match="deep"):
        Schema.from_spaces(space, DISCRETE)
    huge = spaces.Box(0, 1, (2,))
    huge._shape = (2**30, 2)
    with pytest.raises(SchemaError, match="bytes a row"):
        Schema.from_spaces(huge, DISCRETE)
    with pytest.raises(SchemaError, match=r"parts|columns"):
        Schema.from_spaces(spaces.Tuple([DISCRETE] * 5000), DISCRETE)


def test_tree_says_what_is_wrong():
    tree = Tree((("camera", 0), ("camera", 1), ("speed",)), "observation")
    good = {"camera": (1, 2), "speed": 3}
    assert tree.leaves(good) == [1, 2, 3]
    assert tree.build([1, 2, 3]) == good
    assert tree.leaves({"speed": 3, "camera": [1, 2]}) == [1, 2, 3]
    for value, message in [
        ({"camera": (1, 2)}, r'observation\["speed"\].*missing'),
        ({**good, "lidar": 1}, "unknown key 'lidar'"),
        ({**good, "camera": (1,)}, r'observation\["camera"\].*1 values, expected 2'),
        ({**good, "camera": 5}, r'observation\["camera"\].*tuple'),
        ({**good, "speed": {"x": 1}}, r'observation\["speed"\].*mapping'),
        (np.zeros(3), "expected a dict"),
    ]:
        with pytest.raises(ColumnError, match=message):
            tree.leaves(value)
    with pytest.raises(ColumnError, match="next_observation"):
        tree.leaves({}, "next_observation")
    with pytest.raises(ColumnError, match="2 leaves, expected 3"):
        tree.build([1, 2])
    bare = Tree(((),), "action")
    assert bare.leaves(5) == [5]
    assert bare.build([5]) == 5
    with pytest.raises(ColumnError, match=r"action.*mapping"):
        bare.leaves({"a": 1})


@pytest.mark.parametrize("paths", [(), ((), ("a",)), (("a",), (0,)), ((1,), (0,)), (("a", 0), ("b",), ("a", 1))])
def test_tree_refuses_paths_that_are_no_tree(paths):
    with pytest.raises(SchemaError):
        Tree(paths)


GOOD_BOX = {"type": "Box", "dtype": "float32", "shape": [2], "low": 0.0, "high": 1.0}
HOSTILE = [
    None,
    5,
    [],
    {},
    {"type": "Pickle"},
    {"type": ["Box"]},
    {**GOOD_BOX, "junk": 1},
    {**GOOD_BOX, "dtype": "O"},
    {**GOOD_BOX, "dtype": "f4,f4"},
    {**GOOD_BOX, "dtype": "bfloat16"},
    {**GOOD_BOX, "dtype": 4},
    {**GOOD_BOX, "shape": None},
    {**GOOD_BOX, "shape": [0]},
    {**GOOD_BOX, "shape": [-1]},
    {**GOOD_BOX, "shape": [1.5]},
    {**GOOD_BOX, "shape": [True]},
    {**GOOD_BOX, "shape": [2**40]},
    {**GOOD_BOX, "shape": [1] * 33},
    {**GOOD_BOX, "low": None},
    {**GOOD_BOX, "low": "pi"},
    {**GOOD_BOX, "low": 1e39},
    {**GOOD_BOX, "low": 10**400},
    {**GOOD_BOX, "low": True},
    {**GOOD_BOX, "low": float("nan")},
    {**GOOD_BOX, "low": {"base64": "AAAA"}},
    {**GOOD_BOX, "low": {"base64": "!!"}},
    {**GOOD_BOX, "low": {"base64": 5}},
    {**GOOD_BOX, "bounded_below": 1},
    {**GOOD_BOX, "dtype": "uint8", "high": 256},
    {**GOOD_BOX, "dtype": "uint8", "low": 0, "high": 1.0},
    {"type": "Discrete", "dtype": "int64", "n": 0, "start": 0},
    {"type": "Discrete", "dtype": "int64", "n": 2, "start": 2**63 - 1},
    {"type": "Discrete", "dtype": "int8", "n": 300, "start": 0},
    {"type": "Discrete", "dtype": "float32", "n": 2, "start": 0},
    {"type": "Discrete", "dtype": "int64", "n": True, "start": 0},
    {"type": "Discrete", "dtype": "int64", "n": "2", "start": 0},
    {"type": "MultiDiscrete", "dtype": "int64", "shape": [2], "nvec": 0, "start": 0},
    {"type": "MultiDiscrete", "dtype": "int64", "shape": [2], "nvec": {"base64": "AAAAAA=="}, "start": 0},
    {"type": "MultiDiscrete", "dtype": "float64", "shape": [2], "nvec": 1, "start": 0},
    {"type": "MultiBinary", "shape": [2], "n": 3},
    {"type": "MultiBinary", "shape": [2, 2], "n": [4]},
    {"type": "MultiBinary", "shape": [], "n": None},
    {"type": "Dict", "spaces": []},
    {"type": "Dict", "spaces": {"a": GOOD_BOX}},
    {"type": "Dict", "spaces": [["a"]]},
    {"type": "Dict", "spaces": [[1, GOOD_BOX]]},
    {"type": "Dict", "spaces": [["a", GOOD_BOX], ["a", GOOD_BOX]]},
    {"type": "Tuple", "spaces": None},
    {"type": "Tuple", "spaces": [{"type": "Dict"}]},
]


@pytest.mark.parametrize("spec", HOSTILE, ids=str)
def test_hostile_specs_are_refused(spec):
    with pytest.raises(SchemaError, match="action"):
        space_leaves(spec, "action")
    with pytest.raises(SchemaError):
        space_from_json(spec, "action")


def test_deep_specs_are_refused_without_recursion():
    spec = GOOD_BOX
    for _ in range(5000):
        spec = {"type": "Tuple", "spaces": [spec]}
    with pytest.raises(SchemaError, match="deep"):
        space_leaves(spec, "action")


def test_spaces_that_gymnasium_refuses():
    spec = {**copy.deepcopy(GOOD_BOX), "low": 2.0}
    assert space_leaves(spec, "action")
    with pytest.raises(SchemaError, match="Gymnasium refuses"):
        space_from_json(spec, "action")


def test_every_space_of_gymnasium_is_known():
    known = {"Box", "Discrete", "MultiDiscrete", "MultiBinary", "Dict", "Tuple"}
    refused = {"Text", "Sequence", "Graph", "OneOf"}
    named = {
        name
        for name in gymnasium.spaces.__all__
        if isinstance(getattr(gymnasium.spaces, name), type)
        and issubclass(getattr(gymnasium.spaces, name), spaces.Space)
    }
    assert named - {"Space"} == known | refused
