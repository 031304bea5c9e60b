"""The affine map by gradient descent, in the way of Maiorca et al. (2023)."""

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from .._core.linalg import matmul, safe_inverse
from .._core.typing import Array


def adam_affine(
    x: Array,
    y: Array,
    root_weights: Array,
    key: Array,
    learning_rate: Array,
    steps: int,
) -> tuple[Array, Array]:
    """A linear layer with bias, trained by Adam on the mean squared error of all rows at once.

    Args:
        x: source rows times the roots of their weights [n, d_in].
        y: target rows likewise [n, d_out].
        root_weights: [n]; the column of the bias is weighted in the same way.
        key: PRNG key of the start.
        learning_rate: scalar.
        steps: how many.

    Returns:
        The weight [d_in, d_out] and the bias [d_out].
    """
    import optax  # slow to import, and no other fit needs it

    d_in, d_out = x.shape[1], y.shape[1]
    bound = 1 / np.sqrt(d_in)
    key_weight, key_bias = jax.random.split(key)
    start = (
        jax.random.uniform(key_weight, (d_in, d_out), x.dtype, -bound, bound),
        jax.random.uniform(key_bias, (d_out,), x.dtype, -bound, bound),
    )
    total = jnp.sum(root_weights * root_weights)
    inverse_total = safe_inverse(total, total > 0) / d_out

    def loss(params):
        weight, bias = params
        error = matmul(x, weight) + root_weights[:, None] * bias[None, :] - y
        return jnp.sum(error * error) * inverse_total

    optimizer = optax.adam(learning_rate)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (cast(tuple[Array, Array], optax.apply_updates(params, updates)), state), None

    with jax.numpy_dtype_promotion("standard"):  # optax needs it
        (params, _), _ = jax.lax.scan(step, (start, optimizer.init(start)), length=steps)
    return params
