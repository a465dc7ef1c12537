"""`audit_inputs`: every field of what it finds, declarations, and what it does with errors of its own."""

from __future__ import annotations

import functools
import inspect
import pkgutil
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_freeze import audit_inputs
from lightning_freeze.inputs.audit import InputsAudit
from lightning_freeze.inputs.declarations import DeclarationError
from lightning_freeze.inputs.tracer import Tracer
from lightning_freeze.report.findings import Finding


class Ignores(nn.Module):
    """Never loads the mask."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x + 1


class Asks(nn.Module):
    """Only asks whether there is one."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x + 1 if mask is not None else x


class Drops(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        mask.exp()
        return x + 1


class Shapes(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x * mask.shape[0]


class Sometimes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.on = True

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + mask if self.on else x


class Uses(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + mask


class Swallows(nn.Module):
    def forward(self, x: Tensor, **kw: Any) -> Tensor:
        return x + 1


SEEN: list[int] = []


class CannotBeRunAgain(nn.Module):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        SEEN.append(1)
        return x + 1 if mask is not None else x


class Middle(nn.Module):
    def __init__(self, child: nn.Module) -> None:
        super().__init__()
        self.child = child

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        return self.child(x, given)


class Outer(nn.Module):
    def __init__(self, child: nn.Module) -> None:
        super().__init__()
        self.middle = Middle(child)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return self.middle(x, attention_mask)


def t(*shape: int) -> Tensor:
    return torch.ones(*(shape or (4,)))


def ran(module: nn.Module, *args: Any, calls: int = 1, **options: Any) -> InputsAudit:
    args = args or (t(), t())
    with audit_inputs(module, **options) as audit:
        for _ in range(calls):
            module(*args)
    assert audit.failure is None, audit.failure
    return audit


def only(audit: InputsAudit) -> Finding:
    (finding,) = audit.findings
    return finding


# --- kind, severity, proof

# name: (module, kind, severity, confirmed, confirmed without a replay)
KINDS: dict[str, tuple[Callable[[], nn.Module], str, str, bool, bool]] = {
    "never loaded": (Ignores, "unused", "warning", True, True),
    "asked for": (Asks, "unused", "warning", True, False),
    "dropped": (Drops, "dead", "warning", True, False),
    "for its shape": (Shapes, "metadata", "info", True, False),
    "not to be run again": (CannotBeRunAgain, "unused", "info", False, False),
}


@pytest.mark.parametrize("replay", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_kind_severity_and_proof(name: str, replay: bool) -> None:
    make, kind, severity, confirmed, by_code = KINDS[name]
    found = only(ran(make(), replay=replay))
    sure = confirmed if replay else by_code
    assert (found.kind, found.confirmed) == (kind, sure)
    assert found.severity == (severity if sure else "info")
    assert ("candidate" in found.message) is not sure


def test_what_is_used_is_not_found() -> None:
    audit = ran(Uses())
    assert audit.findings == []
    assert audit.verdicts == {("", "x"): "used", ("", "mask"): "used"}


def test_what_is_swallowed_ranks_lower() -> None:
    module = Swallows()
    with audit_inputs(module) as audit:
        module(t(), m=t())
    found = only(audit)
    assert (found.argument, found.kind, found.confirmed, found.severity) == ("kw['m']", "unused", True, "info")
    assert "swallowed by `**kw`" in found.message


# --- every field


def test_every_field_of_a_finding() -> None:
    module = Outer(Ignores())
    x, mask = t(), t(2, 3)
    found = only(ran(module, x, mask, calls=3))
    code = inspect.unwrap(Ignores.forward).__code__
    assert found == Finding(
        audit="inputs",
        kind="unused",
        severity="warning",
        message=found.message,
        cause="never_used",
        module="middle.child",
        module_class="Ignores",
        argument="mask",
        confirmed=True,
        calls=(0, 3),
        bytes_passed=24,
        bytes_sole=0,
        bytes_kept=0,
        source=(code.co_filename, code.co_firstlineno),
    )
    assert Path(code.co_filename) == Path(__file__)
    assert inspect.getsourcelines(Ignores.forward)[1] == code.co_firstlineno
    for word in ("'middle.child' (Ignores)", f"test_audit.py:{code.co_firstlineno}", "(used in 0 of 3 calls)"):
        assert word in found.message
    way = found.message.index("It comes down from `attention_mask`")
    assert found.message.index("`given` of 'middle'") > way
    assert (
        ran(module, x, mask).verdicts["middle", "given"]
        == ran(module, x, mask).verdicts["", "attention_mask"]
        == "passed_through"
    )


def test_calls_count_uses_and_all_calls() -> None:
    module = Sometimes()
    with audit_inputs(module) as audit:
        for module.on in (True, False, True, True):
            module(t(), t())
        module.on = False
        module(t(), None)  # what is not passed does not count
    found = only(audit)
    assert (found.kind, found.calls, found.severity, found.confirmed) == ("conditional", (3, 4), "info", True)


def test_the_line_is_that_of_the_forward_behind_a_decorator() -> None:
    found = only(ran(Decorated()))
    assert found.source is not None
    assert Path(found.source[0]) == Path(__file__)
    assert "def forward" in "".join(
        inspect.getsource(sys.modules[__name__]).splitlines(keepends=True)[found.source[1] - 1 :][:2]
    )


class Decorated(nn.Module):
    @torch.no_grad()
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x + 1


# --- bytes


class Makes(nn.Module):
    """Hands a child a tensor that it makes for it."""

    def __init__(self, keep: bool = False) -> None:
        super().__init__()
        self.child = Ignores()
        self.keep = keep
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if not self.keep:
            return self.child(x, torch.ones(2, 3))
        made = torch.ones(2, 3)
        self.kept.append(made)
        return self.child(x, made)


class Saves(nn.Module):
    """Never loads the mask, and needs a backward."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return x.exp()


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.child = Saves()

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.child, self.linear(x), x.detach() * 2, use_reentrant=False)  # type: ignore[no-any-return]


def test_bytes_that_the_call_alone_holds() -> None:
    found = only(ran(Makes(), t()))
    assert (found.bytes_passed, found.bytes_sole, found.bytes_kept) == (24, 24, 0)


def test_bytes_that_stay_after_the_forward() -> None:
    found = only(ran(Makes(keep=True), t()))
    assert (found.bytes_passed, found.bytes_sole, found.bytes_kept) == (24, 0, 24)


def test_bytes_that_checkpointing_keeps_until_backward() -> None:
    module = Checkpointed()
    with audit_inputs(module) as audit:
        result = module(t(2, 4))
    found = only(audit)
    assert (found.module, found.argument, found.bytes_kept) == ("child", "mask", 32)
    result.sum().backward()


def test_bytes_of_a_view_are_not_the_call_s_alone() -> None:
    base = torch.ones(10)

    class Hands(Makes):
        def forward(self, x: Tensor) -> Tensor:
            return self.child(x, base[:4])

    assert only(ran(Hands(), t())).bytes_sole == 0


def test_bytes_are_the_most_of_all_calls() -> None:
    module = Ignores()
    with audit_inputs(module) as audit:
        for size in (2, 9, 4):
            module(t(), t(size))
    assert only(audit).bytes_passed == 36


# --- declarations


class Declares(Shapes):
    metadata_inputs = ("mask",)


class Inherits(Declares): ...


class DeclaresAndDrops(Drops):
    metadata_inputs = ("mask",)


class DeclaresAndUses(Uses):
    metadata_inputs = ("mask",)


class DeclaresSentence(Shapes):
    metadata_inputs = "mask"


REASON = {"reason": "why"}

# name: (module, options, kinds that are found)
DECLARED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], list[str]]] = {
    "on the class": (Declares, {}, []),
    "on a class that it inherits from": (Inherits, {}, []),
    "by key": (Shapes, {"metadata_inputs": ["Shapes.mask"]}, []),
    "by the key of a base": (Inherits, {"metadata_inputs": ["Shapes.mask"]}, []),
    "by another class's key": (Shapes, {"metadata_inputs": ["Drops.mask"]}, ["metadata"]),
    "by another argument's key": (Shapes, {"metadata_inputs": ["Shapes.x"]}, ["metadata", "stale"]),
    "dead is more than metadata": (DeclaresAndDrops, {}, ["dead"]),
    "dead is more than metadata, by key": (Drops, {"metadata_inputs": ["Drops.mask"]}, ["dead"]),
    "used after all, by key": (Uses, {"metadata_inputs": ["Uses.mask"]}, ["stale"]),
    "whitelisted": (Drops, {"whitelist": {"Drops.mask": "why"}}, []),
    "whitelisted for another class": (Drops, {"whitelist": {"Uses.mask": "why"}}, ["dead"]),
    "whitelisted by its base": (Inherits, {"whitelist": {"Shapes.mask": "why"}}, []),
    "whitelisted as a module": (Shapes, {"whitelist": {"Module.mask": "why"}}, ["metadata"]),
    "whitelisted and used": (Uses, {"whitelist": {"Uses.mask": "why"}}, ["stale"]),
    "a condition that holds": (Drops, {"whitelist": {"Drops.mask": {**REASON, "when": {"training": True}}}}, []),
    "a condition that does not": (Drops, {"whitelist": {"Drops.mask": {**REASON, "when": {"training": False}}}}, ["dead"]),
    "a condition that does not, and used": (Uses, {"whitelist": {"Uses.mask": {**REASON, "when": {"training": False}}}}, []),
    "swallowed, by its path": (Swallows, {"whitelist": {"Swallows.kw['m']": "why"}}, []),
    "swallowed, by its owner": (Swallows, {"whitelist": {"Swallows.kw": "why"}}, []),
}  # fmt: skip


@pytest.mark.parametrize("name", DECLARED)
def test_what_is_declared_is_not_found(name: str) -> None:
    make, options, kinds = DECLARED[name]
    module = make()
    with audit_inputs(module, **options) as audit:
        module(t(), **({"m": t()} if isinstance(module, Swallows) else {"mask": t()}))
    assert audit.failure is None, audit.failure
    found = audit.findings + audit.stale
    assert [finding.kind for finding in found] == kinds
    assert [finding.audit for finding in found] == ["inputs"] * len(kinds)


@pytest.mark.parametrize("name", [name for name, (_, options, kinds) in DECLARED.items() if options and kinds == []])
def test_without_the_declaration_it_is_found(name: str) -> None:
    make, options, _ = DECLARED[name]
    if "and used" in name:
        options = {"whitelist": {"Uses.mask": "why"}}
    elif make is not Inherits:
        options = {}
    else:
        make, options = Shapes, {}
    module = make()
    with audit_inputs(module, **options) as audit:
        module(t(), **({"m": t()} if isinstance(module, Swallows) else {"mask": t()}))
    assert len(audit.findings + audit.stale) == 1


def test_a_declaration_of_a_class_that_no_longer_holds_is_stale() -> None:
    audit = ran(DeclaresAndUses())
    assert audit.findings == []
    (found,) = audit.stale
    assert (found.kind, found.module_class, found.argument) == ("stale", "DeclaresAndUses", "mask")


def test_a_class_that_declares_a_string_is_told_so() -> None:
    module = DeclaresSentence()
    with pytest.raises(DeclarationError, match="is not a list of argument names"), audit_inputs(module):
        module(t(), t())


def test_an_entry_whose_module_was_never_called_is_not_stale() -> None:
    audit = ran(Uses(), whitelist={"Absent.mask": "why"}, metadata_inputs=["Absent.like"])
    assert audit.findings == audit.stale == []


def test_an_entry_that_matches_in_one_call_is_not_stale() -> None:
    module = Sometimes()
    with audit_inputs(module, whitelist={"Sometimes.mask": "why"}) as audit:
        for module.on in (True, False):
            module(t(), t())
    assert audit.findings == audit.stale == []


def test_an_entry_that_matched_before_a_reset_is_not_stale() -> None:
    module = Sometimes()
    audit = audit_inputs(module, whitelist={"Sometimes.mask": "why"})
    for module.on in (False, True):
        with audit:
            module(t(), t())
        audit.reset()
    assert audit.stale == []


class Holder(nn.Module):
    """Holds a block under a name."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Uses()])

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.blocks[0](x, mask)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"whitelist": {"Uses.mas": "why"}}, r"Uses.forward takes no `mas`\. Did you mean 'mask'"),
        ({"whitelist": {"Use.mask": "why"}}, r"no module of a class 'Use' was called\. Did you mean 'Uses'"),
        ({"whitelist": {"blocks.0.mask": "why"}}, r"'blocks.0' is a module; entries are by class: `Uses.mask`"),
        ({"whitelist": {"models.Uses.mask": "why"}}, r"by the class's name alone: `Uses.mask`"),
        ({"metadata_inputs": ["Uses.like"]}, r"metadata_inputs: .* Uses.forward takes no `like`"),
        (
            {"whitelist": {"Uses.mask": {**REASON, "when": {"trainig": True}}}},
            r"no attribute 'trainig'\. Did you mean 'training'",
        ),
        (
            {"whitelist": {"Uses.mask": {**REASON, "when": {"training": "true"}}}},
            r"'true' is a string\. Write training: true",
        ),
    ],
)
def test_an_entry_that_can_match_nothing_is_stale_and_says_why(options: Any, says: str) -> None:
    audit = ran(Holder(), **options)
    assert audit.findings == []
    (found,) = audit.stale
    assert (found.kind, found.severity) == ("stale", "warning")
    assert re.search(says, found.message), found.message


def test_a_class_that_declares_what_it_does_not_take_is_told_so() -> None:
    class Declares(nn.Module):
        metadata_inputs = ("lik",)

        def forward(self, x: Tensor, like: Tensor) -> Tensor:
            return x.expand(like.shape)

    audit = audit_inputs(Declares())
    with pytest.raises(DeclarationError, match=r"'lik' is not an argument of forward\. Did you mean 'like'"), audit:
        pass


def test_what_is_no_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"'net' is not a torch\.nn\.Module"):
        audit_inputs("net")  # type: ignore[arg-type]


def test_a_condition_excuses_only_the_calls_under_which_it_holds() -> None:
    module, known = Sometimes(), {"Sometimes.mask": {"reason": "why", "when": {"training": False}}}
    module.on = False
    with audit_inputs(module, whitelist=known) as audit:
        module.eval()(t(), t())
    assert audit.findings == []
    with audit:
        module.train()(t(), t())
    assert only(audit).kind == "unused"


@pytest.mark.parametrize(
    "options", [{"whitelist": {"mask": "why"}}, {"whitelist": {"A.x": ""}}, {"metadata_inputs": ["x"]}]
)
def test_a_declaration_that_cannot_be_read_is_refused_before_anything_runs(options: Any) -> None:
    with pytest.raises(DeclarationError):
        audit_inputs(Uses(), **options)


def test_what_is_excused_keeps_its_verdict() -> None:
    assert ran(Drops(), whitelist={"Drops.mask": "why"}).verdicts["", "mask"] == "dead"


# --- entering, leaving, forgetting


def test_verdicts_gather_over_entries_and_reset_forgets_them() -> None:
    module = Sometimes()
    with audit_inputs(module) as audit:
        module(t(), t())
    assert audit.findings == []
    module.on = False
    with audit:
        module(t(), t())
    assert audit.verdicts["", "mask"] == "conditional"
    audit.reset()
    assert audit.verdicts == {}
    assert audit.findings == []
    with audit:
        module(t(), t())
    found = only(audit)
    assert (found.kind, found.calls) == ("unused", (0, 1))


def test_verdicts_are_a_copy() -> None:
    audit = ran(Uses())
    audit.verdicts.clear()
    audit.findings.append(stand_in())
    assert len(audit.verdicts) == 2
    assert audit.findings == []


def stand_in() -> Finding:
    return Finding(audit="inputs", kind="unused", severity="info", message="")


def test_one_at_a_time() -> None:
    with audit_inputs(Uses()) as first:
        with pytest.raises(RuntimeError, match=r"already running.*one at a time"):
            audit_inputs(Uses()).__enter__()
        assert Tracer.active is first._tracer
    assert Tracer.active is None
    ran(Uses())


def test_what_runs_outside_is_not_watched() -> None:
    module = Drops()
    audit = audit_inputs(module)
    module(t(), t())
    with audit:
        pass
    module(t(), t())
    assert audit.verdicts == {}


def test_a_module_added_while_watching_is_watched() -> None:
    module = Middle(nn.Identity())
    with audit_inputs(module) as audit:
        module.child = Ignores()
        module(t(), t())
    assert audit.verdicts["child", "mask"] == "unused"


# --- errors


class Raises(nn.Module):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        raise KeyError("the user's own")


class Catches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.child = Raises()
        self.other = Ignores()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        try:
            return self.child(x, mask)
        except KeyError:
            return self.other(x, mask)


def test_an_error_of_the_module_s_goes_through_and_leaves_nothing() -> None:
    call, module = nn.Module.__call__, Middle(Raises())
    with pytest.raises(KeyError, match="the user's own"), audit_inputs(module) as audit:
        module(t(), t())
    assert nn.Module.__call__ is call
    assert torch._C._len_torch_dispatch_stack() == 0
    assert "shape" not in vars(Tensor)
    assert audit.verdicts == {}
    assert audit.failure is None


def test_a_call_that_raises_gets_no_verdict_and_its_caller_goes_on() -> None:
    audit = ran(Catches())
    assert ("child", "mask") not in audit.verdicts
    assert audit.verdicts["other", "mask"] == "unused"
    assert audit.verdicts["", "x"] == "used"


INNER = "lightning_freeze.inputs."
PLACES = [
    "calls.leaves_of", "calls.signature_of", "thread.Thread.begin", "thread.Thread.operator", "thread.Thread.end",
    "thread.Thread.conclude", "labels.Labels.survivors", "audit.InputsAudit._ended", "modules.Tree.locate",
    "declarations.Declared._excuse", "audit.InputsAudit._count", "audit.InputsAudit._outermost", "proofs.Replay",
    "proofs.ignores", "thread.Thread.metadata_read", "thread.Thread.values_read", "thread.Thread.aliased",
]  # fmt: skip


class Everything(nn.Module):
    """Goes by every way that is watched."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.outer = Outer(Asks())
        self.drops = Drops()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.drops(self.outer(self.linear(x), mask), mask)
        return x * x.shape[0] + x.detach().sum().item() + x.data.mean() + len(x.detach().numpy())


@pytest.mark.parametrize("place", PLACES)
def test_an_error_of_the_audit_s_own_does_not_break_the_run_and_is_shown(place: str, monkeypatch: Any) -> None:
    torch.manual_seed(0)
    module = Everything()
    plainly = module(t(), t())

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError("of our own")

    declared = {"Absent.mask": "so that declarations are looked at"}
    audit = audit_inputs(module, whitelist=declared)
    with monkeypatch.context() as patch:
        patch.setattr(INNER + place, broken)
        if place.startswith(("audit.", "modules.")):
            audit = audit_inputs(module, whitelist=declared)  # which takes its methods along
        audit.__enter__()
        assert torch.equal(module(t(), t()), plainly)
        assert torch.equal(module(t(), t()), plainly)
        with pytest.warns(UserWarning, match="stood aside after an error of its own"):
            audit.__exit__()
    assert isinstance(audit.failure, ZeroDivisionError)
    assert Tracer.active is None
    assert torch._C._len_torch_dispatch_stack() == 0
    audit = audit_inputs(module) if place.startswith(("audit.", "modules.")) else audit
    with audit:  # and the next one works
        module(t(), t())
    assert audit.failure is None
    assert audit.verdicts["drops", "mask"] == "dead"


def breaks_at(number: int, function: Any) -> Any:
    """A function whose call of that number raises."""
    calls: list[None] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(None)
        if len(calls) == number:
            raise ZeroDivisionError("of our own")
        return function(*args, **kwargs)

    return counted


INSTALLS = [
    ("audit._calibrate", 1), ("modules.Tree.read", 1), ("readers._resolve_names", 1),
    ("readers.Readers._noticed", 7), ("readers.Readers._aliasing", 1), ("tracer.Tracer.replacement", 1),
    ("tracer.Tracer.replacement", 2), ("tracer.Thread", 4), ("tracer._elsewhere", 4), ("tracer.Tracer._follow_compiler", 5),
]  # fmt: skip


@pytest.mark.parametrize(("place", "number"), INSTALLS)
def test_an_error_while_it_installs_itself_ends_no_run_and_leaves_no_patch(
    place: str, number: int, monkeypatch: Any
) -> None:
    torch.manual_seed(0)
    module, installed = Everything(), vars(Tensor).copy()
    plainly, call = module(t(), t()), nn.Module.__call__
    audit = audit_inputs(module)
    with monkeypatch.context() as patch:
        patch.setattr(INNER + place, breaks_at(number, pkgutil.resolve_name(INNER + place)))
        with pytest.warns(UserWarning, match=r"ZeroDivisionError: of our own\).*after that were not audited"), audit:
            assert torch.equal(module(t(), t()), plainly)
    assert (Tracer.active, nn.Module.__call__, vars(Tensor)) == (None, call, installed)
    assert torch._C._len_torch_dispatch_stack() == 0
    with audit:  # and the next batch is audited
        module(t(), t())
    assert audit.verdicts["drops", "mask"] == "dead"


def test_without_an_error_there_is_no_failure() -> None:
    assert ran(Everything()).failure is None


class ChangesItsMind(nn.Module):
    """A mapping that cannot be looked at."""

    def forward(self, batch: Any) -> Tensor:
        return torch.ones(1)


class Unlookable(dict):  # type: ignore[type-arg]
    def __getitem__(self, key: Any) -> Any:
        raise RuntimeError("lazy, and not ready")


def test_arguments_that_cannot_be_looked_at_do_not_break_the_run() -> None:
    module = ChangesItsMind()
    with audit_inputs(module) as audit:
        assert module(Unlookable(a=1)) == 1
    assert audit.failure is None or "not ready" in str(audit.failure)


# --- what a tensor is, beside its values

BEING: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "numel": lambda x, y: x * torch.numel(y),
    "is_floating_point": lambda x, y: x * torch.is_floating_point(y),
    "is_leaf": lambda x, y: x * y.is_leaf,
    "grad_fn": lambda x, y: x * (y.grad_fn is None),
    "result_type": lambda x, y: x.to(torch.result_type(x, y)) * 1,
    "broadcast_tensors": lambda x, y: torch.broadcast_tensors(x, y)[0] * 1,
    "meshgrid": lambda x, y: torch.meshgrid(x, y, indexing="ij")[0] * 1,
    "an attribute": lambda x, y: x * 2 if getattr(y, "flag", False) else x * 3,
}


@pytest.mark.parametrize("name", BEING)
def test_what_uses_no_value_of_a_tensor_but_what_it_is_is_not_called_unused(name: str) -> None:
    class Asks(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return BEING[name](x, y)

    x, y = torch.ones(3), torch.randn(3)
    y.flag = True  # type: ignore[attr-defined]
    audit = ran(Asks(), x, y)
    assert audit.verdicts["", "y"] == "metadata"


def test_a_tensor_that_is_asked_whether_it_is_another_is_used() -> None:
    class Compares(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x * 2 if x is y else x * 3

    x = torch.ones(3)
    assert ran(Compares(), x, x).verdicts["", "y"] == "used"


def test_what_a_hook_reads_of_a_tensor_handed_over_twice_is_no_fault() -> None:
    class First(nn.Module):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return x * 1

    module, x = First(), torch.ones(3)
    module.register_forward_pre_hook(lambda m, args, kwargs: ((args[0] + kwargs["mask"],), kwargs), with_kwargs=True)
    with audit_inputs(module) as audit:
        module(x, mask=x)
    assert audit.findings == []


def test_what_a_replay_refutes_in_one_call_does_not_hide_the_next() -> None:
    class Copies(nn.Module):
        use = True

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            _ = y * 2
            return x + torch.tensor([float(y[0]), 0.0]) if self.use else x * 1

    module = Copies()
    with audit_inputs(module) as audit:
        for module.use in (True, False):
            module(torch.ones(2), torch.randn(2))
    assert audit.verdicts["", "y"] == "conditional"


@pytest.mark.parametrize("name", ["CheckpointWrapper", "OptimizedModule", "DistributedDataParallel"])
def test_a_class_that_only_has_the_name_of_one_of_torch_s_wrappers_is_audited(name: str) -> None:
    class Wraps(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x * 1

    Wraps.__name__ = name
    audit = ran(Wraps())
    assert audit.failure is None
    assert audit.verdicts["", "mask" if ("", "mask") in audit.verdicts else "y"] == "unused"


class Picks(nn.Module):
    """Reads one part of its batch, and the first of what follows."""

    def forward(self, batch: Any, *more: Tensor) -> Tensor:
        return next(iter(batch.values() if isinstance(batch, dict) else batch)) * 1 + sum(more[:1])


def parts(kind: type, number: int = 2) -> Any:
    return {name: t() for name in "abc"[:number]} if kind is dict else kind(t() for _ in range(number))


@pytest.mark.parametrize(("kind", "key"), [(dict, "batch['b']"), (tuple, "batch[1]"), (list, "batch[1]")])
@pytest.mark.parametrize("depth", [0, 1])
def test_parts_of_the_root_s_own_batch_that_it_does_not_read_are_for_information(
    kind: type, key: str, depth: int
) -> None:
    root = Picks() if depth == 0 else nn.Sequential(Picks())
    with audit_inputs(root) as audit:
        root(parts(kind))
    (found,) = audit.findings
    assert (found.argument, found.kind, found.confirmed) == (key, "unused", True)
    assert found.severity == ("warning" if depth else "info")


def test_a_whole_argument_of_the_root_that_it_does_not_read_is_a_warning() -> None:
    found = {f.argument: f.severity for f in ran(Picks(), parts(dict), t(), t()).findings}
    assert found == {"batch['b']": "info", "more[1]": "warning"}


@pytest.mark.parametrize(
    ("forward", "says"), [(Everything.forward, False), (lambda self, x, mask: x * (mask is None or 1), True)]
)
def test_that_the_code_names_an_input_is_known_of_plain_code_alone(forward: Any, says: bool) -> None:
    class Names(nn.Module):
        pass

    Names.forward = forward if says else functools.wraps(forward)(lambda self, x, mask: x * 1)  # type: ignore[method-assign]
    (found,) = ran(Names()).findings
    assert found.confirmed
    assert ("The code does name it" in found.message) is says
