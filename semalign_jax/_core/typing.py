"""Shared type aliases: what the library accepts and the names of its options."""

from typing import Literal, TypeAlias, get_args

import jax
import jax.typing

Array: TypeAlias = jax.Array
ArrayLike: TypeAlias = jax.typing.ArrayLike

Method: TypeAlias = Literal["affine", "linear", "l-ortho", "ortho", "auto"]
Normalize: TypeAlias = Literal["none", "center", "standard", "isotropic"]
Completion: TypeAlias = Literal["orthogonal", "partial"]
RidgeUnit: TypeAlias = Literal["absolute", "gram"]
Solver: TypeAlias = Literal["auto", "adam"]

#: The four maps of the papers, and with them the one that chooses for itself.
METHODS: tuple[Method, ...] = ("affine", "linear", "l-ortho", "ortho")
ALL_METHODS: tuple[Method, ...] = get_args(Method)
NORMALIZE: tuple[Normalize, ...] = get_args(Normalize)
RIDGE_UNITS: tuple[RidgeUnit, ...] = get_args(RidgeUnit)
SOLVERS: tuple[Solver, ...] = get_args(Solver)
COMPLETIONS: tuple[Completion, ...] = get_args(Completion)
