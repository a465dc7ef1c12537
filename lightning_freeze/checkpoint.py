"""The state that a run saves: its schema, what differs from this run's, and how it is carried over to another schedule."""

from __future__ import annotations

import difflib
import json
import warnings
from base64 import b85decode, b85encode
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import yaml

from lightning_freeze.errors import ScheduleError, is_number, shortened
from lightning_freeze.plan.groups import Groups
from lightning_freeze.plan.schedule import REST, SINCE_METRICS, Plan, Position, Schedule
from lightning_freeze.report.steps import unfolded

try:
    import lzma
except ImportError:  # a Python that was built without it: states stay as long as they are
    lzma = None  # type: ignore[assignment]

VERSION = 2  # since steps are folded and large parts compressed; what 1 wrote is read, too
_READABLE = 8192  # characters of a state, as JSON: one may look into it; of a longer one, an eighth of them in a part
_PACKED = {
    "identity": ("schedule", "groups", "moved_by_user", "optimizers"),
    "progress": ("position", "steps", "epoch_updates"),
}
"""Texts of large parts, and which parts may be in them; those of the first are the same in every checkpoint of a run."""
_LONGEST = 1 << 26  # bytes of a part, so that an altered one is refused before it fills the memory
_DEEPEST = 100  # sequences of steps within each other
OnScheduleChange = Literal["raise", "continue"]


@dataclass(frozen=True)
class Identity:
    """What a saved state belongs to."""

    schedule: Schedule
    groups: Groups
    optimizers: Sequence[Sequence[str]]  # for each optimizer the groups that it holds, sorted

    def as_dict(self) -> dict[str, Any]:
        """As builtins alone."""
        names = self.groups.names()
        own = {group: names[group] for group in self.groups.moved_by_user}
        return to_builtins(  # type: ignore[no-any-return]
            {
                "schedule": self.schedule.describe(),
                "groups": {group: names[group] for group in self.groups.members},
                "rest": self.groups.rest,
                "optimizers": self.optimizers,
                **({"moved_by_user": own} if own else {}),
            }
        )


@dataclass(frozen=True)
class _Kind:
    """What a value must be, in words, and the test of it."""

    valid: str
    holds: Callable[[Any], bool]

    def in_list(self, valid: str = "") -> _Kind:
        return _Kind(valid, lambda value: isinstance(value, list) and all(map(self.holds, value)))

    def by_name(self, valid: str) -> _Kind:
        names = _NAME.in_list()
        return _Kind(
            valid,
            lambda value: isinstance(value, dict) and names.holds([*value]) and all(map(self.holds, value.values())),
        )


def to_builtins(value: Any) -> Any:
    """A state of builtins alone, which ``torch.load(weights_only=True)`` reads: a name may be NumPy's string."""
    if type(value) in (str, int, bool, float, type(None)):
        return value
    if isinstance(value, Mapping):
        return {to_builtins(key): to_builtins(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [*map(to_builtins, value)]
    return next((kind(value) for kind in (bool, int, float, str) if isinstance(value, kind)), value)


def packed(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state whose large parts are compressed text, if it is long; a short one stays as it is."""
    small, texts = dict(state), {part: json.dumps(value, separators=(",", ":")) for part, value in state.items()}
    if sum(map(len, texts.values())) > _READABLE and lzma is not None:
        for key, parts in _PACKED.items():
            large = [part for part in parts if len(texts.get(part, "")) > _READABLE // 8]
            if large:
                small[key] = _compressed("{" + ",".join(f'"{part}":{texts[part]}' for part in large) + "}")
            for part in large:
                del small[part]
    return small


@lru_cache(maxsize=1 + len(_PACKED))
def _compressed(text: str) -> str:
    # Of the names of 10,000 parameters it leaves a quarter of what zlib does.
    return b85encode(lzma.compress(text.encode(), lzma.FORMAT_ALONE)).decode()


def unpacked(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state that `packed` was given."""
    _refuse_version(state)
    whole = {key: value for key, value in state.items() if key not in _PACKED}
    for key in _PACKED.keys() & state.keys():
        if lzma is None:
            raise ScheduleError(
                f"the checkpoint's freeze state is compressed (`{key}`), and this Python has no module `lzma`. Resume with one "
                "that was built with liblzma."
            )
        try:
            parts = json.loads(lzma.LZMADecompressor().decompress(b85decode(state[key]), _LONGEST))
            if not parts.keys() <= set(_PACKED[key]) - whole.keys():
                raise ValueError("other keys")
        except (ValueError, TypeError, AttributeError, RecursionError, lzma.LZMAError) as error:
            raise _altered(key, state[key], "compressed text, as it was saved") from error
        whole |= parts
    return whole


def _refuse_version(state: Mapping[str, Any]) -> None:
    if state.get("version") not in (1, VERSION):
        raise ScheduleError(
            f"the checkpoint's freeze state has version {state.get('version')!r}; this release reads up to "
            f"{VERSION}. Resume with the release of lightning-freeze that wrote it."
        )


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return _NAME.in_list().holds([*value]) and all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, list) else isinstance(value, (str, int, float, type(None)))


_NAME = _Kind("a text", lambda value: isinstance(value, str))
_NAMES = _NAME.in_list("a list of names")
_COUNT = _Kind("a whole number of at least 0", lambda value: type(value) is int and value >= 0)
_COUNTS = _COUNT.by_name("counts of at least 0 by group")
_FLAG = _Kind("true or false", lambda value: isinstance(value, bool))
_NUMBER = _Kind("a number", is_number)


def _are_runs(value: object, depth: int = 0) -> bool:
    """Whether something is a list of runs of steps, or of those that repeat."""
    return isinstance(value, list) and depth < _DEEPEST and all(_is_run(each, depth) for each in value)


def _is_run(value: Any, depth: int) -> bool:
    if not isinstance(value, dict):
        return _COUNT.in_list().holds(value) and len(value) == 3 and value[2] > 0
    times, steps = value.get("times"), value.get("steps")
    return len(value) == 2 and type(times) is int and times > 0 and bool(steps) and _are_runs(steps, depth + 1)


_Schema = Mapping[str, "_Kind | _Schema"]
_SCHEMA: _Schema = {
    "schedule": _Kind("a mapping of plain values", lambda value: isinstance(value, dict) and _is_plain(value)),
    "groups": _NAMES.by_name("lists of parameters by group"),
    "moved_by_user": _NAMES.by_name("lists of parameters by group"),
    "rest": _Kind("train, freeze or error", lambda value: value in ("train", "freeze", "error")),
    "optimizers": _NAMES.in_list("a list of groups for each optimizer"),
    "position": {
        "updates": _COUNTS,
        "total": _COUNT,
        "epoch": _COUNT,
        "phase": _COUNT,
        "entered": _FLAG,
        "done": _COUNT.in_list().in_list("a list of [optimizer, updates]"),
        "epochs": _COUNT,
        "begun": _FLAG,
        "judged": _NAME,
        "best": _Kind("a number or null", lambda value: value is None or is_number(value)),
        "wait": _COUNT,
        "heard": _NUMBER.by_name("numbers by metric"),
        "unheard": _Kind("a metric or null", lambda value: value is None or isinstance(value, str)),
        "thawed": _COUNTS,
    },
    "steps": {
        "first": _COUNT,
        "sets": _NAMES.in_list("a list of sets of groups"),
        "steps": _Kind("a list of [optimizer, set, count]", _are_runs),
        "epoch_first": _COUNT,
        "forgotten": {"updates": _COUNTS, "steps": _COUNT, "gradient_bytes": _COUNT},
        "planned": _Kind("", lambda v: v is None or _NAMES.holds(v)).in_list("a list of sets of groups, or null"),
        "places": _NAME.in_list("a list of keys"),
        "lr_factors": _NUMBER.by_name("").in_list("a list of numbers by group"),
    },
    "epoch_updates": _COUNTS,
    "logged": _NAMES,
}
# Keys that the first release did not write.
_LATER = {"logged", "moved_by_user", "planned", "places", "lr_factors", "epoch_first", "forgotten", *SINCE_METRICS}


def _check(value: object, schema: _Kind | _Schema, key: str) -> None:
    """Refuse a saved value that is not as the schema says."""
    if isinstance(schema, _Kind):
        if not schema.holds(value):
            raise _altered(key, value, schema.valid)
        return
    if not isinstance(value, Mapping):
        raise _altered(key, value, "a mapping")
    prefix = f"{key}." if key else ""
    for name in schema.keys() - value.keys() - _LATER:
        raise _altered(f"{prefix}{name}", "missing", "there")
    for name, each in value.items():
        if name not in schema:
            raise _altered(f"{prefix}{name}", "an unknown key", f"one of {', '.join(schema)}")
        _check(each, schema[name], f"{prefix}{name}")


def _check_references(state: Mapping[str, Any]) -> None:
    """Refuse names and numbers that refer to nothing."""
    position, optimizers = state["position"], len(state["optimizers"])
    if set(position["updates"]) - {REST} != set(state["groups"]) - {REST}:
        raise _altered("position.updates", position["updates"], f"a count for each of {', '.join(state['groups'])}")
    least = max(position["updates"].values(), default=0)
    if position["total"] < least:
        raise _altered("position.total", position["total"], f"at least {least}, the updates of a group")
    for run in position["done"]:
        if len(run) != 2 or run[0] >= optimizers:
            raise _altered("position.done", run, f"[optimizer, updates], with an optimizer below {optimizers}")
    _check_steps(state["steps"], position["total"], optimizers)


def _check_steps(steps: Mapping[str, Any], total: int, optimizers: int) -> None:
    """Refuse steps that refer to nothing."""
    first, sets = steps["first"], len(steps["sets"])
    if first > total:
        raise _altered("steps.first", first, f"at most {total}, the total")
    if steps.get("epoch_first", 0) > first:
        raise _altered("steps.epoch_first", steps["epoch_first"], f"at most {first}, the first of them")
    for column in steps.keys() & {"planned", "places", "lr_factors"}:
        if len(steps[column]) != sets:
            raise _altered(f"steps.{column}", steps[column], f"as long as `steps.sets`, {sets}")
    for (optimizer, number), count in unfolded(steps["steps"], lambda *kind: kind).counts.items():
        if optimizer >= optimizers or number >= sets:
            run = [optimizer, number, count]
            raise _altered("steps.steps", run, f"[optimizer below {optimizers}, set below {sets}, count]")


def _shown(value: object) -> str:
    try:
        return f"{value!r:.80}"
    except RecursionError:
        return "values within each other, too deep to show"


def _altered(key: str, value: object, valid: str) -> ScheduleError:
    return ScheduleError(
        f"the checkpoint's freeze state has `{key}`: {_shown(value)}, but it must be {valid}. Was the file edited? Load another "
        "checkpoint, or begin a new run from its weights alone (load_from_checkpoint, then fit without ckpt_path).",
        key=key,
    )


_SAID = {
    "schedule": "another schedule",
    "groups": "other groups",
    "moved_by_user": "other groups with `by: user`",
    "rest": "another `rest`",
    "optimizers": "optimizers that hold other groups",
}


def read(state: Mapping[str, Any], mine: Identity, on_change: OnScheduleChange) -> tuple[Position, list[str]]:
    """Where a saved run was, and what differs from this run; refused where it was altered or may not differ."""
    _refuse_version(state)
    # Callbacks add keys of their own.
    _check({key: value for key, value in state.items() if key in _SCHEMA}, _SCHEMA, "")
    _check_references(state)
    ours = mine.as_dict()
    found = [
        f"{said}:\n{_difference(state.get(what, {}), ours.get(what, {}))}"
        for what, said in _SAID.items()
        if state.get(what, {}) != ours.get(what, {})
    ]
    if found and on_change == "raise":
        raise ScheduleError(
            f"the checkpoint was made under {found[0]}\nso its counts mean something else here. Resume with the "
            "checkpoint's own; or keep its counts and its place in the schedule with `on_schedule_change: continue`; or "
            "begin a new run from its weights alone (load_from_checkpoint, then fit without ckpt_path)."
        )
    position = Position.from_dict(state["position"])
    position.unheard = None  # what was not logged by then will not be
    return position, found


def carry_over(position: Position, plan: Plan, optimizers: int) -> None:
    """Fit a position that was made under another schedule, or other groups, to this one."""
    fresh = plan.start(position.epoch).updates
    position.updates = {group: position.updates.get(group, count) for group, count in fresh.items()}
    position.thawed = {group: count for group, count in position.thawed.items() if group in fresh}
    position.done = {index: count for index, count in position.done.items() if index < optimizers}
    plan.skip_finished(position)


def warn_of_differences(found: Sequence[str], position: Position, plan: Plan) -> None:
    """Say with what the run goes on under another schedule."""
    place = plan.where(position)
    counts = ", ".join(f"{group} {count}" for group, count in position.updates.items())
    text = (
        f"the checkpoint was made under {' and '.join(found)}\nBy `on_schedule_change: continue` the run goes on with its "
        f"counts: {counts}; {f'it goes on at {place}; ' if place else ''}what trains next: "
        f"{', '.join(sorted(plan.trainable(position)))}."
    )
    warnings.warn(shortened(text), stacklevel=3)


def warn_of_lost_value(at: Position, awaited: str | None, epoch: int) -> None:
    """Say that an epoch's value of a metric is lost to a checkpoint that was saved just before it was logged."""
    if at.epoch < epoch and awaited is not None and awaited not in at.heard:
        warnings.warn(
            f"the checkpoint was saved after the last batch of epoch {at.epoch} and before {awaited!r} was logged, and "
            f"Lightning goes on with epoch {epoch}: the phase that waits for it never sees that value. A checkpoint saved "
            "after validation, or at the epoch's end, has it.",
            stacklevel=3,
        )


def _difference(theirs: object, mine: object) -> str:
    """What differs between two parts of a configuration, in lines as one would write them in YAML."""
    before, after = (
        yaml.safe_dump(what, default_flow_style=None, sort_keys=False, width=10_000).splitlines()
        for what in (theirs, mine)
    )
    lines = difflib.unified_diff(before, after, "checkpoint", "this run", lineterm="", n=1)
    return "\n".join(line for line in lines if not line.startswith("@@"))
