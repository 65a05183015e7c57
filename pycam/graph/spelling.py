"""Forms of ops that onnx's checker, inference or version converter get wrong, spelt out before they see them."""

from __future__ import annotations

import onnx

from .shapes import all_graphs


def spell_out_onesided(skeleton: onnx.ModelProto) -> None:
    """onnx's inference takes the attribute of STFT for 0 where it is left out, which means 1."""
    for graph in all_graphs(skeleton.graph):
        for node in graph.node:
            if node.op_type == "STFT" and not any(a.name == "onesided" for a in node.attribute):
                node.attribute.append(onnx.helper.make_attribute("onesided", 1))


def spell_out_group_norms(skeleton: onnx.ModelProto) -> None:
    """GroupNormalization of opsets 18 to 20, whose scale is per group and which onnx's checker refuses as deprecated:
    the groups of an image are the channels of an InstanceNormalization."""
    if not any(o.domain in ("", "ai.onnx") and 18 <= o.version < 21 for o in skeleton.opset_import):
        return
    make = onnx.helper.make_node
    for graph in all_graphs(skeleton.graph):
        nodes = list(graph.node)
        del graph.node[:]
        for node in nodes:
            if node.op_type != "GroupNormalization" or node.domain:
                graph.node.append(node)
                continue
            (x, *scale_and_bias), y = node.input, node.output[0]
            settings = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            back = make("Reshape", [f"{y}/normed", f"{y}/shape"], [y], node.name)
            back.metadata_props.extend(node.metadata_props)
            graph.node.extend(
                [
                    make("Constant", [], [f"{y}/groups"], value_ints=[0, settings["num_groups"], -1]),
                    make("Reshape", [x, f"{y}/groups"], [f"{y}/grouped"]),
                    make(
                        "InstanceNormalization",
                        [f"{y}/grouped", *scale_and_bias],
                        [f"{y}/normed"],
                        epsilon=settings.get("epsilon", 1e-5),
                    ),
                    make("Shape", [x], [f"{y}/shape"]),
                    back,
                ]
            )


def spell_out_resizes(skeleton: onnx.ModelProto) -> None:
    """Upsample, and Resize of opset 10, count from the corner of the first pixel; the converter leaves that out, and
    Resize means the middle of the pixels since.  Nearest takes the position before, or behind where it makes smaller,
    as onnxruntime does for them."""
    for graph in all_graphs(skeleton.graph):
        known = {t.name: t for t in graph.initializer}
        known.update({n.output[0]: n.attribute[0].t for n in graph.node if n.op_type == "Constant" and n.attribute})
        for node in graph.node:
            if node.op_type != "Resize" or node.domain:
                continue
            scales = known.get(node.input[2]) if len(node.input) > 2 else None
            smaller = scales is not None and bool((onnx.numpy_helper.to_array(scales) < 1).any())
            corner = onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric")
            node.attribute.extend([corner, onnx.helper.make_attribute("nearest_mode", "ceil" if smaller else "floor")])
