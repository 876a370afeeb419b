from types import SimpleNamespace
from typing import Any

import pytest

from dstools_converters.export.folder import Port
from dstools_converters.export.trt.network import configure, describe, listener, load_plugins
from dstools_converters.export.trt.rtx import Built, Layer


class Logger:
    ERROR, INTERNAL_ERROR, WARNING = range(3)


class Registry:
    def __init__(self, brought: list[str] | None) -> None:
        self.all_creators = ["of TensorRT"]
        self.brought = brought

    def load_library(self, path: str) -> object:
        self.all_creators += [name for name in self.brought or [] if name not in self.all_creators]
        return None if self.brought is None else path


def test_errors_are_kept_and_warnings_are_not() -> None:
    log = listener(SimpleNamespace(ILogger=Logger))
    for severity in (Logger.WARNING, Logger.ERROR, Logger.INTERNAL_ERROR):
        log.log(severity, f"severity {severity}")
    assert log.errors == ["severity 0", "severity 1"]


@pytest.mark.parametrize(("brought", "is_loaded"), [(["DsMoE"], True), ([], False), (None, False)])
def test_a_library_is_loaded_if_its_creators_come(
    brought: list[str] | None, is_loaded: bool
) -> None:
    registry = Registry(brought)
    trt = SimpleNamespace(get_plugin_registry=lambda: registry)
    assert load_plugins(trt, "lib.so") is is_loaded
    assert not load_plugins(trt, "lib.so")  # a second time they are there already


def tensor(name: str, *shape: int) -> SimpleNamespace:
    return SimpleNamespace(name=name, dtype="DataType.HALF", shape=shape)


def test_layers_of_plugins_are_told_with_their_outputs() -> None:
    kinds = SimpleNamespace(PLUGIN_V3=1, SHUFFLE=2)  # a TensorRT without collectives
    y = tensor("y", -1, 8)
    layers = [
        SimpleNamespace(name=name, type=kind, num_outputs=1, get_output=lambda number: y)
        for name, kind in (("node", 1), ("other", 2))
    ]
    network: Any = SimpleNamespace(
        num_layers=2, get_layer=layers.__getitem__,
        num_inputs=1, get_input=lambda number: tensor("x", -1),
        num_outputs=1, get_output=lambda number: y,
    )  # fmt: skip
    built = describe(SimpleNamespace(LayerType=kinds), network, Built("11"))
    port = Port("y", "FLOAT16", ("-1", "8"))
    assert built.layers == (Layer("node", "PLUGIN_V3", (port,)),)
    assert (built.layer_count, built.outputs) == (2, (port,))
    assert built.inputs == (Port("x", "FLOAT16", ("-1",)),)


def test_a_configuration_has_all_profiles_and_leave_to_alias() -> None:
    told: list[tuple[object, ...]] = []
    profile = SimpleNamespace(set_shape=lambda *shapes: told.append(shapes))
    config = SimpleNamespace(
        add_optimization_profile=lambda given: told.append(("added",)),
        set_preview_feature=lambda *feature: told.append(feature),
    )
    builder = SimpleNamespace(
        create_builder_config=lambda: config, create_optimization_profile=lambda: profile
    )
    trt = SimpleNamespace(PreviewFeature=SimpleNamespace(ALIASED_PLUGIN_IO_10_03="alias"))
    sizes = ((1,), (2,), (4,))
    assert configure(trt, builder, ({"x": sizes}, {"x": sizes})) is config
    assert told == [("x", *sizes), ("added",), ("x", *sizes), ("added",), ("alias", True)]
