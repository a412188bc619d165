"""A traced program in operations that converters have functions for, so that PyTorch does not decompose it.

PyTorch would trace it again, which takes most of the time of a conversion with dynamic sizes, and a detector has few
operations that need it. The rules here are for all formats; `promotion` has those for ONNX, `expansion` for OpenVINO.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Graph, Node

aten = torch.ops.aten
ASSERTIONS = {aten._assert_tensor_metadata.default}
DETACHED = {aten.detach.default, aten.detach_.default}
CONVERSIONS = {aten.to.dtype, aten.to.dtype_layout, aten.to.device}
CONJUNCTIONS = {aten.__and__.Tensor, aten.__iand__.Tensor}


Rule = Callable[[Graph, Node], None]
"""Replaces a node of a graph by equal ones, if it applies to it."""


class Lowered(ExportedProgram):
    """A program that is converted as it is."""

    def run_decompositions(self, *_: Any, **__: Any) -> ExportedProgram:
        """Return the program."""
        return self


def lower(program: ExportedProgram, rule: Rule) -> Lowered:
    """Return a program for a converter, with the same weights, in other operations.

    Those that are not known here stay, and a converter refuses them if it does not know them either.

    Args:
        program: The program, which does not change.
        rule: Replacements for this converter, in addition to those for all converters.
    """
    graph = copy.deepcopy(program.graph)
    for each in (replace, rule):
        for node in list(graph.nodes):
            if isinstance(node.target, OpOverload):
                each(graph, node)
    graph.eliminate_dead_code()
    signature = copy.deepcopy(program.graph_signature)
    for output, node in zip(signature.output_specs, graph.output_node().args[0], strict=True):
        output.arg.name = node.name
    return Lowered(
        program.graph_module,
        graph,
        signature,
        program.state_dict,
        program.range_constraints,
        program.module_call_graph,
        program.example_inputs,
        program.constants,
        verifiers=program.verifiers,
    )


def replace(graph: Graph, node: Node) -> None:
    """Replace a node by equal ones, if a rule applies to it."""
    target = node.target
    assert isinstance(target, OpOverload)
    if target in ASSERTIONS:
        graph.erase_node(node)
    elif target in DETACHED:
        substitute(graph, node, node.all_input_nodes[0])
    elif target._schema.is_mutable and is_seen_elsewhere(node.all_input_nodes[0]):
        return
    elif target in CONVERSIONS:
        x, dtype = node.all_input_nodes[0], node.meta["val"].dtype
        same = x.meta["val"].dtype == dtype
        substitute(graph, node, x if same else insert(graph, node, aten._to_copy.default, x, dtype=dtype))
    elif target in CONJUNCTIONS:
        substitute(graph, node, insert(graph, node, aten.bitwise_and.Tensor, *node.args))
    elif target == aten.rsub.Scalar and len(node.args) == 2:
        minus = insert(graph, node, aten.neg.default, node.args[0])
        substitute(graph, node, insert(graph, node, aten.add.Scalar, minus, node.args[1]))
    elif (functional := functional_form(target)) is not None:
        substitute(graph, node, insert(graph, node, functional, *node.args, **node.kwargs))


def insert(graph: Graph, node: Node, target: Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
    """Insert an operation before a node, as a part of the module to which the node belongs."""
    with graph.inserting_before(node):
        inserted = graph.call_function(target, args, kwargs)
    inserted.meta = dict(node.meta)
    return inserted


def substitute(graph: Graph, node: Node, result: Node) -> None:
    """Use another result in place of a node's, and remove it."""
    node.replace_all_uses_with(result)
    graph.erase_node(node)


def functional_form(target: OpOverload) -> OpOverload | None:
    """Return the operation with the result of an in-place one, such as `relu` for `relu_`; None for any other."""
    name = target._schema.name.removeprefix("aten::")
    if not name.endswith("_") or not target._schema.is_mutable:
        return None
    return getattr(getattr(aten, name[:-1], None), target._overloadname, None)


def is_seen_elsewhere(overwritten: Node) -> bool:
    """Return whether another node may read what an in-place operation overwrites.

    It may if the tensor, or one that it is a view of, has another user, which may be a view.
    """
    while is_view(overwritten) and len(overwritten.users) == 1:
        overwritten = overwritten.all_input_nodes[0]
    return len(overwritten.users) > 1


def is_view(node: Node) -> bool:
    """Return whether the result of a node may share its input's memory."""
    target = node.target
    return isinstance(target, OpOverload) and any(each.alias_info for each in target._schema.returns)
