"""Planted faults: a kernel with one piece of its source replaced.

A step of the proof that never fails proves nothing. Each is therefore run on mutants of the shipped
kernels, and has to fail on those that are meant for it.
"""

from hashlib import sha256
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType


def mutate(module: ModuleType, old: str, new: str, folder: Path) -> ModuleType:
    """Return `module` anew with `old` replaced by `new`; its source is written into `folder`.

    Triton reads a kernel's source from its file, which has to stay as long as the mutant is used.
    Raises ValueError unless `old` occurs exactly once, so that a mutation that no longer applies
    is not taken for one that was caught.
    """
    assert module.__file__ is not None
    source = Path(module.__file__).read_text()
    if (count := source.count(old)) != 1:
        raise ValueError(f"{old!r} has to occur once in {module.__name__}, it does {count} times")
    mark = sha256(f"{old}\0{new}".encode()).hexdigest()[:8]
    path = folder / f"{module.__name__.rpartition('.')[2]}_{mark}.py"
    path.write_text(source.replace(old, new))
    spec = spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    mutant = module_from_spec(spec)
    spec.loader.exec_module(mutant)
    return mutant
