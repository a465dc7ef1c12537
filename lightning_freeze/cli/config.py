"""The configuration files of a command line, checked before jsonargparse reads them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning_freeze import __all__ as public_names
from lightning_freeze.errors import ScheduleError, SelectionError, nearest
from lightning_freeze.inputs.declarations import DeclarationError
from lightning_freeze.plan.every import Every
from lightning_freeze.plan.phase import Phase
from lightning_freeze.plan.phases import Phases
from lightning_freeze.plan.pick import Pick
from lightning_freeze.plan.schedule import Schedule
from lightning_freeze.plan.selectors import check_selector
from lightning_freeze.plan.until import Until
from lightning_freeze.trainer.declarations import place_of, read_declarations
from lightning_freeze.trainer.freeze_audit import FreezeAudit
from lightning_freeze.trainer.input_audit import InputAudit
from lightning_freeze.trainer.scheduler import AlternatingFreeze, FreezeScheduler
from lightning_freeze.yaml_file import Place, read

_OURS = "lightning_freeze."
_CALLBACKS: dict[str, type] = {c.__name__: c for c in (FreezeScheduler, AlternatingFreeze, FreezeAudit, InputAudit)}
_PARTS: dict[str, type] = {"until": Until, "pick": Pick}
_EXAMPLES = {"Every": "{periods: {weight1: 5}, of: weight2}", "Phases": "{phases: [{train: [all]}]}"}
# Where a LightningCLI, or a schedule of ours, takes the path of a further file.
_SUB_CONFIG = re.compile(
    r"((fit|validate|test|predict)\.)?(trainer|model|data|optimizer|lr_scheduler"
    r"|(trainer\.)?callbacks(\[\d+\](\.init_args\.schedule)?)?)"
)


def check_files(arguments: Sequence[str], out: Path | None = None) -> list[Place]:
    """Read every configuration file that the arguments name, and the files that those name, and check our own parts.

    Args:
        arguments: Those of the command line.
        out: The whitelist that ``lightning-freeze inputs`` writes, which need not be there before.

    Raises:
        ConfigError: With file, line and key.
    """
    roots: list[Place] = []
    waiting = [read(path) for path in _config_paths(arguments)]
    while waiting:
        root = waiting.pop(0)
        roots.append(root)
        for place in root.walk():
            named = place.file()
            # Other values that end in .yaml are the user's own business.
            if named is not None and _SUB_CONFIG.fullmatch(place.key):
                waiting.append(read(named, place))
            _check_callback(place, out)
    return roots


def _config_paths(arguments: Sequence[str]) -> list[Path]:
    found = []
    for flag, value in pairwise([*arguments, ""]):
        name, equals, given = flag.partition("=")
        if name in ("--config", "-c"):
            found.append(Path(given if equals else value))
    return [path for path in found if str(path) not in ("", ".")]


def _check_callback(place: Place, out: Path | None) -> None:
    """Build one of our callbacks as jsonargparse will, to name the key at fault if that fails."""
    items = place.items()
    path = items.get("class_path")
    name = _class_name(path)
    if name not in _CALLBACKS:
        if path is not None and str(path.plain()) == f"{_OURS}{name}" and name not in public_names:
            raise path.error(f"lightning_freeze has no {name!r}. Nearest: {near(name, public_names)}.")
        return
    given = items["init_args"].items() if "init_args" in items else {}
    _check_keys(given, _CALLBACKS[name])
    values = {key: _argument(key, value, out) for key, value in given.items()}
    _check_groups(given)
    _built(items.get("init_args", place), _CALLBACKS[name], values)


def _argument(key: str, place: Place, out: Path | None) -> Any:
    """An argument of a callback, as jsonargparse will hand it over."""
    if key == "schedule":
        return build_schedule(place)
    if key == "audit" and place.items():
        return _audit(place)
    file = place.file() if key == "whitelist" else None
    if file is not None:
        return {} if to_be_written(file, out) else read_declarations(file, place)[0]
    return place.plain()


def _audit(place: Place) -> Any:
    inner = place.items().get("init_args", place)
    _check_keys(place.items(), FreezeAudit, extra=("class_path", "init_args"))
    _check_keys(inner.items(), FreezeAudit, extra=("class_path",))
    return _built(
        inner, FreezeAudit, {key: value.plain() for key, value in inner.items().items() if key != "class_path"}
    )


def _check_groups(given: dict[str, Place]) -> None:
    groups = given["groups"].items() if "groups" in given else {}
    for group, selector in groups.items():
        try:
            check_selector(group, selector.plain())
        except SelectionError as error:
            raise selector.error(str(error)) from error


def build_schedule(place: Place, above: tuple[Path, ...] = ()) -> Schedule:
    """The schedule that a value of a YAML file stands for.

    Args:
        place: The value.
        above: The files that led to it.

    Raises:
        ConfigError: With file, line and key.
    """
    named = place.file()
    if named is not None:
        if named.resolve() in above:
            raise place.error(f"the file {str(named)!r} names itself as its schedule. Write the schedule into it.")
        return build_schedule(read(named, place), (*above, named.resolve()))
    items = place.items()
    if "class_path" in items:
        return _of_class(place, items["class_path"])
    if "phases" in items:
        return _phases(place)
    if list(items) == ["schedule"]:
        raise items["schedule"].error(
            "a schedule's file does not repeat the key `schedule:`. Begin it with what stands below: `phases:` or "
            "`class_path:`."
        )
    raise place.error(
        f"`schedule` is {place.plain()!r}, which is no schedule. Write `class_path: Every` with `init_args: {{periods: "
        "{weight1: 5}, of: weight2}`, or `phases: [{train: [head], updates: 10}, …]`, or the path of a YAML file that "
        "holds one of them."
    )


def _of_class(place: Place, path: Place) -> Schedule:
    """The schedule of a mapping with ``class_path`` and ``init_args``."""
    name, written = _class_name(path), str(path.plain())
    if name not in _SCHEDULES:
        if "." in written and not written.startswith(_OURS):
            return Phases([Phase(["all"])])  # a class of the user's own: jsonargparse's to check
        near_by = near(written.rpartition(".")[2], _SCHEDULES)
        raise path.error(f"`class_path` is {written!r}, which is no schedule. Nearest: {near_by}.")
    _check_keys(place.items(), None, extra=("class_path", "init_args"))
    return _SCHEDULES[name](_init_args(place, name))


def _init_args(place: Place, name: str) -> Place:
    arguments = place.items().get("init_args")
    if arguments is None:
        example = _EXAMPLES.get(name, "{train: [head], updates: 10}")
        raise place.error(f"`init_args` is missing: what {name} is to do, such as {example}.")
    return arguments


def _every(place: Place) -> Schedule:
    _check_keys(place.items(), Every)
    every: Schedule = _built(place, Every, place.plain() or {})
    return every


def _phases(place: Place) -> Phases:
    items = place.items()
    _check_keys(items, Phases)
    values = {key: value.plain() for key, value in items.items()}
    if "phases" in items and items["phases"].elements():
        values["phases"] = [_element(element) for element in items["phases"].elements()]
    phases: Phases = _built(place, Phases, values)
    return phases


_SCHEDULES: dict[str, Callable[[Place], Schedule]] = {"Every": _every, "Phases": _phases}


def _element(place: Place) -> Phase | Phases:
    items = place.items()
    if not items:
        raise place.error(
            f"a phase is {place.plain()!r}, but must be a mapping such as {{train: [head], updates: 10}}."
        )
    if "class_path" in items:
        return _element(_init_args(place, str(items["class_path"].plain()).rpartition(".")[2]))
    if "phases" in items:
        return _phases(place)
    if "seed" in items:
        raise items["seed"].error("`seed` is no key of a phase: a schedule has one, beside its outermost `phases:`.")
    if "pick" in items and "train" not in items:
        raise place.error("Phase has no 'train'. Add the key: `train: []` where the draw alone is to train.")
    _check_keys(items, Phase)
    values = place.plain()
    for key, part in items.items():
        if key in _PARTS and part.items():
            _check_keys(part.items(), _PARTS[key])
            _check_arguments(part, _PARTS[key], values[key])
            values[key] = _built(place, _PARTS[key], values[key])
    phase: Phase = _built(place, Phase, values)
    return phase


def _check_keys(given: dict[str, Place], kind: type | None, extra: Sequence[str] = ()) -> None:
    known = [*(inspect.signature(kind).parameters if kind is not None else ()), *extra]
    for key, value in given.items():
        if key not in known:
            of = f" of {kind.__name__}" if kind is not None else ""
            raise value.error(f"{key!r} is no key{of}. Nearest: {near(key, known)}. Known: {', '.join(known)}.")


def _built(place: Place, kind: Callable[..., Any], values: Any) -> Any:
    """What a class makes of values; an error of its is put where the key at fault stands."""
    if not isinstance(values, dict):
        raise place.error(f"the value is {values!r}, but must be a mapping of the arguments of {kind.__name__}.")
    _check_arguments(place, kind, values)
    try:
        return kind(**values)
    except DeclarationError as error:
        raise place_of(place, error).error(error.problem) from None
    except (ScheduleError, SelectionError, ValueError) as error:
        key = f"{place.key}.{getattr(error, 'key', None)}".removeprefix(".")
        raise next((below for below in place.walk() if below.key == key), place).error(str(error)) from error


def _check_arguments(place: Place, kind: Callable[..., Any], values: dict[str, Any]) -> None:
    try:
        inspect.signature(kind).bind(**values)
    except TypeError as error:
        raise place.error(f"{kind.__name__} cannot be made of this: {error}. Add the key.") from error


def _class_name(place: Place | None) -> str:
    """The class that ``class_path`` names, if it is one of ours or a short name."""
    path = str(place.plain()) if place is not None else ""
    return path.rpartition(".")[2] if path.startswith(_OURS) or "." not in path else ""


def locate(message: str, roots: Sequence[Place]) -> str:
    """Where a message comes from, as ``file, line, key: ``, or nothing if no file holds a key that it quotes."""
    places = [place for root in roots for place in root.walk()]
    for word in re.findall(r"""["'`]([\w.\[\]]+)["'`]""", message):
        for matches in (str.__eq__, lambda key, end: key.endswith(f".{end}")):
            for place in places:
                if matches(place.key, word):
                    return f"{place.path}, line {place.line}, {place.key}: "
    return ""


def to_be_written(path: Path, out: Path | None) -> bool:
    """Whether a whitelist is the very one that ``lightning-freeze inputs`` will write, and has nothing in it yet."""
    return out is not None and path.resolve() == out.resolve() and not path.exists()


def near(name: str, among: Any) -> str:
    """The nearest of some names, quoted; the first three where none is near."""
    return ", ".join(map(repr, nearest(name, among) or list(among)[:3]))
