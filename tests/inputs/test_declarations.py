"""Declarations about inputs: read, refused with a fix, and held against a module."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from lightning_freeze.inputs.declarations import (
    DeclarationError,
    Declared,
    Known,
    parse_metadata,
    parse_whitelist,
    stale,
)

GOOD: dict[str, tuple[Any, list[Known]]] = {
    "nothing": (None, []),
    "empty": ({}, []),
    "a reason": ({"Block.mask": "shared signature"}, [Known("Block.mask", "shared signature")]),
    "a mapping": ({"Block.mask": {"reason": "why"}}, [Known("Block.mask", "why")]),
    "a condition": (
        {"Block.mask": {"reason": "why", "when": {"training": False, "config.layers": 2}}},
        [Known("Block.mask", "why", (("training", False), ("config.layers", 2)))],
    ),
    "no condition": ({"Block.mask": {"reason": "why", "when": None}}, [Known("Block.mask", "why")]),
    "a leaf path": ({"Block.batch['a']": "why"}, [Known("Block.batch['a']", "why")]),
    "a leaf path with a dot": ({"Block.bag.b": "why"}, [Known("Block.bag.b", "why")]),
}


@pytest.mark.parametrize("name", GOOD)
def test_entries_are_read(name: str) -> None:
    given, expected = GOOD[name]
    assert parse_whitelist(given) == expected


# name: (whitelist, the key that the error names, what it says)
BAD: dict[str, tuple[Any, str, str]] = {
    "a list": (["A.x", "B.y"], "whitelist", r"not a mapping of `Class.argument` to a reason. Write: whitelist: \{A.x: <why"),
    "a string": ("Block.mask", "whitelist", r"not a mapping.*Write: whitelist: \{Block.mask: <why it is not used>\}"),
    "a number alone": (5, "whitelist", r"5 is not a mapping.*Write: whitelist: \{Block.mask: <why it is not used>\}"),
    "a file": ("known.yaml", "whitelist", r"load the file yourself: whitelist=yaml.safe_load\(open\('known.yaml'\)\)\['whitelist'\]"),
    "not a reason": ({"Block.mask": None}, "whitelist['Block.mask'].reason", "None is not a reason.*Say in a sentence why"),
    "an empty reason": ({"Block.mask": "  "}, "whitelist['Block.mask'].reason", "is not a reason"),
    "yes": ({"Block.mask": True}, "whitelist['Block.mask'].reason", "True is not a reason"),
    "a condition alone": ({"Block.mask": {"when": {"a": 1}}}, "whitelist['Block.mask'].reason", "not a reason"),
    "a misspelt key": ({"Block.mask": {"reson": "x"}}, "whitelist['Block.mask'].reson", "Did you mean 'reason'"),
    "a misspelt condition": ({"B.m": {"reason": "x", "wen": {}}}, "whitelist['B.m'].wen", "Did you mean 'when'"),
    "a condition that is a list": ({"B.m": {"reason": "x", "when": ["a"]}}, "whitelist['B.m'].when", "not a mapping of the"),
    "a condition on a number": ({"B.m": {"reason": "x", "when": {1: 2}}}, "whitelist['B.m'].when", "not a mapping of the"),
    "no class": ({"mask": "why"}, "whitelist['mask']", "no `Class.argument`.*BertLayer.head_mask"),
    "a class alone": ({"Block.": "why"}, "whitelist['Block.']", "no `Class.argument`"),
    "an argument alone": ({".mask": "why"}, "whitelist['.mask']", "no `Class.argument`"),
    "a number": ({5: "why"}, "whitelist[5]", "5 is no `Class.argument`"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_refused_with_the_key_and_a_fix(name: str) -> None:
    given, key, text = BAD[name]
    with pytest.raises(DeclarationError, match=text) as raised:
        parse_whitelist(given)
    assert raised.value.key == key
    assert str(raised.value) == f"{key}: {raised.value.problem}"
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, set()), ([], set()), (["A.x", "B.y"], {"A.x", "B.y"}), (("A.x",), {"A.x"}), (["A.b['c']"], {"A.b['c']"})],
)
def test_metadata_inputs_are_read(given: Any, expected: set[str]) -> None:
    assert parse_metadata(given) == expected


@pytest.mark.parametrize(
    ("given", "key", "text"),
    [
        ("A.x", "metadata_inputs", r"is not a list. Write a list: \[A.x\]"),
        (["A.x", "like"], "metadata_inputs[1]", "'like' is no `Class.argument`"),
        ([None], "metadata_inputs[0]", "None is no `Class.argument`"),
        (5, "metadata_inputs", "Write a list"),
    ],
)
def test_metadata_inputs_that_cannot_be_read(given: Any, key: str, text: str) -> None:
    with pytest.raises(DeclarationError, match=text) as raised:
        parse_metadata(given)
    assert raised.value.key == key


@pytest.mark.parametrize(
    ("when", "holds"),
    [
        ({}, True),
        ({"training": True}, True),
        ({"training": False}, False),
        ({"config.layers": 2}, True),
        ({"config.layers": 3}, False),
        ({"config.layers": 2, "training": False}, False),
        ({"config.kinds": ["a", "b"]}, True),
        ({"absent": None}, False),
        ({"config.absent.deeper": 1}, False),
        ({"nothing": None}, True),
    ],
)
def test_a_condition_is_held_against_the_module(when: dict[str, Any], holds: bool) -> None:
    module = SimpleNamespace(training=True, nothing=None, config=SimpleNamespace(layers=2, kinds=["a", "b"]))
    assert Known("Block.mask", "why", tuple(when.items())).holds(module) is holds


def declared_on(module: nn.Module) -> frozenset[str]:
    return Declared((), None).of_class(module)[1]


class Base(nn.Module):
    metadata_inputs = ("like",)


class Derived(Base): ...


class Sentence(nn.Module):
    metadata_inputs = "like"


class Number(nn.Module):
    metadata_inputs = 5


class Numbers(nn.Module):
    metadata_inputs = (1,)


def test_what_a_class_declares() -> None:
    assert declared_on(Base()) == declared_on(Derived()) == {"like"}
    assert declared_on(nn.Module()) == frozenset()


@pytest.mark.parametrize("kind", [Sentence, Number, Numbers])
def test_a_class_that_declares_no_names(kind: Any) -> None:
    with pytest.raises(DeclarationError, match=r"is not a list of argument names. Write metadata_inputs = \('like',\)"):
        declared_on(kind())


# --- stale declarations


def test_a_stale_entry_of_the_whitelist() -> None:
    found = stale("Block.mask", Known("Block.mask", "the decoder masks", (("training", False),)))
    assert (found.audit, found.kind, found.severity, found.cause) == ("inputs", "stale", "warning", "stale")
    assert (found.module_class, found.argument, found.confirmed) == ("Block", "mask", True)
    for word in ("whitelist: 'Block.mask'", "the decoder masks", "under {'training': False}", "Remove the entry"):
        assert word in found.message


def test_a_stale_metadata_input() -> None:
    found = stale("Block.bag.b", None)
    assert (found.module_class, found.argument) == ("Block", "bag.b")
    assert "metadata_inputs: 'Block.bag.b'" in found.message
    assert "its values were used" in found.message
