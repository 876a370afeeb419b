"""Names of tensors in other spellings, and weights that are stored as parts of larger tensors.

Each function returns the tensors as they would be named and shaped after a change that a hint can
ask for; nothing is read or written. Sources: torch's OptimizedModule (`_orig_mod`), FSDP and
activation checkpointing (`_fsdp_wrapped_module`, `_checkpoint_wrapped_module`), DistributedData-
Parallel (`module`), PEFT's tuners (`base_layer`); Mixtral's experts (w1, w2, w3); transformers 5's
conversion_mapping.py and modeling_deepseek_v3.py (experts as two 3-D tensors); mlx-lm's switch
layers; vLLM's packed_modules_mapping (qkv_proj, gate_up_proj).
"""

from collections import Counter
from typing import NamedTuple

from dstools_converters.checkpoint.differences import Names, Tensors
from dstools_converters.checkpoint.header import TensorInfo
from dstools_converters.families.names import Spelling
from dstools_converters.families.shapes import Model

Change = tuple[str, str]  # a part of a name, and what is in its place

WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module"}
WRAPPERS |= {"base_layer"}
SEGMENTS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}  # of Mixtral and of DeepSeek
SEGMENTS |= {"block_sparse_moe": "mlp", "shared_expert": "shared_experts"}
MAX_PREFIX = 4  # names before the model's own
# the last name of a module that holds several -> those, in the order of its rows
PACKED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "w13_weight": ("gate_proj", "up_proj"),  # vLLM's name in memory
    "w2_weight": ("down_proj",),
    "fused_qkv_a_proj": ("q_a_proj", "kv_a_proj_with_mqa"),
    "fused_qkv_a_proj_with_mqa": ("q_a_proj", "kv_a_proj_with_mqa"),
}
STACKS = ("experts", "switch_mlp")  # modules whose tensors hold all experts of a layer


class Respelled(NamedTuple):
    """Tensors after other names have been given to some of them."""

    tensors: dict[str, TensorInfo]
    renamed: dict[str, str]  # old name -> new name
    changes: dict[Change, int]  # (old, new) part of names -> how many names have it


class Part(NamedTuple):
    """A weight that is a part of a larger tensor."""

    weight: str
    place: str  # "gate_up_proj[0, 0:2048]"
    shape: tuple[int, ...]


class Split(NamedTuple):
    """Tensors after those that hold several weights have been split into them."""

    tensors: dict[str, TensorInfo]
    packed: list[TensorInfo]
    examples: list[Part]  # of one tensor of each kind, the first of its weights


def respell(tensors: Tensors, names: Names, spelling: Spelling) -> Respelled | None:
    """Return the tensors with names that the family has, where a few changes give them.

    A change is a part dropped from the front or put there, a wrapper left out, or another name for
    a module. Names that are taken already are not given again.
    """
    proposals: dict[tuple[Change, ...], dict[str, str]] = {}  # changes -> old name -> new name
    for name, parsed in names.items():
        if parsed is None:
            new, changes = _known_name(name, spelling)
            if changes:
                proposals.setdefault(changes, {})[name] = new
    renamed: dict[str, str] = {}
    taken = {name for name, parsed in names.items() if parsed is not None}
    made: Counter[Change] = Counter()
    for changes, renames in sorted(proposals.items(), key=lambda item: -len(item[1])):
        if taken.isdisjoint(renames.values()) and len(set(renames.values())) == len(renames):
            taken.update(renames.values())
            renamed |= renames
            made.update(dict.fromkeys(changes, len(renames)))
    if not renamed:
        return None
    bare_layers = spelling.layers.partition(".")[2]
    for name, parsed in names.items():  # those without a role share the prefix
        if parsed is None and name not in renamed:
            for old, new in made:
                if name.startswith(old or bare_layers) and new + name[len(old) :] not in taken:
                    renamed[name] = new + name[len(old) :]
                    break
    respelled = {}
    for name, info in tensors.items():
        new = renamed.get(name, name)
        respelled[new] = info._replace(name=new)
    return Respelled(respelled, renamed, dict(made))


def _known_name(name: str, spelling: Spelling) -> tuple[str, tuple[Change, ...]]:
    """Return a name that the family has, and the changes that lead to it; none lead nowhere."""
    changes: dict[Change, None] = {}
    segments = []
    for segment in name.split("."):
        if segment in WRAPPERS:
            changes[f"{segment}.", ""] = None
            continue
        segments.append(SEGMENTS.get(segment, segment))
        if segments[-1] != segment:
            changes[segment, segments[-1]] = None
    root = f"{spelling.layers.partition('.')[0]}."  # "model.", which a base model's names lack
    for dropped in range(min(MAX_PREFIX, len(segments) - 1) + 1):
        rest = ".".join(segments[dropped:])
        for added in ("", root):
            if spelling.parse(added + rest, 0) is not None:
                prefix = "".join(f"{segment}." for segment in segments[:dropped])
                if prefix or added:
                    changes[prefix, added] = None
                return added + rest, tuple(changes)
    return name, ()


def split(tensors: Tensors, names: Names, model: Model) -> Split | None:
    """Return the tensors with stacked experts and packed projections split into their weights.

    Takes only shapes that leave no doubt: rows that add up to those of the weights.
    """
    if model.num_layers > len(tensors):
        return None  # the config asks for far more than there is
    wanted = {model.spell(weight): shape for weight, shape, _ in model.kinds()}
    result, packed = dict(tensors), []
    examples: dict[str, list[Part]] = {}  # last name of a module -> first parts of the first such
    for name, parsed in names.items():
        info = tensors[name]
        parts = [] if parsed is not None else _parts(info, wanted)
        if parts and not any(part.weight in tensors for part in parts):
            del result[name]
            result |= {p.weight: info._replace(name=p.weight, shape=p.shape) for p in parts}
            packed.append(info)
            first = parts[: len(parts) // info.shape[0]] if len(info.shape) == 3 else parts
            examples.setdefault(parts[0].place.partition("[")[0], first)
    return (
        Split(result, packed, [part for parts in examples.values() for part in parts])
        if packed
        else None
    )


def _parts(info: TensorInfo, wanted: dict[str, tuple[int, ...]]) -> list[Part]:
    """Return the weights that a tensor holds, none where its shape or name says otherwise."""
    module, _, part = info.name.rpartition(".")
    if part not in ("weight", "bias"):  # experts in memory have no module of their own
        module, part = info.name, "weight"
    path, _, last = module.rpartition(".")
    own = PACKED.get(last, (SEGMENTS.get(last, last),))
    is_stack = len(info.shape) == 3 and path.rpartition(".")[2] in STACKS
    if not is_stack and len(own) == 1:
        return []
    modules, shape = [path], info.shape
    if is_stack:
        modules = [f"{path.rpartition('.')[0]}.experts.{n}" for n in range(shape[0])]
        shape = shape[1:]
    places, row = [], 0
    for name in own:
        size = wanted.get(f"{modules[0]}.{name}.{part}")
        if size is None or size[1:] != shape[1:]:
            return []
        places.append((name, size, f"{row}:{row + size[0]}" if len(own) > 1 else ""))
        row += size[0]
    if row != shape[0]:
        return []
    return [
        Part(
            f"{module}.{name}.{part}",
            f"{last}[{', '.join(filter(None, (str(number) * is_stack, rows)))}]",
            size,
        )
        for number, module in enumerate(modules)
        for name, size, rows in places
    ]
