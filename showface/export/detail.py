"""`detail` as an input of an ONNX file: the weights are `smooth + detail * difference`, computed at each run."""

from collections.abc import Mapping
from typing import Any

from showface.models.interpolation import Difference

PREFIX = "network."  # of the weights' names in an exported program


def with_detail_input(model: Any, difference: Mapping[str, Difference]) -> Any:
    """An `onnx.ModelProto` with a further input `detail`, a float32 without axes. The given one is changed, too.

    Args:
        model: written with `fold=False`, so that each weight is a constant, or a conversion of one, by its name. It has
            the smooth weights.
        difference: of the network's weights, by their names. Names that the model doesn't use are left out.
    """
    from onnx import TensorProto, helper, numpy_helper
    from onnxscript import optimizer

    graph = model.graph
    sources = {constant.name for constant in graph.initializer}
    sources |= {node.output[0] for node in graph.node if node.op_type == "Cast"}
    used = {PREFIX + name: part for name, part in difference.items() if PREFIX + name in sources}
    for constant in graph.initializer:
        if constant.name in used:
            constant.name += "_smooth"
    conversions = [node for node in graph.node if node.output[0] in used]
    others = [node for node in graph.node if node.output[0] not in used]
    for node in conversions:
        node.output[0] += "_smooth"
    sums = []
    for weight, (levels, scale) in used.items():
        levels_name, scale_name, step, change = (f"{weight}_{x}" for x in ("levels", "scale", "step", "change"))
        rows = scale if levels.dim() else scale.view(())
        graph.initializer.append(numpy_helper.from_array(levels.numpy(), levels_name))
        graph.initializer.append(numpy_helper.from_array(rows.numpy(), scale_name))
        sums += [
            helper.make_node("Mul", [scale_name, "detail"], [step]),
            helper.make_node("DequantizeLinear", [levels_name, step], [change], axis=0),
            helper.make_node("Add", [f"{weight}_smooth", change], [weight]),
        ]
    del graph.node[:]
    graph.node.extend([*conversions, *sums, *others])
    graph.input.append(helper.make_tensor_value_info("detail", TensorProto.FLOAT, []))
    return optimizer.optimize(model)
