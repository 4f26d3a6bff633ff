"""A stand-in for the parts of ComfyUI's `comfy_api.latest` that the nodes use, after its published signatures.

It refuses arguments that ComfyUI doesn't know, checks names and types between nodes, and hands over their outputs.
"""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

COMMON = {"display_name", "optional", "tooltip", "lazy", "extra_dict", "raw_link", "advanced"}
WIDGET = COMMON | {"default", "socketless"}
NUMBER = WIDGET | {"min", "max", "step", "display_mode", "force_input"}
INPUTS = {  # the arguments of each type's Input, beside the id
    "IMAGE": COMMON,
    "MASK": COMMON,
    "BOOLEAN": WIDGET | {"label_on", "label_off", "force_input"},
    "INT": NUMBER | {"control_after_generate"},
    "FLOAT": NUMBER | {"round", "gradient_stops"},
    "STRING": WIDGET | {"multiline", "placeholder", "dynamic_prompts", "force_input"},
    "COMBO": WIDGET | {"options", "control_after_generate", "upload", "image_folder", "remote"},
    "BOUNDING_BOX": WIDGET | {"component", "force_input"},
}


def comfy_type(name: str) -> SimpleNamespace:
    """A type with its Input and Output."""

    class Socket:
        io_type = name

        def __init__(self, id: str, **options: Any) -> None:
            unknown = set(options) - self.allowed
            assert not unknown, f"{name} has no {unknown}"
            self.id, self.options = id, options

    class Input(Socket):
        allowed = INPUTS.get(name, COMMON)

    class Output(Socket):
        allowed = frozenset({"display_name", "tooltip", "is_output_list"})

    return SimpleNamespace(Input=Input, Output=Output, io_type=name)


@dataclass
class Schema:
    node_id: str
    display_name: str
    category: str
    description: str = ""
    search_aliases: list[str] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        for sockets in (self.inputs, self.outputs):
            names = [socket.id for socket in sockets]
            assert len(set(names)) == len(names), f"{self.node_id}: ids must be unique, got {names}"


class NodeOutput:
    def __init__(self, *args: Any) -> None:
        self.result = args


def install(monkeypatch: Any) -> None:
    """Make `comfy_api.latest` importable."""
    io = SimpleNamespace(Schema=Schema, NodeOutput=NodeOutput, ComfyNode=type("ComfyNode", (), {}), Custom=comfy_type)
    names = ("Image", "Mask", "Boolean", "Int", "Float", "String", "Combo")
    for name in names:
        setattr(io, name, comfy_type(name.upper()))
    io.BoundingBox = comfy_type("BOUNDING_BOX")
    package, latest = ModuleType("comfy_api"), ModuleType("comfy_api.latest")
    latest.io, latest.ComfyExtension = io, type("ComfyExtension", (), {})
    monkeypatch.setitem(sys.modules, "comfy_api", package)
    monkeypatch.setitem(sys.modules, "comfy_api.latest", latest)


def nodes_of(pack: ModuleType) -> dict[str, Any]:
    """The nodes of a pack by their id."""

    async def found() -> list[Any]:
        extension = await pack.comfy_entrypoint()
        return await extension.get_node_list()

    # In a thread, since Playwright keeps an event loop in that of the tests.
    with ThreadPoolExecutor(1) as thread:
        nodes = thread.submit(asyncio.run, found()).result()
    return {node.define_schema().node_id: node for node in nodes}


def execute(node: Any, **inputs: Any) -> tuple[Any, ...]:
    """Run a node as ComfyUI does: every input by its name, with the default of those that are left out."""
    schema = node.define_schema()
    values = {one.id: one.options["default"] for one in schema.inputs if "default" in one.options}
    assert set(inputs) <= {one.id for one in schema.inputs}, f"{schema.node_id} has no {set(inputs)}"
    result = node.execute(**values | inputs).result
    assert len(result) == len(schema.outputs)
    for value, output in zip(result, schema.outputs, strict=True):
        assert isinstance(value, list) == output.options.get("is_output_list", False)
    return result
