"""Names of parts that several layouts have in common: layers of the transformer, perceptrons, DETR's mask head."""

from __future__ import annotations

MASK_HEAD = {
    "mask_head.attention_map.query": "bbox_attention.q_linear",
    "mask_head.attention_map.key": "bbox_attention.k_linear",
    **{f"mask_head.blocks.{index}.0": f"mask_head.lay{index + 1}" for index in range(5)},
    **{f"mask_head.blocks.{index}.1": f"mask_head.gn{index + 1}" for index in range(5)},
    **{f"mask_head.laterals.{index}": f"mask_head.adapter{index + 1}" for index in range(3)},
    "mask_head.output": "mask_head.out_lay",
}
"""DETR's mask head (`querybox.modules.attention_masks`), in its authors' code and in Hugging Face."""


def torch_layer(ours: str, theirs: str, cross_attention: str | None = None) -> dict[str, str]:
    """Return the modules of a transformer layer with the names of `torch.nn.Transformer`, as the authors of DETR use.

    Args:
        ours: The layer in querybox.
        theirs: The layer in the layout.
        cross_attention: Name of the cross-attention of a decoder layer; None for an encoder layer.
    """
    norm = 2 if cross_attention is None else 3
    modules = {
        f"{ours}.self_attention": f"{theirs}.self_attn",
        f"{ours}.self_attention_residual.norm": f"{theirs}.norm1",
        f"{ours}.feedforward.0": f"{theirs}.linear1",
        f"{ours}.feedforward.3": f"{theirs}.linear2",
        f"{ours}.feedforward_residual.norm": f"{theirs}.norm{norm}",
    }
    if cross_attention is not None:
        modules[f"{ours}.cross_attention"] = f"{theirs}.{cross_attention}"
        modules[f"{ours}.cross_attention_residual.norm"] = f"{theirs}.norm2"
    return modules


def huggingface_layers(encoder: str, decoder: str) -> dict[str, str]:
    """Return the modules of the encoder and decoder layers of transformers, given the names of a layer of each."""
    modules = {
        "decoder.layers.*.cross_attention": f"{decoder}.encoder_attn",
        "decoder.layers.*.cross_attention_residual.norm": f"{decoder}.encoder_attn_layer_norm",
    }
    for ours, theirs in (("encoder.layers.*", encoder), ("decoder.layers.*", decoder)):
        modules |= {
            f"{ours}.self_attention": f"{theirs}.self_attn",
            f"{ours}.self_attention_residual.norm": f"{theirs}.self_attn_layer_norm",
            f"{ours}.feedforward.0": f"{theirs}.fc1",
            f"{ours}.feedforward.3": f"{theirs}.fc2",
            f"{ours}.feedforward_residual.norm": f"{theirs}.final_layer_norm",
        }
    return modules


def names_in_memory(encoder: str, decoder: str) -> dict[str, str]:
    """Return names of the same layers in memory, which transformers 5 translates when it reads and writes files."""
    attentions = (f"{encoder}.self_attn", f"{decoder}.self_attn", f"{decoder}.encoder_attn")
    names = {f"{attention}.o_proj": f"{attention}.out_proj" for attention in attentions}
    return {**names, f"{encoder}.mlp": encoder, f"{decoder}.mlp": decoder}


def perceptron(ours: str, theirs: str, layers: int = 3) -> dict[str, str]:
    """Return the layers of a perceptron, such as a box head, which most systems number without the activations."""
    return {f"{ours}.{2 * layer}": f"{theirs}.layers.{layer}" for layer in range(layers)}
