"""Outputs of both towers under one set of names, for the cases of two-tower models."""

import jax

from . import harness


def ours(encoder, batch):
    """Each tower with the inputs that are its own."""
    text = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    image = {"pixel_values": batch["pixel_values"]}
    run = jax.jit(lambda params, part: dict(harness._named(encoder.config, params, part)))
    found = {f"text_{name}": value for name, value in run(encoder.params, text).items()}
    found |= {f"image_{name}": value for name, value in run(encoder.params, image).items()}
    return found | {"logit_scale": encoder.params["logit_scale"].reshape(1)}


def tower(outputs, prefix=""):
    """Those of a tower of transformers."""
    found = {f"{prefix}hidden_{i}": state for i, state in enumerate(outputs.hidden_states)}
    return found | {f"{prefix}last": outputs.last_hidden_state}


def both(*inputs):
    """One batch of texts and images."""
    return lambda: inputs[0]() | inputs[1]()
