"""Transforms: they take a function and compute its derivatives, and never change a `.grad`.

`grad`, `value_and_grad`, `vjp`, `jvp`, `jacobian`, `hessian` and `hvp` take a function of tensors, or of nested tuples,
lists and dicts of them. They nest to any order: a derivative is recorded if an enclosing transform, or a tensor that
requires a gradient, needs to differentiate it. Inside `no_grad`, only what a transform itself needs is recorded.

A transform calls the function once, on stand-ins that share the values of its arguments, and then runs the ordinary
backward pass for the stand-ins alone. There is no second set of rules: `jvp` is the VJP of a VJP, which is linear in
its cotangent (Christianson 1992), and `jacobian` computes many rows, or columns, in one batched backward pass
(`gradflow.autograd.batching`).
"""

from gradflow.transforms.derivatives import grad, gradients, jvp, value_and_grad, vjp
from gradflow.transforms.jacobians import hessian, hvp, jacobian
from gradflow.transforms.mapping import vmap
from gradflow.transforms.recompute import checkpoint

__all__ = ["checkpoint", "grad", "gradients", "hessian", "hvp", "jacobian", "jvp", "value_and_grad", "vjp", "vmap"]
