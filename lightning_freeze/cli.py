"""``lightning-freeze``: a LightningCLI whose errors name file, line and key.

``lightning-freeze fit --config configs/alternating.yaml`` runs any LightningModule and LightningDataModule that the
file names. Parsing, types, ``--help`` and ``--print_config`` are jsonargparse's; what is checked here, before it, is
what a stock LightningCLI lets pass (a key that stands twice) and what it cannot locate (an error in a schedule).
"""

from __future__ import annotations

import inspect
import logging
import re
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from pytorch_lightning import LightningModule
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback

from lightning_freeze import __all__ as public_names
from lightning_freeze import __version__
from lightning_freeze._yaml import ConfigError, Place, read
from lightning_freeze.callbacks import AlternatingFreeze, FreezeAudit, FreezeScheduler
from lightning_freeze.commands import COMMANDS, LIGHTNING_LOGGERS, Command, InputsCommand, command_of
from lightning_freeze.demos import MissingPackageError
from lightning_freeze.gate.refusals import UnsupportedError
from lightning_freeze.input_audit import InputAudit, place_of, read_declarations
from lightning_freeze.plan.every import Every
from lightning_freeze.plan.groups import SelectionError, check_selector
from lightning_freeze.plan.phase import Phase
from lightning_freeze.plan.phases import Phases
from lightning_freeze.plan.pick import Pick
from lightning_freeze.plan.schedule import Schedule, ScheduleError, nearest
from lightning_freeze.plan.until import Until
from lightning_freeze.probe_command import probe
from lightning_freeze.report.findings import FreezeViolation
from lightning_freeze.witness.inputs.whitelist import DeclarationError

_ABOUT = (
    "Lightning's own commands over any model and data that a configuration names (--config FILE), and four more: "
    + "; ".join(f"{name}: {meaning}" for name, meaning in COMMANDS.items())
    + ". Each has a --help."
)
_CALLBACKS: dict[str, type] = {c.__name__: c for c in (FreezeScheduler, AlternatingFreeze, FreezeAudit, InputAudit)}
_SCHEDULES: dict[str, type] = {"Every": Every, "Phases": Phases}
_PARTS: dict[str, type] = {"until": Until, "pick": Pick}
_OURS = "lightning_freeze."
_WHITELIST = re.compile(r".*callbacks\[\d+\]\.init_args\.whitelist")
_OTHERS = ("torch", "pytorch_lightning", "lightning.")
# Where a LightningCLI, or a schedule of ours, takes the path of a further file.
_SUB_CONFIG = re.compile(
    r"((fit|validate|test|predict)\.)?(trainer|model|data|optimizer|lr_scheduler"
    r"|(trainer\.)?callbacks(\[\d+\](\.init_args\.schedule)?)?)"
)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: The arguments; by default those of the process.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)  # a module in this folder can be named, as under `python -m`
    if arguments[:1] == ["probe"]:  # the one that needs neither model nor Trainer
        return probe(arguments[1:])
    command = command_of(arguments)
    if command is not None:
        arguments = command.as_fit
        args, sys.argv = (None, [sys.argv[0], *arguments]) if args is None else (arguments, sys.argv)
    levels = {name: logging.getLogger(name).level for name in LIGHTNING_LOGGERS}
    FreezeCLI.roots = roots = []
    FreezeCLI.command = command
    try:
        roots += check_files(arguments, _whitelist_of(command))
        FreezeCLI(
            LightningModule,
            None,  # any LightningDataModule, or none where the model brings its own data
            subclass_mode_model=True,
            parser_class=_Parser,
            parser_kwargs={"version": f"lightning-freeze {__version__}", "description": _ABOUT},
            save_config_kwargs={"overwrite": True},
            save_config_callback=SaveConfigCallback if command is None else None,
            trainer_defaults={} if command is None else {"callbacks": command.callbacks},
            args=None if args is None else arguments,
        )
    except ConfigError as error:
        raise SystemExit(f"lightning-freeze: error: {error}") from error
    except FreezeViolation as error:
        raise SystemExit(f"lightning-freeze: {error}") from error
    except (
        ScheduleError,
        SelectionError,
        UnsupportedError,
        DeclarationError,
    ) as error:  # found with the model, so where it stands is looked up again
        anywhere = isinstance(error, ScheduleError) and error.key is None  # of no configuration's making
        where = "" if anywhere else locate(str(error), roots) or _at_schedule(error, command, roots)
        raise SystemExit(f"lightning-freeze: error: {where}{error}") from error
    except Exception as error:
        missing = _missing_package(error)
        if missing is None:
            raise
        raise SystemExit(f"lightning-freeze: error: {_where_class(missing.kind, roots)}{missing}") from error
    finally:
        for name, level in levels.items():  # which some commands hush
            logging.getLogger(name).setLevel(level)


def _at_schedule(error: Exception, command: Command | None, roots: Sequence[Place]) -> str:
    """Where the schedule stands, for what is wrong between it and the model; `groups` makes none."""
    return "" if command is not None and command.name == "groups" else locate("'schedule'", roots)


def _missing_package(error: BaseException | None) -> MissingPackageError | None:
    """What lies behind an error where a demo lacks a package: jsonargparse makes errors of its own of it."""
    while error is not None and not isinstance(error, MissingPackageError):
        error = error.__cause__ or error.__context__
    return error


def _where_class(name: str, roots: Sequence[Place]) -> str:
    """Where the configuration names a class, as `locate` writes it."""
    for place in (place for root in roots for place in root.walk()):
        if place.key.endswith("class_path") and str(place.plain()).rpartition(".")[2] == name:
            return f"{place.path}, line {place.line}, {place.key}: "
    return ""


class FreezeCLI(LightningCLI):
    """Lightning's own command line over any model and data class."""

    roots: Sequence[Place] = ()
    command: Command | None = None

    def _run_subcommand(self, subcommand: str) -> None:
        """Run Lightning's subcommand, or our own, which fits only as far as it needs."""
        if self.command is None:
            return super()._run_subcommand(subcommand)
        self.command.run(self.trainer, self.model, lambda: super(FreezeCLI, self)._run_subcommand(subcommand))

    def before_instantiate_classes(self) -> None:
        """A whitelist's file is found beside the configuration that names it, as a schedule's is."""
        if self.command is not None:
            self.command.configure(self.config[self.subcommand]["trainer"])
        found = {
            str(at.plain()): at.file() for root in self.roots for at in root.walk() if _WHITELIST.fullmatch(at.key)
        }
        for callback in self.config[self.subcommand].get("trainer.callbacks") or []:
            arguments = callback.get("init_args") or {}
            path = found.get(str(arguments.get("whitelist")))
            if path is not None and callback["class_path"].rpartition(".")[2] == InputAudit.__name__:
                written = not _to_be_written(path, _whitelist_of(self.command))
                arguments["whitelist"] = str(path.resolve()) if written else None


def _whitelist_of(command: Command | None) -> Path | None:
    """The whitelist that a command will write."""
    return command.out if isinstance(command, InputsCommand) else None


def _to_be_written(path: Path, out: Path | None) -> bool:
    """Whether a whitelist is the very one that ``lightning-freeze inputs`` will write, and has nothing in it yet."""
    return out is not None and path.resolve() == out.resolve() and not path.exists()


class _Parser(LightningArgumentParser):
    """Lightning's parser, whose errors name the file and the line of the key at fault where they can."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with the message, led by where in the configuration files it comes from."""
        where = locate(message, FreezeCLI.roots)
        for parser in (self, getattr(ex, "subcommand_parser", None)):
            if FreezeCLI.command is not None and parser is not None:
                parser.prog = parser.prog.replace(" fit", f" {FreezeCLI.command.name}")  # what was typed
        super().error(f"{where}{message}{self._mend(message)}", ex)
        raise AssertionError("the parser's own error does not return")

    def print_usage(self, file: Any = None) -> None:
        """One line instead of every option, so that an error stays on the screen."""
        print("usage: lightning-freeze fit|validate|test|predict|plan|groups|inputs --config FILE [options]", file=file)
        print("       lightning-freeze probe [options]", file=file)

    def _mend(self, message: str) -> str:
        """The names nearest to one that is not accepted."""
        if "arguments are required" in message:
            return "\nGive a file that says so: --config FILE. configs/alternating.yaml shows one."
        absent = re.search(r"module '([^']+)' has no attribute '([^']+)'", message)
        if absent is not None:
            found = vars(sys.modules.get(absent[1], object)).items()
            own = [name for name, value in found if not getattr(value, "__module__", "torch").startswith(_OTHERS)]
            close = nearest(absent[2], own)
            return f"\nNearest: {', '.join(map(repr, close))}." if close else ""
        command = re.search(r"invalid choice: '([^']+)'", message)
        if command is not None and "predict" in message:
            every = [*("fit", "validate", "test", "predict"), *COMMANDS]
            return f"\nNearest: {_near(command[1], every)}. All: {', '.join(every)}."
        wrong = re.search(r"not accept option '([^']+)'", message)
        if wrong is None:
            return ""
        subcommands = getattr(self, "_subcommands_action", None)
        parsers = [self, *getattr(subcommands, "_name_parser_map", {}).values()]
        close = nearest(wrong[1], dict.fromkeys(action.dest for parser in parsers for action in parser._actions))
        return f"\nNearest: {', '.join(map(repr, close))}." if close else ""


def locate(message: str, roots: Sequence[Place]) -> str:
    """Where a message comes from, as ``file, line, key: ``, or nothing if no file holds a key that it quotes."""
    places = [place for root in roots for place in root.walk()]
    for word in re.findall(r"""["'`]([\w.\[\]]+)["'`]""", message):
        for matches in (str.__eq__, lambda key, end: key.endswith(f".{end}")):
            for place in places:
                if matches(place.key, word):
                    return f"{place.path}, line {place.line}, {place.key}: "
    return ""


# --- files ----------------------------------------------------------------------------------------------------------


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
            raise path.error(f"lightning_freeze has no {name!r}. Nearest: {_near(name, public_names)}.")
        return
    arguments = items.get("init_args")
    given = arguments.items() if arguments is not None else {}
    kind = _CALLBACKS[name]
    _check_keys(arguments or place, given, kind)
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key == "schedule":
            values[key] = build_schedule(value)
        elif key == "audit" and value.items():
            inner = value.items().get("init_args", value)
            _check_keys(value, value.items(), FreezeAudit, extra=("class_path", "init_args"))
            _check_keys(inner, inner.items(), FreezeAudit, extra=("class_path",))
            plain = inner.plain() or {}
            values[key] = _built(inner, FreezeAudit, {k: v for k, v in plain.items() if k != "class_path"})
        elif key == "whitelist" and (file := value.file()) is not None:
            values[key] = {} if _to_be_written(file, out) else read_declarations(file, value)[0]
        else:
            values[key] = value.plain()
    for group, selector in (given["groups"].items() if "groups" in given else {}).items():
        try:
            check_selector(group, selector.plain())
        except SelectionError as error:
            raise selector.error(str(error)) from error
    _built(arguments or place, kind, values)


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
        name = _class_name(items["class_path"])
        if name not in _SCHEDULES:
            path = str(items["class_path"].plain())
            if "." in path and not path.startswith(_OURS):
                return Phases([Phase(["all"])])  # a class of the user's own: jsonargparse's to check
            raise items["class_path"].error(
                f"`class_path` is {path!r}, which is no schedule. Nearest: {_near(path.rpartition('.')[2], _SCHEDULES)}."
            )
        _check_keys(place, items, None, extra=("class_path", "init_args"))
        arguments = items.get("init_args")
        if arguments is None:
            raise place.error(f"`init_args` is missing: what {name} is to do, such as {_example(name)}.")
        return _phases(arguments) if name == "Phases" else _every(arguments)
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


def _example(name: str) -> str:
    return "{periods: {weight1: 5}, of: weight2}" if name == "Every" else "{phases: [{train: [all]}]}"


def _every(place: Place) -> Schedule:
    _check_keys(place, place.items(), Every)
    every: Schedule = _built(place, Every, place.plain() or {})
    return every


def _phases(place: Place) -> Phases:
    items = place.items()
    _check_keys(place, items, Phases)
    values = {key: value.plain() for key, value in items.items()}
    if "phases" in items and items["phases"].elements():
        values["phases"] = [_element(element) for element in items["phases"].elements()]
    phases: Phases = _built(place, Phases, values)
    return phases


def _element(place: Place) -> Phase | Phases:
    items = place.items()
    if not items:
        raise place.error(
            f"a phase is {place.plain()!r}, but must be a mapping such as {{train: [head], updates: 10}}."
        )
    if "class_path" in items:
        inner = items.get("init_args", place)
        return _phases(inner) if "phases" in inner.items() else _element(inner)
    if "phases" in items:
        return _phases(place)
    if "seed" in items:
        raise items["seed"].error("`seed` is no key of a phase: a schedule has one, beside its outermost `phases:`.")
    if "pick" in items and "train" not in items:
        raise place.error("Phase has no 'train'. Add the key: `train: []` where the draw alone is to train.")
    _check_keys(place, items, Phase)
    values = place.plain()
    for key, kind in _PARTS.items():
        if key in items and items[key].items():
            _check_keys(items[key], items[key].items(), kind)
            _check_arguments(items[key], kind, items[key].plain())
            values[key] = _built(place, kind, items[key].plain())
    phase: Phase = _built(place, Phase, values)
    return phase


def _check_keys(place: Place, given: dict[str, Place], kind: type | None, extra: Sequence[str] = ()) -> None:
    known = [*(inspect.signature(kind).parameters if kind is not None else ()), *extra]
    for key, value in given.items():
        if key not in known:
            of = f" of {kind.__name__}" if kind is not None else ""
            raise value.error(f"{key!r} is no key{of}. Nearest: {_near(key, known)}. Known: {', '.join(known)}.")


def _near(name: str, among: Any) -> str:
    return ", ".join(map(repr, nearest(name, among) or list(among)[:3]))


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


if __name__ == "__main__":
    main()
