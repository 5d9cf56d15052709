"""`vmap`: a function of one example, for all examples at once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from gradflow.autograd.mapping import Level, Mapped, at_level, current_level, device_backend
from gradflow.interception import forbid_replay
from gradflow.ops.checks import check_tensors, kind_and_fix, lifted
from gradflow.ops.mapping import all_examples, one_example
from gradflow.ops.shape import moveaxis
from gradflow.pytorch_names import refuse, refuses_keywords
from gradflow.shapes import one_axis
from gradflow.tensor import Tensor
from gradflow.transforms.arguments import check_function, kind_of
from gradflow.tree import flatten, rebuild


@refuses_keywords
def vmap(
    f: Callable[..., Any], in_axes: Any = 0, out_axes: Any = 0, in_dims: None = None, out_dims: None = None
) -> Callable[..., Any]:
    """A function that calls `f` for each example of a batch, all at once: each operation runs once, on the batch.

    f: a function of tensors, or of nested tuples, lists and dicts of them, that returns such. It is written for one
        example: its tensors have no axis for the batch.
    in_axes: the axis of each argument along which the examples lie (default 0); None for an argument that all examples
        share. One axis for all arguments, or a tuple with one for each; in it, a nested argument has one axis for all
        of its tensors, or axes nested like it. Keyword arguments are shared.
    out_axes: the axis of the result along which the results lie (default 0), in the same forms. None for a result that
        does not depend on the example.

    It nests, and composes with `grad`, `jacobian`, `hessian`, `jvp` and `vjp` on both sides. Operations without a
    batched form run once for each example.

    Inside, these raise RuntimeError: reading values (`item`, `if`, masks as an index), changes in place, drawing random
    numbers, and `backward()`. Raises ValueError for axes or lengths that do not fit, TypeError for a mapped argument or
    a result that is not a tensor.

    >>> import gradflow as gf
    >>> w, x = gf.tensor([1.0, 2.0]), gf.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    >>> loss = lambda w, x: (w * x).sum() ** 2
    >>> gf.vmap(loss, in_axes=(None, 0))(w, x).tolist()
    [1.0, 4.0, 9.0]
    >>> gf.vmap(gf.grad(loss), in_axes=(None, 0))(w, x).tolist()
    [[2.0, 0.0], [0.0, 4.0], [6.0, 6.0]]
    """
    if in_dims is not None or out_dims is not None:
        refuse("vmap", in_dims=in_dims, out_dims=out_dims)
    check_function("vmap", f)

    @functools.wraps(f, updated=())
    def of_examples(*arguments: Any, **options: Any) -> Any:
        forbid_replay("calls vmap")
        axes = _axes_of("in_axes", tuple(in_axes) if isinstance(in_axes, list) else in_axes, arguments, "argument")
        leaves = flatten(arguments)
        outer = current_level.get()
        given, lengths = [], {}
        for (path, x), axis in zip(leaves, axes, strict=True):
            if axis is None:
                given.append(x)
                continue
            if not isinstance(x, Tensor):
                raise TypeError(
                    f"vmap takes tensors along in_axes; argument{path} is {kind_and_fix(x)}, or give it None in in_axes"
                )
            if outer is not None:
                x = lifted("vmap", x, outer)
            if not x.ndim:
                raise ValueError(f"vmap: argument{path} has no axes for the examples: give it None in in_axes")
            given.append(_moved(x, one_axis("vmap", axis, x.ndim), 0))
            lengths[path] = given[-1].shape[0]
        if not lengths:
            raise ValueError("vmap needs an argument with an axis for the examples; all in_axes are None")
        if len(set(lengths.values())) > 1:
            each = ", ".join(f"{n} in argument{path}" for path, n in lengths.items())
            raise ValueError(f"vmap needs equally many examples in all arguments; got {each}")
        mapped = [x for x, axis in zip(given, axes, strict=True) if axis is not None]
        check_tensors("vmap", *mapped)
        level = Level(mapped[0].backend, next(iter(lengths.values())))
        inside = [x if axis is None else one_example(x, level) for x, axis in zip(given, axes, strict=True)]
        with at_level(level):
            output = f(*rebuild(arguments, inside), **options)
        results = flatten(output)
        places = _axes_of("out_axes", out_axes, output, "result")
        return rebuild(output, [_outside(path, y, a, level) for (path, y), a in zip(results, places, strict=True)])

    return of_examples


def _outside(path: str, y: Any, axis: int | None, level: Level) -> Tensor:
    """A result for all examples, along an axis; or with None that which they share."""
    if not isinstance(y, Tensor):
        raise TypeError(f"vmap needs a function that returns tensors; result{path} is {kind_of(y)}")
    if device_backend(y.backend) is not device_backend(level):
        raise ValueError(f"vmap: result{path} is on {y.device}, the examples are on {level.device}")
    y = lifted("vmap", y, level)
    if axis is None and isinstance(y.array, Mapped) and y.array.level is level:
        raise ValueError(f"vmap: result{path} depends on the example, so out_axes cannot be None for it")
    whole = all_examples(y, level)
    return whole[0] if axis is None else _moved(whole, 0, one_axis("vmap", axis, whole.ndim))


def _moved(x: Tensor, source: int, to: int) -> Tensor:
    return x if source == to else moveaxis(x, source, to)


def _axes_of(name: str, axes: Any, tree: Any, what: str) -> list[int | None]:
    """An axis for each leaf of a tree, from one for all, or axes nested like the tree as far as they are nested."""
    if axes is None or (isinstance(axes, int) and not isinstance(axes, bool)):
        return [axes] * len(flatten(tree))
    if isinstance(axes, (tuple, list)) and isinstance(tree, (tuple, list)) and len(axes) == len(tree):
        pairs = list(zip(axes, tree, strict=True))
    elif isinstance(axes, dict) and isinstance(tree, dict) and axes.keys() == tree.keys():
        pairs = [(axes[key], part) for key, part in tree.items()]
    else:
        parts = f" of length {len(tree)}" if isinstance(tree, (tuple, list, dict)) else ""
        raise ValueError(
            f"{name} of vmap are integers or None, nested like the {what}s; got {axes!r} for {kind_of(tree)}{parts}"
        )
    return [axis for part, leaf in pairs for axis in _axes_of(name, part, leaf, what)]
