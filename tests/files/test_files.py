"""Small files: what JSON can hold comes back equal, and whatever is wrong is one error of the kind that was given."""

import ast
import json
import math
import os
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file

from optimum_moreau.errors import CheckpointError, ConfigError, PlanError
from optimum_moreau.files import (
    Record,
    filled,
    parse_json,
    read_json,
    read_lines,
    read_shapes,
    read_tensors,
    read_text,
    read_yaml,
    reading,
    write_json,
    write_text,
    writing,
)

BOUNDED = settings(max_examples=100, deadline=None, derandomize=True, database=None)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
PLAIN = st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | TEXT
PLAIN |= st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))


@dataclass(frozen=True)
class Inner:
    share: float
    count: int = 0


@dataclass(frozen=True)
class Outer:
    name: str
    parts: tuple[Inner, ...] = ()
    layers: Mapping[int, Inner] = field(default_factory=dict)
    best: Inner | None = None
    flag: bool = False


@dataclass(frozen=True)
class Kept(Record):
    what: ClassVar[str] = "a record"
    remedy: ClassVar[str] = "; make it anew"

    count: int
    inner: Mapping[str, Any] = field(default_factory=dict)
    before: Mapping[str, Any] | None = None

    @classmethod
    def parts(cls):
        return {"inner": Inner, "before": cls}

    def problem(self):
        return "" if self.count else "it counts nothing"


def same(a, b):
    """Equal, and of the same types: 1 is not 1.0 or True."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


def read(path, data, reader=read_json):
    """What a reader makes of bytes; `None` where it refuses them, in one line with the file's name."""
    path.write_bytes(data)
    try:
        return reader(path, "a plan", PlanError)
    except PlanError as error:
        assert str(error).startswith(f"{path}: cannot be read as a plan: "), error
        assert len(str(error)) < len(str(path)) + 400
        return None


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("files") / "file"


# Records


def test_a_record_survives_its_file_and_a_dictionary(place):
    record = Kept(2, {"share": 0.5}, {"count": 1})
    record.save(place)
    assert Kept.load(place) == record == Kept.from_dict(record.to_dict())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "values: cannot be read as a record: [] is no dictionary"),
        ({"count": "2"}, "values: cannot be read as a record: count: input should be a valid integer, not '2'"),
        ({"count": 2, "cuont": 2}, "unknown field 'cuont'. Did you mean 'count'?"),
        ({"count": 2, "inner": {"share": "x"}}, "values: inner: cannot be read as the record of one: share: "),
        ({"count": 0}, "values: cannot be read as a record: it counts nothing; make it anew"),
        ({"count": 2, "before": {"count": 0}}, "values: before: cannot be read as a record: it counts nothing; make"),
    ],
    ids=str,
)
def test_what_is_no_record_is_refused_by_its_field_in_the_file_too(place, values, words):
    with pytest.raises(ConfigError) as error:
        Kept.from_dict(values)
    assert words in str(error.value)
    place.write_text(json.dumps(values))
    with pytest.raises(CheckpointError) as error:
        Kept.load(place)
    assert words.replace("values: ", f"{place}: ") in str(error.value)


# JSON


@BOUNDED
@given(values=VALUES)
def test_what_json_can_hold_comes_back_equal(place, values):
    write_json(place, values)
    assert same(read_json(place, "a plan"), values)


GOOD = json.dumps({"layers": {"0": {"kept": [0, 1, 2], "total": 4}}, "ratio": 0.2, "of": "a ü model", "no": None})


@BOUNDED
@given(data=st.data())
def test_damaged_json_reads_equal_or_is_refused(place, data):
    good = bytearray(GOOD.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(good)))
        if data.draw(st.booleans()):
            good[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        else:
            del good[at:]
    found = read(place, bytes(good))
    assert found is None or same(found, json.loads(good))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "EOF while parsing"),
        (b"[" * 100_000 + b"]" * 100_000, "recursion limit"),
        (b"[" * 65 + b"]" * 65, "nested more than 64 deep"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "nested more than 64 deep"),
        (b"[" + b"9" * 5000 + b"]", "number out of range"),
        (b'{"seed": ' + b"9" * 400 + b"}", "seed: the number is too large"),
        (b'{"a": {"b": [0, NaN]}}', "expected value"),
        (b"[-Infinity]", "not JSON"),
        (b'{"a": {"b": [0, 1e999]}}', r"a\.b\.1: inf is no finite number"),
        (rb'{"a": "\ud800"}', "not JSON"),
        (rb'{"\udfff": 1}', "not JSON"),
        (b'{"a": "\xff"}', "not JSON"),
        ('{"a": 1}'.encode("utf-16"), "not JSON"),
        (b'{"a": 1} {"b": 2}', "trailing"),
        (b"\0" * 100, "not JSON"),
    ],
    ids=lambda value: str(value[:20]),
)
def test_what_is_no_value_is_refused_with_its_field(tmp_path, data, words):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(PlanError, match=f"^{tmp_path}/x: cannot be read as a plan: .*{words}"):
        read_json(tmp_path / "x", "a plan", PlanError)


def test_of_a_key_that_stands_twice_the_last_counts_as_in_every_json_reader(place):
    assert read(place, b'{"a": 1, "a": 2}') == {"a": 2}


def test_half_a_character_in_a_string_of_python_is_refused():
    with pytest.raises(PlanError, match="here: cannot be read as a plan"):
        parse_json('"\ud800"', "here", "a plan", PlanError)


def test_long_names_make_neither_long_messages_nor_long_waits(place):
    long = "n" * 1_000_000
    start = time.perf_counter()
    assert (
        read(place, json.dumps({long: {long + "b": [0] * 200_000 + [1e999]}}).replace("Infinity", "1e999").encode())
        is None
    )
    assert read(place, json.dumps([{long: long}] * 3).encode()) is not None
    assert time.perf_counter() - start < 20


def test_size_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_JSON_BYTES", 2**20)
    (tmp_path / "x").write_bytes(b" " * (2**20) + b"1")
    with pytest.raises(PlanError, match="cannot be read as a plan: more than 1 MiB"):
        read_json(tmp_path / "x", "a plan", PlanError)


@pytest.mark.parametrize("reader", [read_json, read_yaml, read_text, read_tensors, read_shapes])
def test_a_path_without_a_readable_file_is_refused(tmp_path, reader):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    paths = {
        tmp_path / "gone": "no such file; give a plan",
        tmp_path: "is a folder; give a plan",
        tmp_path / "pipe": "is no regular file",
        tmp_path / "ring": "no such file",
        tmp_path / ("n" * 300): "cannot be read",
        "~nobody-of-this-name/x": "cannot be read",
        "zero\0byte": "no such file",
    }
    for path, words in paths.items():
        with pytest.raises(PlanError, match=words):
            reader(path, "a plan", PlanError)


# YAML


@BOUNDED
@given(values=VALUES)
def test_json_is_yaml(place, values):
    """Every JSON text is YAML, but that YAML 1.1 wants a point in a float's exponent form."""
    found = read(place, json.dumps(values).encode(), read_yaml)
    assert "e" in json.dumps(values) or found is None or same(found, values)


YAML = b"model: org/m\nprune: &p\n  pruning_ratio: 0.2\n  targets: [mlp, hidden]\nrecover:\n  epochs: 2\nagain: *p\n"


@BOUNDED
@given(data=st.data())
def test_damaged_yaml_reads_plain_values_or_is_refused(place, data):
    good = bytearray(YAML)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(good)))
        odd = st.sampled_from(
            [b"!!", b"&p ", b"*p", b"<<: ", b"? ", b"!!int ", b"!!float ''", b"- ", b"\t", b"%", b"{", b"|"]
        )
        good[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3) | odd)
    found = read(place, bytes(good), read_yaml)
    json.dumps(found, allow_nan=False)


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGED = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "more than 100,000 values"),
        (MERGED, "'<<' is not read here"),
        ("a: &a [*a]", "nested more than 64 deep"),
        ("&a {b: *a}", "nested more than 64 deep"),
        ("[" * 100_000, "no YAML"),
        ("- 1\n" * 200_000, "more than 100,000 values"),
        ("when: 2024-01-02", "when: .*is no plain value"),
        ("when: 2024-13-45", "no YAML"),
        ("a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("a: !!python/name:os.system", "could not determine a constructor"),
        ("a: !!int ''", "no YAML"),
        ("a: !!float ''", "no YAML"),
        ("a: !!bool x", "no YAML"),
        ("a: !!timestamp x", "no YAML"),
        ("a: !!binary aGVsbG8=", "is no plain value"),
        ("a: !!set {x, y}", "is no plain value"),
        ("a: .nan", "nan is no finite number"),
        ("a: -.inf", "-inf is no finite number"),
        ("a: 1" + ":1" * 100_000, "a number is too long"),
        (f"a: {'9' * 5000}", "a number is too long"),
        (f"0x{'f' * 300}: 1", "is no name"),
        (f"a: {'9' * 300}", "the number is too large"),
        ("1: a", "1 is no name"),
        ("on: a", "True is no name"),
        ("[a]: b", "unhashable"),
        ("? {a: b}\n: c", "unhashable"),
        ('a: "\\ud800"', "half a character|no YAML"),
        ("a: [b\nc: d", "expected"),
        ("--- a\n--- b", "another document"),
        ("%YAML 3.0\n--- a", "no YAML"),
        ("a: \x07", "no YAML"),
    ],
    ids=lambda value: value[:24],
)
def test_yaml_that_is_no_plain_value_is_refused(tmp_path, text, words):
    start = time.perf_counter()
    (tmp_path / "x").write_text(text)
    with pytest.raises(ConfigError, match=f"^{tmp_path}/x: cannot be read as a recipe: .*({words})") as error:
        read_yaml(tmp_path / "x", "a recipe", ConfigError)
    assert "\n" not in str(error.value) and time.perf_counter() - start < 30


def test_wrong_bytes_in_yaml_are_refused(place):
    assert read(place, b"a: \xff\xfe", read_yaml) is None


def test_aliases_are_read(place):
    assert read(place, YAML, read_yaml)["again"] == {"pruning_ratio": 0.2, "targets": ["mlp", "hidden"]}


# Dataclasses

FULL = {
    "name": "x",
    "parts": [{"share": 0.5, "count": 2}, {"share": 1}],
    "layers": {"3": {"share": 0.25}},
    "best": {"share": 1.5},
    "flag": True,
}


def test_a_dataclass_is_filled():
    expected = Outer("x", (Inner(0.5, 2), Inner(1.0)), {3: Inner(0.25)}, Inner(1.5), True)
    assert filled(Outer, FULL, "here", "a record") == expected
    assert filled(Outer, {"name": "x"}, "here", "a record") == Outer("x")
    with_keys = filled(Outer, {"name": "x", "layers": {3: {"share": 0.25}}}, "here", "a record")  # as Python holds them
    assert with_keys.layers == {3: Inner(0.25)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": 5}, "name: input should be a valid string, not 5"),
        ({"name": None}, "name: input should be a valid string, not None"),
        ({"flag": 1}, "flag: .*valid boolean, not 1"),
        ({"flag": "yes"}, "flag: .*valid boolean, not 'yes'"),
        ({"parts": {}}, "parts: "),
        ({"parts": [{"share": 1}, {"count": 1}]}, r"parts\.1\.share: field required$"),
        ({"parts": [{"share": True}]}, r"parts\.0\.share: .*valid number, not True"),
        ({"parts": [{"share": "1"}]}, r"parts\.0\.share: .*valid number, not '1'"),
        ({"parts": [{"share": 1, "count": 1.5}]}, r"parts\.0\.count: .*valid integer"),
        ({"parts": [{"share": 1, "count": 1.0}]}, r"parts\.0\.count: .*valid integer"),
        ({"parts": [{"share": 1, "counts": 1}]}, r"parts\.0\.counts: is no field of it$"),
        ({"parts": [{"share": math.nan}]}, r"parts\.0\.share: .*finite number, not nan"),
        ({"best": {"share": math.inf}}, r"best\.share: .*finite number, not inf"),
        ({"best": {"share": 1, "more": 2}}, r"best\.more: is no field of it$"),
        ({"best": []}, "best: "),
        ({"layers": {"x": {"share": 1}}}, r"layers\.x"),
        ({"layers": {"0": {"share": 1, "y": 1}}}, r"layers\.0\.y: is no field of it"),
        ({"nam": "x"}, r"unknown field 'nam'.* Did you mean 'name'"),
        ({5: "x"}, "unknown field 5"),
        ({"name": {1, 2}}, "holds what JSON has no value for"),
        ({"name": 10**5000}, "holds what JSON has no value for"),
        ({"parts": [10**300]}, r"parts\.0: "),
    ],
    ids=range(22),
)
def test_a_field_of_another_type_is_refused_by_name(changes, words):
    with pytest.raises(PlanError, match=f"^here: cannot be read as a record: {words}"):
        filled(Outer, {**FULL, **changes}, "here", "a record", PlanError)


def test_a_missing_field_is_refused_by_name():
    with pytest.raises(PlanError, match=r"^here: cannot be read as a record: name: field required$"):
        filled(Outer, {}, "here", "a record", PlanError)


@pytest.mark.parametrize("values", [None, 5, "name", [], [["name", "x"]]], ids=str)
def test_what_is_no_dictionary_fills_nothing(values):
    with pytest.raises(PlanError, match=r"here: cannot be read as a record: .* is no dictionary"):
        filled(Outer, values, "here", "a record", PlanError)


@BOUNDED
@given(data=st.data())
def test_any_values_fill_a_dataclass_or_are_refused(data):
    values = json.loads(json.dumps(FULL))
    at = data.draw(
        st.sampled_from([values, values["best"], values["parts"][0], values["layers"]["3"], values["layers"]])
    )
    key = data.draw(st.sampled_from([*at, "other"]))
    at[key] = data.draw(VALUES)
    try:
        found = filled(Outer, values, "here", "a record", PlanError)
    except PlanError as error:
        assert str(error).startswith("here: cannot be read as a record: ")
    else:
        assert isinstance(found.name, str) and isinstance(found.flag, bool)
        assert all(isinstance(part.share, float) and type(part.count) is int for part in found.parts)


# Who reads

CALLS = {"json.load", "json.loads", "yaml.load", "yaml.safe_load", "yaml.parse", "yaml.compose", "yaml.full_load"}
CALLS |= {
    "ModelCard",
    "ModelCard.load",
    "safe_open",
    "load_file",
    "from_json",
    "torch.load",
    "TrainerState.load_from_json",
}
METHODS = {"read_text", "read_bytes"}
# Of what is read elsewhere, why it may be.
ELSEWHERE = {
    ("criteria/papers.py", "read_text"): "a file of this package",
    ("saving/outputs.py", "read_text"): "the kernel's list of mounts",
    ("saving/reload_process.py", "json.load"): "a child that does not know this package reads its parent's request",
    ("saving/reload_process.py", "load_file"): "the same, the tokens",
    ("saving/verification.py", "load_file"): "logits that a child of this process has just written",
    ("saving/verification.py", "safe_open"): "weights that this process has just written, one at a time",
    ("loading/trust.py", "read_bytes"): "code, compared with this package's of the same length",
    ("data/sources.py", "read_bytes"): "records that datasets could not read, which may be of any length",
    ("data/sources.py", "read_text"): "a text, which may be of any length",
    ("evaluation/speed/process.py", "json.load"): "a child that does not know this package reads its parent's request",
    ("models/memory.py", "read_text"): "the kernel's account of this process",
    ("templates/foreign.py", "ModelCard"): "its front matter is bounded there, before values are made of it",
    ("templates/foreign.py", "yaml.parse"): "which bounds it",
    ("templates/foreign.py", "json.loads"): "what a child answers, whose length and memory are bounded",
    ("templates/process.py", "read_text"): "the kernel's account of this process",
    ("templates/process.py", "json.loads"): "a child reads its parent's request",
    ("models/placement.py", "load_file"): "weights that this process has written",
}


def called(node):
    """`module.function` or the name that a call names; of the methods of paths, the method."""
    if isinstance(node, ast.Attribute):
        owner = node.value.id if isinstance(node.value, ast.Name) else ""
        return node.attr if node.attr in METHODS else f"{owner}.{node.attr}"
    return node.id if isinstance(node, ast.Name) and node.id not in METHODS else ""


def is_copy(call):
    """Whether what is parsed was written in the same expression."""
    return any(
        isinstance(one, ast.Call) and called(one.func).endswith(("dumps", "to_json_string")) for one in call.args
    )


def test_every_file_is_read_by_the_one_reader():
    """… which bounds it, and makes one line of what is wrong; but for a few, each for its reason."""
    package, found = Path(reading.__file__).parents[1], set()
    for path in package.rglob("*.py"):
        name = path.relative_to(package).as_posix()
        calls = [one for one in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(one, ast.Call)]
        names = {called(call.func) for call in calls if not is_copy(call)} & (CALLS | METHODS)
        found |= {(name, one) for one in names if name != "files/reading.py"}
    assert found == set(ELSEWHERE), found ^ set(ELSEWHERE)


@pytest.mark.parametrize("data", [b"", b'{"a": 1}', b'\n{"a": 1}\r\n\n[2]\n \n3', b"\n\n"])
def test_lines_are_read_with_their_numbers(place, data):
    place.write_bytes(data)
    expected = [(i, json.loads(line)) for i, line in enumerate(data.split(b"\n"), 1) if line.strip()]
    assert list(read_lines(place, "a record", longest=100)) == expected


def test_a_line_that_is_damaged_is_named_after_those_before_it(place):
    place.write_bytes(b'{"a": 1}\n{"a": \n{"a": 3}')
    lines = read_lines(place, "a record", PlanError, longest=100)
    assert next(lines) == (1, {"a": 1})
    with pytest.raises(PlanError, match=f"^{place}: line 2: cannot be read as a record: not JSON"):
        next(lines)


def test_a_line_without_an_end_takes_the_memory_of_its_bound(place):
    with place.open("wb") as file:
        file.truncate(2**34)  # without a block on the disk
    tracemalloc.start()
    with pytest.raises(PlanError, match="line 1: cannot be read as a record: more than 1,000 bytes"):
        list(read_lines(place, "a record", PlanError, longest=1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    place.write_bytes(b"")
    assert peak < 2**20


@BOUNDED
@given(data=st.binary(max_size=30))
def test_a_text_is_read_as_it_is_or_refused(place, data):
    found = read(place, data, read_text)
    assert found is None or found.encode() == data
    assert (found is None) == (data.decode("utf-8", "ignore").encode() != data)


def test_shapes_are_those_of_the_tensors(place):
    save_file(TENSORS, place)
    assert read_shapes(place, "weights") == {name: tuple(tensor.shape) for name, tensor in TENSORS.items()}
    place.write_bytes(place.read_bytes()[:-1])
    assert read(place, place.read_bytes(), read_shapes) is None


# Writing


@BOUNDED
@given(text=st.text(max_size=50))
def test_a_text_comes_back_or_is_not_written(place, text):
    place.write_text("old")
    try:
        write_text(place, text, PlanError)
    except PlanError:
        assert place.read_text() == "old" and not text.isprintable()
    else:
        assert place.read_bytes() == text.encode()
    assert [path.name for path in place.parent.iterdir()] == [place.name]


@pytest.mark.parametrize("failing", ["write", "os.fsync", "Path.replace"])
@pytest.mark.parametrize("stop", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
def test_the_old_file_stays_where_writing_fails(tmp_path, monkeypatch, failing, stop):
    target = tmp_path / "plan.json"
    target.write_text("old")

    def fail(*args):
        raise stop

    if failing == "write":
        whole = Path.open

        def half(path, *args, **options):
            file = whole(path, *args, **options)
            monkeypatch.setattr(writing.os, "fsync", fail)
            file.write(b"ha")
            return file

        monkeypatch.setattr(Path, "open", half)
    else:
        monkeypatch.setattr(writing.os if failing == "os.fsync" else Path, failing.split(".")[1], fail)
    with pytest.raises(PlanError if isinstance(stop, OSError) else KeyboardInterrupt) as error:
        write_text(target, "new", PlanError)
    if isinstance(stop, OSError):
        assert str(error.value) == f"{target}: cannot be written (No space left on device)"
    monkeypatch.undo()
    assert target.read_text() == "old" and list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("values", [math.nan, [math.inf], {"a": {1}}, 10**400, {"a": "\ud800"}, [[[]]]], ids=range(6))
def test_json_that_could_not_be_read_again_is_not_written(tmp_path, values):
    if values == [[[]]]:
        for _ in range(70):
            values = [values]
    target = tmp_path / "x.json"
    target.write_text("old")
    with pytest.raises(PlanError, match=f"^{target}: "):
        write_json(target, values, PlanError)
    assert target.read_text() == "old"


def test_what_a_link_points_to_is_replaced(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("new")
    for name in ("link", "dangling"):
        write_text(tmp_path / name, name)
        assert (tmp_path / name).is_symlink() and (tmp_path / name).read_text() == name
    assert (tmp_path / "real").read_text() == "link" and (tmp_path / "new").read_text() == "dangling"


def test_a_private_file_stays_private(tmp_path):
    target = tmp_path / "x"
    target.touch(mode=0o600)
    write_text(target, "new")
    assert target.stat().st_mode & 0o777 == 0o600 and target.read_text() == "new"


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "ring").symlink_to(tmp_path / "ring")
    (tmp_path / "file").touch()
    for path in (
        tmp_path,
        tmp_path / "gone" / "x",
        tmp_path / "file" / "x",
        tmp_path / "ring",
        tmp_path / ("n" * 300),
        "zero\0byte",
        "/dev/full",
        "/dev/fd/999",
    ):
        with pytest.raises(PlanError, match=r"cannot be written \(") as error:
            write_text(path, "text", PlanError)
        assert str(error.value).startswith(f"{path}: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "ring"]


def test_standard_output_is_written_to_as_it_is(tmp_path):
    """Also where it is a file that already holds something, and where more is printed afterwards."""
    code = (
        "import sys; from optimum_moreau.files import write_text;"
        "print('before', flush=True); write_text('/dev/stdout', 'text\\n'); print('after')"
    )
    piped = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert piped.stdout == "before\ntext\nafter\n", piped.stderr
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before\ntext\nafter\n"


# Tensors

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}


def test_tensors_come_back_with_their_metadata(tmp_path):
    save_file(TENSORS, tmp_path / "x", {"format": "pt"})
    found, metadata = read_tensors(tmp_path / "x", "scores")
    assert metadata == {"format": "pt"} and found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) and found[name].dtype == TENSORS[name].dtype for name in TENSORS)


@BOUNDED
@given(data=st.data())
def test_damaged_tensors_are_read_or_refused(place, data):
    good = bytearray(save(TENSORS))
    if data.draw(st.booleans()):
        del good[data.draw(st.integers(0, len(good) - 1)) :]
    else:
        at = data.draw(st.integers(0, len(good) - 1))
        good[at : at + data.draw(st.integers(1, 4))] = data.draw(st.binary(max_size=6))
    found = read(place, bytes(good), read_tensors)
    assert found is None or all(isinstance(tensor, torch.Tensor) for tensor in found[0].values())


def head(text, body=b"\0" * 64):
    return len(text).to_bytes(8, "little") + text.encode() + body


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"\xff" * 8,
        b"PK\x03\x04 a zip file, as torch.save writes",
        head('{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,64]}}'),
        head('{"a":{"dtype":"F32","shape":[16],"data_offsets":[0,640]}}'),
        head('{"a":{"dtype":"F32","shape":[16],"data_offsets":[64,0]}}'),
        head('{"a":{"dtype":"F32","shape":[-16],"data_offsets":[0,64]}}'),
        head('{"a":{"dtype":"X32","shape":[16],"data_offsets":[0,64]}}'),
        head('{"a":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,64]}}'),
        head('{"a":{"dtype":"F32","shape":[16]}}'),
        head('{"a":5}'),
        head("[" * 100_000),
        head('{"__metadata__":{"a":5}}', b""),
        (2**62).to_bytes(8, "little") + b"{}",
    ],
    ids=lambda data: str(data[8:40]),
)
def test_heads_that_lie_are_refused(place, data):
    assert read(place, data, read_tensors) is None
