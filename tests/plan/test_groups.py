"""Selectors, the groups they make, and what their errors say."""

from __future__ import annotations

import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_freeze.errors import ScheduleError, SelectionError
from lightning_freeze.plan import selectors
from lightning_freeze.plan.groups import frozen_modules, group_parameters, resolve_groups, selectors_for
from lightning_freeze.plan.phase import Phase
from lightning_freeze.plan.phases import Phases
from lightning_freeze.plan.schedule import REST
from lightning_freeze.plan.selectors import check_selector, clean_name, parse


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(2)
        self.linear = nn.Linear(2, 2, bias=False)


class Model(nn.Module):
    """Twelve blocks between an embedding and a head that is tied to it, and an attention beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, 2)
        self.layer = nn.ModuleList(Block() for _ in range(12))
        self.attention = nn.MultiheadAttention(2, 1)
        self.head = nn.Linear(2, 3)
        self.head.weight = self.embed.weight


MODEL = Model()
NAMES = [name for name, _ in MODEL.named_parameters(remove_duplicate=False)]


def under(*prefixes: str) -> list[str]:
    """The names equal to a prefix or below it, the tied one under its first name."""
    return [n for n in NAMES if n != "head.weight" and any(n == p or n.startswith(f"{p}.") for p in prefixes)]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("layer.1", under("layer.1")),
        ("layer.10.linear.weight", ["layer.10.linear.weight"]),
        ("layer.1*", under("layer.1", "layer.10", "layer.11")),
        ("layer.*.linear", [n for n in NAMES if n.endswith("linear.weight")]),
        ("**.bias", [n for n in NAMES if n.endswith(".bias")]),
        ("**.norm", [n for n in NAMES if ".norm." in n]),
        ("layer.**.weight", [n for n in NAMES if n.startswith("layer.") and n.endswith(".weight")]),
        ("layer.**", under("layer")),
        ("layer.{0..2}", under("layer.0", "layer.1", "layer.2")),
        ("layer.{9..11}.norm.weight", [f"layer.{i}.norm.weight" for i in (9, 10, 11)]),
        ("layer.1{0..1}", under("layer.10", "layer.11")),
        (r"re:layer\.\d\.norm\.bias", [f"layer.{i}.norm.bias" for i in range(10)]),
        ({"re": r"layer\.1[01]\.linear\..*"}, ["layer.10.linear.weight", "layer.11.linear.weight"]),
        ("type:LayerNorm", [n for n in NAMES if ".norm." in n]),
        ({"type": "torch.nn.LayerNorm"}, [n for n in NAMES if ".norm." in n]),
        ("type:tests.plan.test_groups.Block", under("layer")),
        ("attention", under("attention")),
        ("attention.in_proj_weight", ["attention.in_proj_weight"]),
        ("attention.in_proj_*", ["attention.in_proj_weight", "attention.in_proj_bias"]),
        (["head", "layer.0"], ["head.weight", *under("layer.0"), "head.bias"]),
        (["layer.3", "layer.2", "layer.3.norm"], under("layer.2", "layer.3")),
        ({"select": "layer.0", "except": "layer.0.norm"}, ["layer.0.linear.weight"]),
        (
            {"select": ["layer.{0..1}"], "except": ["**.bias", "type:Linear"]},
            ["layer.0.norm.weight", "layer.1.norm.weight"],
        ),
        (
            [{"type": "Linear"}, "layer.0", {"except": "layer.{1..11}"}],
            ["head.weight", *under("layer.0", "attention.out_proj", "head")],
        ),
        (
            {"select": "head", "type": "LayerNorm", "except": r"re:.*weight"},
            [n for n in NAMES if n.endswith("norm.bias")] + ["head.bias"],
        ),
    ],
    ids=str,
)
def test_a_selector_takes_exactly(selector: Any, expected: list[str]) -> None:
    assert resolve_groups(MODEL, {"g": selector})["g"] == sorted(expected, key=NAMES.index)


@pytest.mark.parametrize("name", ["embed.weight", "head.weight", ["embed", "head.weight"]])
def test_a_tied_weight_is_one_parameter_by_either_name(name: Any) -> None:
    groups = group_parameters(MODEL, {"tied": name})
    assert [member.parameter is MODEL.embed.weight for member in groups.members["tied"]] == [True]
    assert all(member.parameter is not MODEL.embed.weight for member in groups.members[REST])


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ({"each": "layer.*"}, {f"f/{i}": under(f"layer.{i}") for i in range(12)}),
        ({"each": "layer.{8..11}"}, {f"f/{i}": under(f"layer.{i}") for i in (8, 9, 10, 11)}),
        (
            {"each": "layer.*.norm.*", "except": "layer.{1..11}"},
            {f"f/0.{n}": [f"layer.0.norm.{n}"] for n in ("bias", "weight")},
        ),
        (
            {"each": "layer.*", "except": ["layer.{0..9}", "**.bias"]},
            {f"f/{i}": [f"layer.{i}.norm.weight", f"layer.{i}.linear.weight"] for i in (10, 11)},
        ),
    ],
    ids=str,
)
def test_a_family_is_one_group_for_each_match_in_numerical_order(selector: Any, expected: dict[str, list[str]]) -> None:
    groups = group_parameters(MODEL, {"f": selector})
    assert groups.families == {"f": tuple(expected)}
    assert {name: groups.names()[name] for name in groups.named} == expected
    assert groups.named == tuple(expected)


# --- wrapped names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("_orig_mod.a._checkpoint_wrapped_module.b", "a.b"),
        ("_fsdp_wrapped_module._orig_mod.weight", "weight"),
        ("a._orig_modern.weight", "a._orig_modern.weight"),
        ("_orig_mod", ""),
    ],
)
def test_wrappers_leave_names(name: str, clean: str) -> None:
    assert clean_name(name) == clean


class Wrapper(nn.Module):
    def __init__(self, segment: str, inner: nn.Module) -> None:
        super().__init__()
        self.add_module(segment, inner)


@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        lambda inner: Wrapper("_orig_mod", inner),
        lambda inner: Wrapper("_checkpoint_wrapped_module", inner),
        lambda inner: Wrapper("_fsdp_wrapped_module", Wrapper("_orig_mod", inner)),
    ],
    ids=["compile", "orig_mod", "checkpoint", "fsdp"],
)
@pytest.mark.parametrize("whole", [False, True], ids=["submodule", "whole"])
def test_groups_of_a_wrapped_model_are_those_of_the_plain_one(wrap: Callable[[nn.Module], Any], whole: bool) -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(OrderedDict(first=nn.Linear(2, 2), block=Block()))

    selectors = {"norms": "type:LayerNorm", "linear": "block.linear", "first": {"each": "*.bias"}}
    plain, model = build(), build()
    model.block = wrap(model.block)
    model = wrap(model) if whole else model
    groups = group_parameters(model, selectors)
    assert groups.names() == group_parameters(plain, selectors).names()


def test_the_nearest_names_of_a_wrapped_model_are_names() -> None:
    model = Wrapper("_orig_mod", nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(SelectionError, match=re.escape("Known: '0', '0.weight', '0.bias'.")):
        resolve_groups(model, {"g": "qqqqqqq"})


# --- the rest, and the user's own ------------------------------------------------------------------------------------


def tiny() -> nn.Sequential:
    return nn.Sequential(OrderedDict(a=nn.Linear(2, 2), b=nn.Linear(2, 2, bias=False)))


@pytest.mark.parametrize("rest", ["train", "freeze"])
def test_the_rest_is_all_that_no_group_names(rest: Any) -> None:
    groups = group_parameters(tiny(), {"g": "a.weight"}, rest)
    assert groups.names() == {"g": ["a.weight"], REST: ["a.bias", "b.weight"]}
    assert groups.named == ("g",)
    assert resolve_groups(tiny(), {"g": "a.weight"}, rest) == {"g": ["a.weight"]}


def test_without_a_rest_there_is_no_rest() -> None:
    assert list(group_parameters(tiny(), {"g": "**"}, "error").members) == ["g"]


def test_a_users_own_parameter_belongs_to_no_group() -> None:
    model = tiny()
    model.a.bias.requires_grad = False
    groups = group_parameters(model, {"g": "a"}, "train")
    assert groups.names() == {"g": ["a.weight"], REST: ["b.weight"]}
    assert groups.frozen_by_user == ("a.bias",)


def test_a_users_own_parameter_is_no_rest_that_error_forbids() -> None:
    model = tiny()
    model.b.weight.requires_grad = False
    assert resolve_groups(model, {"g": "a"}, "error") == {"g": ["a.weight", "a.bias"]}


def test_a_family_of_a_users_own_member_is_refused() -> None:
    model = tiny().requires_grad_(False)
    model.a.requires_grad_(True)
    with pytest.raises(SelectionError, match=r"group 'f/b' \(by \{'each': '\*'\}\) is empty"):
        resolve_groups(model, {"f": {"each": "*"}})


# --- errors ----------------------------------------------------------------------------------------------------------

ERRORS: list[tuple[dict[str, Any], str, str]] = [
    (
        {"g": "layr.1"},
        "train",
        "group 'g': the selector 'layr.1' matches no parameter. Did you mean 'layer.1', 'layer.11' or 'layer.10'? "
        "Selectors name whole segments between dots; `**.` before a name finds it at any depth.",
    ),
    (
        {"g": {"each": "layers.*"}},
        "train",
        "group 'g': the selector 'each: layers.*' matches no parameter. Did you mean ",
    ),
    (
        {"g": {"select": "layer.1", "except": "hed"}},
        "train",
        "the selector 'except: hed' matches no parameter. Did you mean 'head'",
    ),
    (
        {"g": "type:torch.nn.BatchNorm1d"},
        "train",
        "the selector 'type:torch.nn.BatchNorm1d' matches no parameter. Did you mean 'torch.nn.modules.",
    ),
    (
        {"a": "layer.1", "b": "layer.*.linear"},
        "train",
        "'layer.1.linear.weight' is in two groups: 'a' (by 'layer.1') and 'b' (by 'layer.*.linear'). Groups are "
        "disjoint: take it out of one with `except: layer.1.linear.weight`.",
    ),
    (
        {"f": {"each": "layer.*"}, "b": "layer.10"},
        "train",
        "'layer.10.norm.weight' is in two groups: 'f/10' (by 'layer.*') and 'b' (by 'layer.10').",
    ),
    (
        {"a": "embed", "b": "head"},
        "train",
        "'embed.weight' in group 'a' (by 'embed') and 'head.weight' in group 'b' (by 'head') are one tied parameter, "
        "which cannot train and be frozen at once. Put both names in one group, or take one away with "
        "`except: head.weight`.",
    ),
    ({"rest": "head"}, "train", "a group called 'rest', which is reserved: `rest` is every parameter outside the"),
    ({"all": "head"}, "train", "a group called 'all', which is reserved"),
    ({"a/b": "head"}, "train", "group 'a/b' has a slash in its name, as the groups of a family have (layers/0)."),
    ({" ": "head"}, "train", "`groups` has the name ' '; a group's name is text."),
    ({7: "head"}, "train", "`groups` has the name 7; a group's name is text."),
    (
        {"f": {"each": "layer"}},
        "train",
        "family 'f' has `each: layer`, which has no wildcard and so names one thing. Write `each: \"layer.*\"`.",
    ),
    (
        {"f": [{"each": "layer.*"}, "head"]},
        "train",
        "group 'f' mixes `each:` with other selectors. Make it two groups.",
    ),
    (
        {"g": "layer.{5..1}"},
        "train",
        "the selector 'layer.{5..1}' holds '{5..1}'; braces hold a range of whole numbers, low to high: {0..5}.",
    ),
    ({"g": "layer.{a,b}"}, "train", "the selector 'layer.{a,b}' holds '{a,b}'; braces hold a range"),
    ({"g": "layer.{0..5"}, "train", "group 'g' has the selector 'layer.{0..5', in which a name is empty."),
    ({"g": "re:layer.("}, "train", "the selector 're:layer.(' is not a regular expression: missing ), unterminated"),
    (
        {"g": {"selct": "head"}},
        "train",
        "group 'g' has the unknown key 'selct'; the keys of a selector are select, re, type, each, except, by. Did you "
        "mean 'select'?",
    ),
    (
        {"g": {"type": "torch.nn.LayerNrm"}},
        "train",
        "`type: torch.nn.LayerNrm` names no class that can be imported (module 'torch.nn' has no attribute "
        "'LayerNrm'). Write the full path, such as `type: torch.nn.LayerNorm`. Did you mean 'torch.nn.LayerNorm'?",
    ),
    ({"g": "type:no_such_package.Layer"}, "train", "names no class that can be imported (No module named"),
    ({"g": "type:torch.Tensor"}, "train", "`type: torch.Tensor` names <class 'torch.Tensor'>, which is not a torch.nn"),
    ({"g": "layer..norm"}, "train", "group 'g' has the selector 'layer..norm', in which a name is empty."),
    ({"g": ""}, "train", "group 'g' has the selector '', in which a name is empty."),
    ({"g": []}, "train", "group 'g' selects nothing: []. Name a module, such as 'encoder'."),
    ({"g": {"except": "head"}}, "train", "group 'g' selects nothing: {'except': 'head'}."),
    ({"g": 3}, "train", "group 'g' has the selector 3; write a name, a list of names, or a mapping of select, re,"),
    ({"g": {"select": 0}}, "train", "group 'g' has `select: 0`, but a selector is text. In YAML, quote * and braces."),
    (
        {"g": {"select": "layer.1", "except": "layer.*"}},
        "train",
        "group 'g' is empty: `except: layer.*` takes away all that it has (3 parameters).",
    ),
    (
        {"g": "layer", "h": "attention"},
        "error",
        "in no group, which `rest: error` forbids: embed.weight, head.bias. Name them in a group",
    ),
]


@pytest.mark.parametrize(("groups", "rest", "text"), ERRORS, ids=[str(row[0]) for row in ERRORS])
def test_an_error_says_what_and_how_to_mend_it(groups: dict[str, Any], rest: Any, text: str) -> None:
    with pytest.raises(SelectionError) as caught:
        resolve_groups(MODEL, groups, rest)
    assert text in str(caught.value)


def test_a_group_of_the_users_own_parameters_is_refused() -> None:
    model = tiny()
    model.a.requires_grad_(False)
    with pytest.raises(SelectionError) as caught:
        resolve_groups(model, {"g": "a", "h": "b"})
    assert str(caught.value) == (
        "group 'g' (by 'a') is empty, because all its parameters have requires_grad=False (2 in the model, such as "
        "'a.weight'). Leave requires_grad=True for all that the schedule is to train, also what is frozen at first."
    )


def test_flattened_parameters_are_refused() -> None:
    model = nn.Module()
    model.register_parameter("_flat_param", nn.Parameter(torch.zeros(3)))
    with pytest.raises(SelectionError, match=r"\('_flat_param'\): FSDP without original parameters\. Use FSDPStrategy"):
        resolve_groups(model, {"g": "**"})


@pytest.mark.parametrize("selector", ["re:(", "a.{1..0}", {"selct": "a"}, {"each": "a.*", "select": "b"}, "a..b", None])
def test_the_form_of_a_selector_is_checked_without_a_model(selector: Any) -> None:
    with pytest.raises(SelectionError):
        check_selector("g", selector)


def test_a_sound_selector_needs_no_model() -> None:
    check_selector("g", ["a.*", {"re": "b.*", "type": "no_such_package.Layer", "except": "c.{0..3}"}])


# --- names in a schedule ---------------------------------------------------------------------------------------------


def test_a_name_in_a_schedule_that_is_no_group_is_read_as_a_selector() -> None:
    schedule = Phases([Phase(["named", "layer.1", "f", "f/2"], updates=1), Phase(["all"])])
    written = {"named": "head.bias", "f": {"each": "layer.{2..3}"}}
    assert selectors_for(MODEL, written, schedule) == {**written, "layer.1": "layer.1"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "atention",
            "`phases[0].train` names 'atention', which is not a group (groups: 'backbone') and, "
            "read as a "
            "selector, matches no parameter. Did you mean 'attention'",
        ),
        ("backbon", "Did you mean 'backbone'?"),
        ("layer..1", "`phases[0].train` names 'layer..1', which is not a group; as a selector, group 'layer..1' has"),
    ],
)
def test_a_name_in_a_schedule_that_is_nothing_is_refused(name: str, text: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        selectors_for(MODEL, {"backbone": "layer"}, Phases([Phase([name])]))
    assert text in str(caught.value)
    assert caught.value.key == "phases[0].train"


# --- globs against brute force ---------------------------------------------------------------------------------------


def matches(pattern: Sequence[str], segments: Sequence[str]) -> bool:
    """Whether segments match a glob, or lie below what does; by trying every way."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return any(matches(pattern[1:], segments[skip:]) for skip in range(len(segments) + 1))
    return bool(segments) and one(pattern[0], segments[0]) and matches(pattern[1:], segments[1:])


def one(pattern: str, segment: str) -> bool:
    """Whether one segment matches; a lone ``*`` is any, another stands for any text, braces for 0 to 2."""
    if pattern == "{0..2}":
        return segment in ("0", "1", "2")
    if "*" not in pattern:
        return pattern == segment
    before, _, after = pattern.partition("*")
    return len(segment) >= len(before + after) and segment.startswith(before) and segment.endswith(after)


SEGMENTS = ["a", "b", "ab", "0", "1", "10", "12"]
TREES = st.sets(st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=4).map(tuple), min_size=1, max_size=8)
PATTERNS = st.lists(st.sampled_from([*SEGMENTS, "*", "**", "a*", "*b", "1*", "{0..2}"]), min_size=1, max_size=5)


def model_of(paths: set[tuple[str, ...]]) -> nn.Module:
    """A model with a parameter ``w`` in the module at each path."""
    root = nn.Module()
    for path in sorted(paths):
        at = root
        for segment in path:
            if segment not in at._modules:
                at.add_module(segment, nn.Module())
            at = at._modules[segment]
        at.register_parameter("w", nn.Parameter(torch.zeros(1)))
    return root


@given(paths=TREES, pattern=PATTERNS)
def test_a_glob_selects_what_trying_every_way_selects(paths: set[tuple[str, ...]], pattern: list[str]) -> None:
    model = model_of(paths)
    expected = [n for n, _ in model.named_parameters() if matches(pattern, n.split("."))]
    if expected:
        assert resolve_groups(model, {"g": ".".join(pattern)}) == {"g": expected}
    else:
        with pytest.raises(SelectionError, match="matches no parameter"):
            resolve_groups(model, {"g": ".".join(pattern)})


# --- frozen modules --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frozen", "own", "expected"),
    [
        (["layer.1"], [], ["layer.1", "layer.1.norm", "layer.1.linear"]),
        (["layer.1.norm"], [], ["layer.1.norm"]),
        (["layer.1.norm.weight"], [], []),
        (["layer.1.norm.weight"], ["layer.1.norm.bias"], ["layer.1.norm"]),
        ([], ["layer.1"], []),
        (["layer.0"], ["layer.1"], ["layer.0", "layer.0.norm", "layer.0.linear"]),
        (["attention"], [], ["attention", "attention.out_proj"]),
        (["attention.out_proj"], [], ["attention.out_proj"]),
        (["embed"], [], ["embed"]),
        (["embed", "head"], [], ["embed", "head"]),
        ([], [], []),
    ],
)
def test_a_module_is_frozen_when_all_below_it_is(frozen: list[str], own: list[str], expected: list[str]) -> None:
    parameters = dict(MODEL.named_parameters(remove_duplicate=False))
    states: dict[int, bool | None] = {id(parameters[n]): True for n in under(*frozen)}
    states |= {id(parameters[n]): None for n in under(*own)}
    found = frozen_modules(MODEL, lambda p: states.get(id(p), False))
    assert [name for name, _ in found] == expected
    assert all(MODEL.get_submodule(name) is module for name, module in found)


def test_modules_without_parameters_are_frozen_with_their_parent() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.Dropout(), nn.Linear(2, 2))
    below = {id(p) for p in model[0].parameters()}
    found = frozen_modules(model, lambda p: id(p) in below)
    assert [name for name, _ in found] == ["0", "0.0", "0.1"]


def test_a_wholly_frozen_model_is_frozen_from_its_root() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    assert [name for name, _ in frozen_modules(model, lambda p: True)] == ["", "0"]


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("selector", "said"),
    [
        ("backbone.1", "'backbone.1' matches no parameter: 'backbone.1' is a ReLU without parameters. Did you mean"),
        ("backbone.{3..4}", ": 'backbone.3' is a ReLU without parameters (and 1 more)"),
        ("type:ReLU", "matches no parameter: 'backbone.1' is a ReLU without parameters (and 1 more). "),
        ("bakbone", "'bakbone' matches no parameter. Did you mean 'backbone'"),
        ("bakbone.4", "'bakbone.4' matches no parameter. Did you mean"),
    ],
)
def test_only_names_that_match_parameters_are_offered(selector: str, said: str) -> None:
    with pytest.raises(SelectionError) as caught:
        resolve_groups(Backbone(), {"g": selector})
    assert said in str(caught.value)
    offered = re.findall(r"'([^']+)'", re.split("Did you mean|Known:", str(caught.value))[1])
    assert offered
    assert len(set(offered)) == len(offered)
    for name in offered:
        assert resolve_groups(Backbone(), {"g": f"type:{name}" if selector.startswith("type:") else name})


@pytest.mark.parametrize(
    ("name", "offered"),
    [
        (
            "backbone.1",
            "parameter: 'backbone.1' is a ReLU without parameters. Did you mean 'backbone.2', 'backbone.0' or 'backbone'?",
        ),
        ("haed", "matches no parameter. Did you mean 'head', 'head.bias' or 'head.weight'?"),
    ],
)
def test_a_name_in_a_schedule_is_offered_once(name: str, offered: str) -> None:
    with pytest.raises(ScheduleError) as caught:
        selectors_for(Backbone(), {"body": "backbone", "head": "head"}, Phases([Phase([name])]))
    assert offered in str(caught.value)


def test_a_module_of_a_group_that_is_no_family_is_not_called_a_member_of_one() -> None:
    for written in ("layer.*", ["layer"]):
        with pytest.raises(ScheduleError, match=r"'layers' holds some of the same parameters.*name 'layers' in the"):
            selectors_for(MODEL, {"layers": written}, Phases([Phase(["layer.1"])]))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("layers.1", "not a group, and 'layers/1' holds the same parameters: write 'layers/1' in the schedule."),
        (
            "layers.{1..2}",
            "and 'layers/1', 'layers/2' hold the same parameters: write 'layers/1', 'layers/2' in the schedule.",
        ),
        ("layers.1.weight", "and 'layers' holds some of the same parameters, and a parameter is in one group alone"),
        ("heads", "as a selector, matches no parameter"),
    ],
)
def test_a_selector_in_a_schedule_that_a_group_holds_already(name: str, said: str) -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(2, 2) for _ in range(3)), "head": nn.Linear(2, 2)})
    with pytest.raises(ScheduleError) as caught:
        selectors_for(model, {"layers": {"each": "layers.*"}, "top": "head"}, Phases([Phase([name])]))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("low", "high"), [(0, 0), (0, 5), (3, 11), (0, 10), (9, 101), (17, 2345), (100, 199), (0, 10**6), (5, 10**15)]
)
def test_a_range_is_the_numbers_from_low_to_high_whatever_its_size(low: int, high: int) -> None:
    (pattern,) = parse("g", f"a{{{low}..{high}}}").include
    beyond = [0, 1, 9, 10, 11, 99, 100, 101, 999, 1000, low - 1, low, low + 1, high - 1, high, high + 1, 10 * high]
    for number in {number for number in (*range(3000), *beyond) if number >= 0}:
        assert bool(pattern.regex.fullmatch(f"a{number}.")) == (low <= number <= high), number
    assert not pattern.regex.fullmatch(f"a0{high}.")
    assert len(pattern.regex.pattern) < 3000


class Scaled(nn.Module):
    """Holds a layer under torch's own name for it, beside a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2))
        self._orig_mod = nn.Linear(2, 2)


def test_two_parameters_of_one_name_without_wrappers_are_refused_by_both_names() -> None:
    with pytest.raises(
        SelectionError, match=r"'0.weight' and '0._orig_mod.weight' are both called '0.weight' .*Rename the module"
    ):
        resolve_groups(nn.Sequential(Scaled(), nn.Linear(2, 2)), {"g": "1"})


# --- a limit on time --------------------------------------------------------------------------------------------------


def named(*names: str) -> nn.Module:
    model = nn.Module()
    for name in names:
        model.register_parameter(name, nn.Parameter(torch.ones(1)))
    return model


@pytest.mark.parametrize("selector", ["re:(a+)+b", "re:(a|a)*b", "re:a*a*a*a*a*a*a*a*b", "*a*a*a*a*a*a*a*a*b"])
def test_a_pattern_that_never_ends_is_refused(selector: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selectors, "_SECONDS", 0.05)
    with pytest.raises(SelectionError) as caught:
        resolve_groups(named("a" * 100, "b"), {"g": selector})
    assert str(caught.value) == (
        f"the selector {selector!r} takes more than 0.05 s over 2 names: it has too many ways to match one. Write no "
        "repetition within or beside another: `a+` for `(a+)+`, `.*` once."
    )


@pytest.mark.parametrize("executable", [sys.executable, "", "/nowhere/python", "/bin/false", "/bin/true"])
@pytest.mark.parametrize("selector", ["re:(x|(y))+z|(ä)+", "re:(?:.*)?[zä]"])
def test_another_process_matches_alike(selector: str, executable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it cannot be started; there is no limit then."""
    monkeypatch.setattr(sys, "executable", executable)
    selectors._matches.cache_clear()
    assert resolve_groups(named("xyz", "ä", "w"), {"g": selector}) == {"g": ["xyz", "ä"]}


@pytest.mark.parametrize("selector", [r"re:.*norm.*", r"re:layer\.\d+\..*", "layer.*.norm", "**.norm.*", "**.*_proj"])
def test_a_common_pattern_starts_no_process(selector: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selectors.subprocess, "run", None)
    (pattern,) = parse("g", selector).include
    assert pattern.matches(["layer.3.norm.", "layer.3.norm", "layer.3.norm.bias.", "layer.3.in_proj."])


@pytest.mark.parametrize("body", ["x{99999999999999}", "(" * 5000 + ")" * 5000, "(" * 9])
def test_an_expression_that_cannot_be_compiled_is_refused(body: str) -> None:
    with pytest.raises(SelectionError, match="is not a regular expression"):
        check_selector("g", f"re:{body}")
