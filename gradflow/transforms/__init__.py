"""Transforms: functions made of functions, which compute derivatives and leave every `.grad` alone.

`grad`, `value_and_grad`, `vjp`, `jvp`, `jacobian`, `hessian` and `hvp` take a function of tensors, or of nested tuples,
lists and dicts of them. They nest to any order: what one computes is recorded where another, or a tensor that requires
a gradient, needs it to be. Inside `no_grad` only what the transforms themselves need is recorded.

A function is run once, on stand-ins for its arguments that share their values; then the backward pass of
`gradflow.autograd` is run for just those. There is no second set of rules: `jvp` is the VJP of a VJP, which is linear
in its cotangent (Christianson 1992), and `jacobian` computes all its rows, or columns, in one batched backward pass
(`gradflow.autograd.batching`).
"""

from gradflow.transforms.derivatives import grad, gradients, jvp, value_and_grad, vjp
from gradflow.transforms.jacobians import hessian, hvp, jacobian
from gradflow.transforms.recompute import checkpoint

__all__ = ["checkpoint", "grad", "gradients", "hessian", "hvp", "jacobian", "jvp", "value_and_grad", "vjp"]
