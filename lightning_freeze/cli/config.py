"""Configuration files: read strictly before jsonargparse does, and searched for the key at fault where it fails."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning_freeze import __all__ as public_names
from lightning_freeze.errors import SelectionError, did_you_mean
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
from lightning_freeze.yaml_file import Place, compose, read

_OURS = "lightning_freeze."
_CALLBACKS: dict[str, type] = {c.__name__: c for c in (FreezeScheduler, AlternatingFreeze, FreezeAudit, InputAudit)}
_SCHEDULES: dict[str, type[Schedule]] = {"Every": Every, "Phases": Phases}
_PARTS: dict[str, type] = {"until": Until, "pick": Pick, "audit": FreezeAudit}
_EXAMPLES = {"Every": "{periods: {weight1: 5}, of: weight2}", "Phases": "{phases: [{train: [all]}]}"}
_SPEC = ("class_path", "init_args")
# Where a LightningCLI, or a schedule of ours, takes the path of a further file.
_SUB_CONFIG = re.compile(
    r"((fit|validate|test|predict)\.)?(trainer|model|data|optimizer|lr_scheduler"
    r"|(trainer\.)?callbacks(\[\d+\])?(\.init_args\.schedule)?)"
)


def read_files(arguments: Sequence[str]) -> list[Place]:
    """Read every configuration file that the arguments name, and the files that those name."""
    roots: list[Place] = []
    waiting = [read(Path(value)) for value in _values(arguments, "--config", "-c") if value not in ("", ".")]
    while waiting:
        roots.append(waiting.pop(0))
        for place in roots[-1].walk():
            named = place.file()
            # Other values that end in .yaml are the user's own business.
            if named is not None and _SUB_CONFIG.fullmatch(place.key):
                waiting.append(read(named, place))
    return roots


def _values(arguments: Sequence[str], *flags: str) -> list[str]:
    """The values of some options."""
    pairs = [(*word.partition("="), following) for word, following in pairwise([*arguments, ""])]
    return [value if equals else following for flag, equals, value, following in pairs if flag in flags]


def _on_command_line(arguments: Sequence[str], key: str) -> list[Place]:
    """The values of an argument of a callback."""
    keys = (f"trainer.callbacks.{key}", f"trainer.callbacks.init_args.{key}")
    return [compose(value, key=each) for each in keys for value in _values(arguments, f"--{each}")]


def check_groups(roots: Sequence[Place], arguments: Sequence[str] = ()) -> None:
    """Check the selectors of our callbacks, which only a fit would read."""
    ours = [place.items() for place in _walk(roots) if _class_name(place) in _CALLBACKS]
    found = [items["init_args"].items().get("groups") for items in ours if "init_args" in items]
    for place in filter(None, [*found, *_on_command_line(arguments, "groups")]):
        for group, selector in place.items().items():
            try:
                check_selector(group, selector.plain())
            except SelectionError as error:
                raise selector.error(str(error)) from error


def explain(roots: Sequence[Place], arguments: Sequence[str] = (), written: Path | None = None) -> None:
    """Build our own parts of a configuration that failed, to raise a `ConfigError` at the key at fault.

    Nothing is raised where the fault is not ours. The whitelist that ``inputs`` will write need not exist yet.
    """
    for place in _on_command_line(arguments, "schedule"):
        build_schedule(place)
    for place in _walk(roots):
        name, items = _class_name(place), place.items()
        if name in _CALLBACKS:
            _build(place, _CALLBACKS[name], written)
        elif name not in public_names and str(items["class_path"].plain() if name else "") == _OURS + name:
            raise items["class_path"].error(f"lightning_freeze has no {name!r}.{did_you_mean(name, public_names)}")


def _walk(roots: Sequence[Place]) -> Iterable[Place]:
    return (place for root in roots for place in root.walk())


def _class_name(place: Place) -> str:
    """The class that a mapping's ``class_path`` names, if it is one of ours or a short name."""
    named = place.items().get("class_path")
    path = str(named.plain()) if named is not None else ""
    return path.rpartition(".")[2] if path.startswith(_OURS) or "." not in path else ""


def _build(place: Place, kind: Callable[..., Any], written: Path | None = None) -> Any:
    """Build a class from a mapping of its arguments, or one that holds it; an error names the key at fault."""
    if "class_path" in place.items():
        place = place.items().get("init_args", place)
    if not place.items() and place.plain():
        raise place.error(f"is {place.plain()!r}, but must be a mapping of the arguments of {kind.__name__}.")
    items = {key: value for key, value in place.items().items() if key != "class_path"}
    _check_keys(items, [*inspect.signature(kind).parameters], f" of {kind.__name__}")
    values = {key: _argument(key, value, written) for key, value in items.items()}
    try:
        inspect.signature(kind).bind(**values)
    except TypeError as error:
        raise place.error(f"{kind.__name__} cannot be made of this: {error}. Add the key.") from error
    try:
        return kind(**values)
    except DeclarationError as error:
        raise place_of(place, error).error(error.problem) from None
    except ValueError as error:
        raise _at_fault(place, getattr(error, "key", None)).error(str(error)) from error


def _at_fault(place: Place, key: str | None) -> Place:
    """The value under the key of an error, which may begin with the place's own."""
    below = {each.key: each for each in place.walk()}
    ends = [each for path, each in below.items() if path.endswith(f".{key}")]
    return below.get(f"{place.key}.{key}".strip("."), ends[0] if ends else place)


def _argument(key: str, place: Place, written: Path | None) -> Any:
    """An argument as jsonargparse would hand it over."""
    if key == "schedule":
        return build_schedule(place)
    if key == "phases" and place.elements():
        return [_element(element) for element in place.elements()]
    if key in _PARTS and place.items():
        return _part(place, _PARTS[key])
    file = place.file() if key == "whitelist" else None
    if file is not None:
        return {} if to_be_written(file, written) else read_declarations(file, place)[0]
    return place.plain()


def _part(place: Place, kind: type) -> Any:
    if "class_path" in place.items():
        _check_keys(place.items(), _SPEC)
    return _build(place, kind)


def build_schedule(place: Place, above: tuple[Path, ...] = ()) -> Schedule:
    """The schedule of a value of a YAML file; the files above are those that led to it."""
    named = place.file()
    if named is not None:
        if named.resolve() in above:
            raise place.error(f"the file {str(named)!r} names itself as its schedule. Write the schedule into it.")
        return build_schedule(read(named, place), (*above, named.resolve()))
    items = place.items()
    if "class_path" in items:
        return _of_class(place)
    if "phases" in items:
        phases: Phases = _build(place, Phases)
        return phases
    if list(items) == ["schedule"]:
        raise items["schedule"].error(
            "a schedule's file does not repeat the key `schedule:`. Begin it with `phases:` or `class_path:`."
        )
    raise place.error(
        f"`schedule` is {place.plain()!r}, which is not a schedule. Write `class_path: Every` with `init_args: {{periods: "
        "{weight1: 5}, of: weight2}`, or `phases: [{train: [head], updates: 10}, …]`, or the path of a YAML file that "
        "holds one of them."
    )


def _of_class(place: Place) -> Schedule:
    """The schedule of a mapping with ``class_path`` and ``init_args``."""
    path, name = place.items()["class_path"], _class_name(place)
    if name not in _SCHEDULES:
        written = str(path.plain())
        if not name:
            return Phases([Phase(["all"])])  # a class of the user's own: jsonargparse's to check
        raise path.error(f"`class_path` is {written!r}, which is not a schedule.{did_you_mean(name, _SCHEDULES, 2)}")
    _check_keys(place.items(), _SPEC)
    schedule: Schedule = _build(_init_args(place, name), _SCHEDULES[name])
    return schedule


def _init_args(place: Place, name: str) -> Place:
    arguments = place.items().get("init_args")
    if arguments is None:
        example = _EXAMPLES.get(name, "{train: [head], updates: 10}")
        raise place.error(f"`init_args` is missing: what {name} is to do, such as {example}.")
    return arguments


def _element(place: Place) -> Any:
    """A phase, or phases within phases."""
    items = place.items()
    if not items:
        raise place.error(
            f"a phase is {place.plain()!r}, but must be a mapping such as {{train: [head], updates: 10}}."
        )
    if "class_path" in items:
        return _element(_init_args(place, str(items["class_path"].plain()).rpartition(".")[2]))
    if "phases" in items:
        return _build(place, Phases)
    for key in items.keys() & {"seed", "change"}:
        raise items[key].error(f"`{key}` is not a key of a phase: a schedule has one, beside its outermost `phases:`.")
    if "pick" in items and "train" not in items:
        raise place.error("Phase has no 'train'. Add the key: `train: []` where the draw alone is to train.")
    return _build(place, Phase)


def _check_keys(given: dict[str, Place], known: Sequence[str], of: str = "") -> None:
    for key, value in given.items():
        if key not in known:
            raise value.error(f"{key!r} is not a key{of}.{did_you_mean(key, known)} Known: {', '.join(known)}.")


def locate(message: str, roots: Sequence[Place], arguments: Sequence[str] = ()) -> str:
    """Where a message comes from, as ``file, line, key: `` or ``--option: ``; nothing where no key is quoted."""
    places = {place.key: f"{place.where}: " for place in _walk(roots)}
    flags = [word.partition("=")[0].rstrip("+") for word in arguments if word.startswith("--")]
    places |= {flag[2:]: f"{flag}: " for flag in flags}
    for word in re.findall(r"""["'`]([\w.\[\]]+)["'`]""", message):
        ends = [where for key, where in places.items() if key.endswith(f".{word}")]
        if word in places or ends:
            return places.get(word) or (ends[-1] if ends[-1].startswith("--") else ends[0])
    return ""


def placed(key: str, problem: str, roots: Sequence[Place], arguments: Sequence[str]) -> str:
    """What is wrong with a key, led by its place."""
    parts = key.split(".")
    words = [key, parts[-1], *(".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))]
    where = locate(" ".join(f"'{word}'" for word in words), roots, arguments)
    if not problem.startswith("is "):
        return (where or (f"{key}: " if key else "")) + problem
    return f"{where.removesuffix(': ')} {problem}" if where.startswith("--") else f"{where}`{key}` {problem}"


def where_class(name: str, roots: Sequence[Place]) -> str:
    """Where the configuration names a class, as `locate` writes it."""
    for place in _walk(roots):
        if place.key.endswith("class_path") and str(place.plain()).rpartition(".")[2] == name:
            return f"{place.where}: "
    return ""


def to_be_written(path: Path, written: Path | None) -> bool:
    """Whether a whitelist is the one that ``lightning-freeze inputs`` will write, and does not exist yet."""
    return written is not None and path.resolve() == written.resolve() and not path.exists()
