"""Groups that a model's own structure suggests: embeddings, blocks, head, norms."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_freeze.errors import SelectionError, counted
from lightning_freeze.plan.schedule import ALL, REST
from lightning_freeze.plan.selectors import ParamNames, Selector, clean_name

_EMBEDDINGS, _HEAD, _NORMS = "embeddings", "head", "norms"
# Last segments of names as transformers, timm and torchvision write them.
_EMBEDDING_NAME = re.compile(r"(.+_)?emb(ed.*|s)?(_.+)?|pos(itions?)?|wte|wpe|stem|conv_proj|.+_tokens?")
_HEAD_NAME = re.compile(
    r"(.+_)?(heads?|classifiers?|score|pooler|predictions?|logits)|head_dist|fc|cls|qa_outputs|outputs?|proj_out|unembed"
)


def suggest_groups(module: nn.Module) -> dict[str, Selector]:
    """Groups for layer-wise schedules, as selectors that a user would write under ``groups:``.

    ``embeddings``, a family of blocks, ``head`` and ``norms``, each where the model has it; all else stays in ``rest``. A
    parameter belongs to the first of them that names it, so a tied head is part of the embeddings. What torch's
    AveragedModel holds is moved by the user.

    The blocks are the longest list of modules that is in no other such list: a ModuleList, a Sequential of one class or
    of containers, or containers numbered by name (``layer1`` … ``layer4``). So the stages of a Swin or a ResNet are its
    blocks. Lists as long as that, or of its name (``encoder.layers``, ``decoder.layers``), are families too. Without
    any list, the children of the outermost module that has several are the family.

    Args:
        module: The model. Nothing is suggested for parameters with ``requires_grad=False``.

    Returns:
        Group to selector, for `resolve_groups` or a callback's ``groups``.

    Raises:
        SelectionError: The model has no parameters that could train.

    Example:
        >>> layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        >>> model = nn.ModuleDict({
        ...     "embed": nn.Embedding(9, 4),
        ...     "encoder": nn.TransformerEncoder(layer, num_layers=3),
        ...     "head": nn.Linear(4, 9),
        ... })
        >>> suggest_groups(model)
        {'embeddings': 'embed', 'layers': {'each': 'encoder.layers.*'}, 'head': 'head'}
    """
    model = _Model(module)
    averaged = model.take_averaged()
    lists = _choose(list(model.lists("")))
    model.close(member for blocks in lists for member in blocks.members)
    suggested = {_EMBEDDINGS: model.take(_EMBEDDINGS, model.roots(model.is_embedding))}
    for blocks in lists:
        name = _family_name(blocks.path, suggested, whole=len(lists) > 1)
        suggested[name] = model.take_each(name, blocks)
    # A head whose parameters are all tied to other groups is still the head: nothing else takes its place.
    head = model.take(_HEAD, model.roots(model.is_head) or model.last_leaf(lists))
    if not lists:
        suggested |= model.take_children(suggested)
    suggested[_HEAD] = head
    suggested[_NORMS] = model.take(_NORMS, model.roots(model.is_norm))
    return {name: selector for name, selector in (suggested | averaged).items() if selector is not None}


class _Blocks(NamedTuple):
    path: str
    members: Sequence[str]
    selector: str  # of all members
    rank: tuple[int, bool]  # how many train, and whether it is a ModuleList


def _choose(lists: Sequence[_Blocks]) -> list[_Blocks]:
    """The longest list and its equals; none in the head, one in the embeddings only if there is no other."""

    def inside(pattern: re.Pattern[str], blocks: _Blocks) -> bool:
        return any(map(pattern.fullmatch, blocks.path.split(".")))

    lists = [blocks for blocks in lists if not inside(_HEAD_NAME, blocks)]
    lists = [blocks for blocks in lists if not inside(_EMBEDDING_NAME, blocks)] or lists
    best = max(lists, key=lambda blocks: blocks.rank, default=None)
    return [b for b in lists if best and (b.rank == best.rank or _last(b.path) == _last(best.path))]


class _Model:
    """A model's names, while each of its parameters is given to the first group that takes it."""

    def __init__(self, module: nn.Module) -> None:
        names = ParamNames(module)
        self.below = names.below  # parents before what is below them, in the model's order
        self.parameters = names.parameters
        # A wrapper has the name of what it wraps; the innermost comes last and counts.
        self.modules = {clean_name(n): m for n, m in module.named_modules(remove_duplicate=False)}
        self.children: dict[str, list[str]] = {}
        for name in self.below:
            self.children.setdefault(name.rpartition(".")[0], []).append(name)
        self.live = {name for name, parameter in self.parameters.items() if parameter.requires_grad}
        if not self.live:
            if self.parameters:
                why = f"nothing has requires_grad=True ({counted(len(self.parameters), 'parameter')}). Set it True for what is to train."
            else:
                why = f"{type(module).__name__} has no parameters. If `configure_model` makes them, call this after it."
            raise SelectionError(f"there is nothing to group: {why}")
        self.owner: dict[int, str] = {}
        self.inputs = self._answers(module, "get_input_embeddings")
        self.outputs = self._answers(module, "get_output_embeddings")
        self.members: set[str] = set()
        self.above: set[str] = set()

    def _answers(self, module: nn.Module, method: str) -> set[int]:
        """What the outermost modules that have this method of transformers return."""
        getter = getattr(module, method, None)
        if not callable(getter):
            return {answer for child in module.children() for answer in self._answers(child, method)}
        try:
            answer = getter()
        except (NotImplementedError, AttributeError):  # how transformers says that there are none
            return set()
        return {id(answer)} if isinstance(answer, nn.Module) else set()

    def is_embedding(self, name: str) -> bool:
        module = self.modules.get(name)
        known = isinstance(module, nn.Embedding | nn.EmbeddingBag) or id(module) in self.inputs
        return known or bool(_EMBEDDING_NAME.fullmatch(_last(name)))

    def is_head(self, name: str) -> bool:
        module = self.modules.get(name)
        return module is not None and (id(module) in self.outputs or bool(_HEAD_NAME.fullmatch(_last(name))))

    def is_norm(self, name: str) -> bool:
        module = self.modules.get(name)  # a leaf: lucidrains' PreNorm holds the block that it normalises for
        return module is not None and "norm" in type(module).__name__.lower() and not self._modules_in(name)

    def _modules_in(self, path: str) -> list[str]:
        return [child for child in self.children.get(path, ()) if child in self.modules]

    def lists(self, path: str) -> Iterator[_Blocks]:
        """The outermost lists of blocks at or below a path, each module's once."""
        children = self._modules_in(path)
        here = list(self._lists_at(path, children))
        yield from here
        seen = {member for blocks in here for member in blocks.members}
        inside = [blocks for child in children if child not in seen for blocks in self.lists(child)]
        if not seen and not any(blocks.rank[0] >= len(children) for blocks in inside):  # it wraps none that is as long
            inside = self._chain(path, children) or inside
        once: dict[int, _Blocks] = {}  # a list may have several names
        for blocks in inside:
            once.setdefault(id(self.modules[blocks.members[0]]), blocks)
        yield from once.values()

    def _chain(self, path: str, children: Sequence[str]) -> list[_Blocks]:
        """A Sequential of containers, such as MobileNet's `features`, as a list of blocks."""
        numbered = all(_last(child).isdigit() and self._modules_in(child) for child in children)
        chain = numbered and isinstance(self.modules[path], nn.Sequential)
        return list(self._list(path, children, _join(path, "*"))) if chain else []

    def _lists_at(self, path: str, children: Sequence[str]) -> Iterator[_Blocks]:
        alike: dict[tuple[str, type], list[str]] = {}
        for child in children:
            alike.setdefault((child.rstrip("0123456789"), type(self.modules[child])), []).append(child)
        module = self.modules[path]
        if isinstance(module, nn.ModuleList) or (isinstance(module, nn.Sequential) and len(alike) == 1):
            yield from self._list(path, children, _join(path, "*"))
            return
        for (stem, _), members in alike.items():
            selector = _range(members, [child for child in children if child not in members])
            if _last(stem) and selector and all(map(self._modules_in, members)):
                yield from self._list(stem.rstrip("_"), members, selector)

    def _list(self, path: str, members: Sequence[str], selector: str) -> Iterator[_Blocks]:
        live = sum(not self.live.isdisjoint(self.below[member]) for member in members)
        if live and len({id(self.modules[member]) for member in members}) > 1:
            yield _Blocks(path, members, selector, (live, isinstance(self.modules.get(path), nn.ModuleList)))

    def close(self, members: Iterable[str]) -> None:
        """Keep the blocks, and what holds them, from being taken for something else."""
        self.members.update(members)
        self.above.update(above for member in self.members for above in _upwards(member))

    def roots(self, matches: Callable[[str], bool]) -> list[str]:
        """The outermost names outside of the blocks for which a predicate holds."""
        found: dict[str, None] = {}
        for name in self.below:
            inside = any(above in found or above in self.members for above in _upwards(name))
            if not inside and name not in self.above and matches(name):
                found[name] = None
        return list(found)

    def last_leaf(self, lists: Sequence[_Blocks]) -> list[str]:
        """The last module that holds parameters of its own, is not a norm, and comes after the blocks."""
        leaves = self.roots(lambda name: any(c in self.parameters for c in self.children.get(name, ())))
        leaves = [leaf for leaf in leaves if self._free(leaf) and not self.is_norm(leaf)]
        order = {name: number for number, name in enumerate(self.below)}
        end = max((order[member] for blocks in lists for member in blocks.members), default=-1)
        return [leaf for leaf in leaves[-1:] if order[leaf] > end]

    def _free(self, root: str) -> list[str]:
        return [n for n in self.below[root] if n in self.live and id(self.parameters[n]) not in self.owner]

    def _claim(self, group: str, root: str) -> bool:
        free = self._free(root)
        self.owner.update({id(self.parameters[name]): group for name in free})
        return bool(free)

    def take(self, group: str, roots: Iterable[str]) -> Selector | None:
        """A group of what nobody owns yet below some names; None if that is nothing."""
        kept = [root for root in roots if self._claim(group, root)]
        if not kept:
            return None
        own, others = self._cover(kept, group, True), self._cover(kept, group, False)
        if others and len(kept) + len(others) < len(own):
            return {"select": _short(kept), "except": _short(others)}
        return _short(own)

    def take_averaged(self) -> dict[str, Selector | None]:
        """What torch's AveragedModel holds, which the user's own code moves."""
        roots = [name for name, m in self.modules.items() if name and isinstance(m, AveragedModel)]
        self.live.difference_update(*(self.below[root] for root in roots))
        return {root.replace(".", "_"): {"select": root, "by": "user"} for root in roots}

    def take_each(self, group: str, blocks: _Blocks) -> Selector | None:
        """A family of what nobody owns yet in the members of a list; None if that is nothing."""
        kept = [member for member in blocks.members if self._claim(f"{group}/{member}", member)]
        if not kept:
            return None
        selector, gone = blocks.selector, [member for member in blocks.members if member not in kept]
        ranged = _range(kept, gone) if gone else None
        if ranged:
            selector, gone = ranged, []
        for member in kept:
            gone += self._cover([member], f"{group}/{member}", False)
        return {"each": selector, "except": _short(gone)} if gone else {"each": selector}

    def take_children(self, taken: Mapping[str, object]) -> dict[str, Selector | None]:
        """What is left, by the children of the outermost module that has several with something left."""
        path = ""
        while len(left := [c for c in self.children.get(path, ()) if self._free(c)]) == 1 and left[0] in self.modules:
            path = left[0]
        if not left or (path and self.is_norm(path)):
            return {}
        name = _family_name(path, taken)
        if all(child in self.parameters for child in left):  # a leaf is not a family
            return {name: self.take(name, [path]) if path else "**"}
        return {name: self.take_each(name, _Blocks(path, self.children[path], _join(path, "*"), (0, False)))}

    def _cover(self, roots: Sequence[str], group: str, owned: bool) -> list[str]:
        """The fewest names, at or below the roots, of what trains there and is owned by a group, or is not."""
        found: list[str] = []
        for root in roots:
            live = [self.owner.get(id(self.parameters[name])) for name in self.below[root] if name in self.live]
            fits = {(owner == group) == owned for owner in live}
            if fits == {True}:
                found.append(root)
            elif True in fits:
                found += self._cover(self.children[root], group, owned)
        return found


def _family_name(path: str, taken: Mapping[str, object], whole: bool = False) -> str:
    """The list's own name, or where that is taken or a number its whole path, or something more."""
    own = [segment for segment in path.split(".") if segment and not segment.isdigit()][-1:] or ["layers"]
    long = path.replace(".", "_")
    names = [re.sub(r"\W", "_", name) for name in ([] if whole else own) + [long] if name and not name.isdigit()] or own
    reserved = {_EMBEDDINGS, _HEAD, _NORMS, ALL, REST, *taken}
    while names[0] in reserved:
        names = names[1:] or [f"{names[0]}_blocks"]
    return names[0]


def _range(members: Sequence[str], others: Iterable[str]) -> str | None:
    """One selector of members numbered without gaps, ``layers.{2..5}``; None where it would take others too."""
    split = [re.fullmatch(r"(.*?)(0|[1-9]\d*)", member) for member in members]
    stems = {match[1] for match in split if match}
    if not all(split) or len(stems) != 1:
        return None
    stem, numbers = stems.pop(), [int(match[2]) for match in split if match]
    low, high = min(numbers), max(numbers)
    if {f"{stem}{number}" for number in range(low, high + 1)}.intersection(others):
        return None
    return f"{stem}{{{low}..{high}}}"


def _upwards(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _join(path: str, segment: str) -> str:
    return f"{path}.{segment}" if path else segment


def _short(names: list[str]) -> str | list[str]:
    return names[0] if len(names) == 1 else names
