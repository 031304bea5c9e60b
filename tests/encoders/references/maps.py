"""Outputs of convolutional references, with the maps flattened as ours are."""


def flat(x):
    """``[batch, channels, rows, columns]`` to ``[batch, rows * columns, channels]``."""
    return x.flatten(2).transpose(1, 2)


def maps(module, inputs):
    """Of a model of transformers."""
    outputs = module(**inputs, output_hidden_states=True)
    found = {f"hidden_{i}": flat(state) for i, state in enumerate(outputs.hidden_states)}
    pooled = outputs.pooler_output.reshape(outputs.pooler_output.shape[:2])
    return found | {"last": flat(outputs.last_hidden_state), "pooled": pooled}


def plain_maps(module, inputs):
    """Of a module of our own references."""
    states, last, pooled = module(**inputs)
    found = {f"hidden_{i}": flat(state) for i, state in enumerate(states)}
    return found | {"last": flat(last), "pooled": pooled}
