"""The backbone for inference: batch norms folded into convolutions, and these fused with what comes after them.

It is the traced graph that is rewritten, so any timm model will do, whatever its classes are called.
"""

from __future__ import annotations

import copy
import logging
import operator
from typing import Any

import torch
from timm.layers.drop import DropPath
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from querybox.fast.convolution import ACTIVATIONS, FusedConv2d

logger = logging.getLogger(__name__)

Parts = dict[str, Any]
"""Modules and tensors of a graph by name."""


class Tracer(fx.Tracer):
    """Looks into modules down to those that do one thing."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002 - the base's
        """Stop at convolutions and batch norms, whatever they hold, and at what holds no other module."""
        return isinstance(m, nn.Conv2d | nn.BatchNorm2d) or next(m.children(), None) is None


def fuse(body: nn.Module) -> nn.Module:
    """Return a copy of `body`, a timm model in evaluation mode, that computes the same in fewer steps.

    A model that cannot be traced, because what it does depends on what it sees, is copied as it is.
    """
    try:
        graph = Tracer().trace(body)
    except Exception as error:  # noqa: BLE001 - whatever the model's own code raises when it meets a proxy
        logger.info("%s cannot be traced (%s): it is only copied", type(body).__name__, error)
        return copy.deepcopy(body)
    parts: Parts = {
        node.target: operator.attrgetter(node.target)(body)
        for node in graph.nodes
        if node.op in ("call_module", "get_attr")
    }
    skip_identities(graph, parts)
    fused: Parts = {}
    for node in list(graph.nodes):
        if is_a(node, parts, nn.Conv2d):
            absorb(node, parts, fused)
    spend_shortcuts(graph, fused)
    kept = {node.target for node in graph.nodes if node.op in ("call_module", "get_attr")} - fused.keys()
    return fx.GraphModule(fused | {name: copy.deepcopy(parts[name]) for name in kept}, graph)


def skip_identities(graph: fx.Graph, parts: Parts) -> None:
    """Take out what does nothing in evaluation mode."""
    for node in list(graph.nodes):
        if is_a(node, parts, nn.Identity, nn.Dropout, DropPath):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def absorb(node: fx.Node, parts: Parts, fused: Parts) -> None:
    """Put one step in the place of a convolution, its batch norm, an added shortcut and an activation."""
    conv, chain = parts[str(node.target)], [node]
    shortcut: list[fx.Node] = []
    activation: nn.Module | None = None
    if norm := follower(node, parts, nn.BatchNorm2d):
        chain.append(norm)
        norm_part = parts[str(norm.target)]
        conv = fuse_conv_bn_eval(conv, norm_part)
        activation = getattr(norm_part, "act", None)  # timm's BatchNormAct2d has one
        activation = None if isinstance(activation, nn.Identity) else copy.deepcopy(activation)
    step: nn.Module
    if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        step = nn.Sequential(copy.deepcopy(conv), activation or nn.Identity())
    else:
        if activation is None and (addition := added(chain[-1])):
            add, *shortcut = addition
            chain.append(add)
        if activation is None and (active := follower(chain[-1], parts, *ACTIVATIONS)):
            chain.append(active)
            activation = copy.deepcopy(parts[str(active.target)])
        step = FusedConv2d(conv, activation)
    name = f"fused_{node.name}"
    fused[name] = step
    with node.graph.inserting_after(chain[-1]):
        whole = node.graph.call_module(name, (*node.args, *shortcut))
    chain[-1].replace_all_uses_with(whole)
    for each in reversed(chain):
        node.graph.erase_node(each)


def spend_shortcuts(graph: fx.Graph, fused: Parts) -> None:
    """Let a step write over the shortcut that it is the last to read."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if is_a(node, fused, FusedConv2d) and len(node.args) == 2:
            x, shortcut = node.args
            fused[str(node.target)].spend_shortcut = (
                x is not shortcut
                and is_a(shortcut, fused, FusedConv2d)  # a tensor of its own, no view of another
                and max(shortcut.users, key=order.__getitem__) is node
            )


def is_a(node: fx.Node, parts: Parts, *kinds: type[nn.Module]) -> bool:
    """Say whether a node calls a module of one of these kinds."""
    return node.op == "call_module" and isinstance(parts.get(str(node.target)), kinds)


def follower(node: fx.Node, parts: Parts, *kinds: type[nn.Module]) -> fx.Node | None:
    """Return the one node that reads `node`, if it calls a module of these kinds."""
    users = list(node.users)
    return users[0] if len(users) == 1 and is_a(users[0], parts, *kinds) else None


def added(node: fx.Node) -> tuple[fx.Node, fx.Node] | None:
    """Return the addition that alone reads `node`, and what it adds."""
    users = list(node.users)
    if len(users) != 1 or users[0].target not in (operator.add, torch.add) or users[0].kwargs:
        return None
    others = [each for each in users[0].args if each is not node]
    if len(others) != 1 or not isinstance(others[0], fx.Node) or others[0].op == "get_attr":
        return None
    return users[0], others[0]
