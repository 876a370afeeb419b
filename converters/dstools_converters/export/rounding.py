"""Bound on the difference that rounding alone makes in logits of two implementations in float32."""

import math

from dstools_converters.families.shapes import MLA, Model

ROUNDING = 2.0**-24  # of float32: half a unit in the last place of 1
PRODUCTS = 7  # matrix products of a layer that follow each other: q, scores, values, o, gate, down
LATENT_PRODUCTS = 9  # q_a, q_b, w_k, scores, values, w_v, o, gate, down


def bound(model: Model) -> float:
    """Return the difference, relative to the largest logit, that rounding may make.

    A dot product of K terms, summed in another order, errs by some sqrt(K) roundings, since these
    are as often up as down. So are the errors of N products in a row: sqrt(N) of them add up.
    """
    longest = max(shape[-1] for _, shape, _ in model.kinds())
    products = LATENT_PRODUCTS if isinstance(model.attention, MLA) else PRODUCTS
    return ROUNDING * math.sqrt(longest * (products * model.num_layers + 1))
