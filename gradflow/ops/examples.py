"""Examples of the operations that are made from tables, which `gradflow.ops.table.named` adds to their docstrings."""

EXAMPLES = {
    "abs": """
    >>> x = gf.tensor([-3.0, 0.0, 2.0], requires_grad=True)
    >>> gf.abs(x).sum().backward()
    >>> x.grad.tolist()
    [-1.0, 0.0, 1.0]
    """,
    "acos": """
    >>> [f"{y:.4f}" for y in gf.acos(gf.tensor([1.0, 0.0])).tolist()]
    ['0.0000', '1.5708']
    """,
    "add": """
    >>> x = gf.tensor([1.0, 2.0], requires_grad=True)
    >>> gf.add(x, 10.0).sum().backward()
    >>> x.grad.tolist()
    [1.0, 1.0]
    """,
    "all": """
    >>> gf.all(gf.isfinite(gf.tensor([1.0, 2.0]))).item()
    True
    """,
    "any": """
    >>> gf.any(gf.tensor([[0.0, 2.0], [0.0, 0.0]]), axis=1).tolist()
    [True, False]
    """,
    "argmax": """
    >>> logits = gf.tensor([[0.1, 2.0, 0.3], [5.0, 1.0, 5.0]])
    >>> gf.argmax(logits, axis=1).tolist()
    [1, 0]
    """,
    "argmin": """
    >>> gf.argmin(gf.tensor([[3.0, 1.0], [2.0, 4.0]])).item()
    1
    """,
    "asin": """
    >>> [f"{y:.4f}" for y in gf.asin(gf.tensor([0.0, 1.0])).tolist()]
    ['0.0000', '1.5708']
    """,
    "atan": """
    >>> [f"{y:.4f}" for y in gf.atan(gf.tensor([0.0, 1.0, float("inf")])).tolist()]
    ['0.0000', '0.7854', '1.5708']
    """,
    "atan2": """
    >>> [f"{y:.4f}" for y in gf.atan2(gf.tensor([0.0, 1.0, -1.0]), gf.tensor([1.0, 0.0, -1.0])).tolist()]
    ['0.0000', '1.5708', '-2.3562']
    """,
    "ceil": """
    >>> gf.ceil(gf.tensor([-1.5, 1.5])).tolist()
    [-1.0, 2.0]
    """,
    "cos": """
    >>> gf.cos(gf.tensor([0.0, 3.14159265])).tolist()
    [1.0, -1.0]
    """,
    "cosh": """
    >>> [f"{y:.4f}" for y in gf.cosh(gf.tensor([0.0, 1.0])).tolist()]
    ['1.0000', '1.5431']
    """,
    "divide": """
    >>> gf.divide(gf.tensor([1, 2], dtype="int64"), 2)
    tensor([0.5, 1. ], dtype=float32, device=cpu)
    """,
    "equal": """
    >>> gf.equal(gf.tensor([1.0, 2.0]), 2).tolist()
    [False, True]
    """,
    "erf": """
    >>> [f"{y:.4f}" for y in gf.erf(gf.tensor([-1.0, 0.0, 1.0, 10.0])).tolist()]
    ['-0.8427', '0.0000', '0.8427', '1.0000']
    """,
    "exp": """
    >>> x = gf.tensor(1.0, requires_grad=True)
    >>> gf.exp(x).backward()
    >>> f"{x.grad.item():.4f}"
    '2.7183'
    """,
    "expm1": """
    >>> x = gf.tensor(1e-8)
    >>> gf.expm1(x).item() > 0.0, (gf.exp(x) - 1.0).item() > 0.0
    (True, False)
    """,
    "floor": """
    >>> gf.floor(gf.tensor([-1.5, 1.5])).tolist()
    [-2.0, 1.0]
    """,
    "floor_divide": """
    >>> x = gf.tensor([-7.0, 7.0])
    >>> gf.floor_divide(x, 2).tolist(), (x // 2).tolist()
    ([-4.0, 3.0], [-4.0, 3.0])
    """,
    "greater": """
    >>> (gf.tensor([1.0, 2.0, 3.0]) > 2.0).tolist()
    [False, False, True]
    """,
    "greater_equal": """
    >>> x = gf.tensor([1.0, 2.0, 3.0])
    >>> x[gf.greater_equal(x, 2.0)].tolist()
    [2.0, 3.0]
    """,
    "isfinite": """
    >>> gf.isfinite(gf.tensor([1.0, float("inf"), float("nan")])).tolist()
    [True, False, False]
    """,
    "isinf": """
    >>> gf.isinf(gf.tensor([1.0, float("-inf"), float("nan")])).tolist()
    [False, True, False]
    """,
    "isnan": """
    >>> gf.isnan(gf.tensor([1.0, float("-inf"), float("nan")])).tolist()
    [False, False, True]
    """,
    "less": """
    >>> gf.less(gf.tensor([1.0, 2.0, 3.0]), 2.0).tolist()
    [True, False, False]
    """,
    "less_equal": """
    >>> gf.less_equal(gf.tensor([1.0, 2.0, 3.0]), 2.0).tolist()
    [True, True, False]
    """,
    "log": """
    >>> x = gf.tensor(4.0, requires_grad=True)
    >>> gf.log(x).backward()
    >>> x.grad.item()
    0.25
    """,
    "log10": """
    >>> (gf.floor(gf.log10(gf.tensor([7.0, 4321.0]))) + 1).tolist()
    [1.0, 4.0]
    """,
    "log1p": """
    >>> x = gf.tensor(1e-8)
    >>> gf.log1p(x).item() > 0.0, gf.log(1.0 + x).item() > 0.0
    (True, False)
    """,
    "log2": """
    >>> gf.log2(gf.tensor([1.0, 8.0, 0.5])).tolist()
    [0.0, 3.0, -1.0]
    """,
    "logical_and": """
    >>> x = gf.tensor([1.0, 2.0, 3.0])
    >>> gf.logical_and(x > 1, x < 3).tolist(), ((x > 1) & (x < 3)).tolist()
    ([False, True, False], [False, True, False])
    """,
    "logical_not": """
    >>> (~gf.tensor([True, False])).tolist()
    [False, True]
    """,
    "logical_or": """
    >>> gf.logical_or(gf.tensor([True, False]), gf.tensor([False, False])).tolist()
    [True, False]
    """,
    "logical_xor": """
    >>> gf.logical_xor(gf.tensor([True, True]), gf.tensor([True, False])).tolist()
    [False, True]
    """,
    "max": """
    >>> x = gf.tensor([1.0, 5.0, 5.0], requires_grad=True)
    >>> gf.max(x).backward()
    >>> x.grad.tolist()
    [0.0, 0.5, 0.5]
    """,
    "maximum": """
    >>> x, y = gf.tensor([1.0, 4.0, 3.0], requires_grad=True), gf.tensor([2.0, 2.0, 3.0])
    >>> gf.maximum(x, y).sum().backward()
    >>> x.grad.tolist()
    [0.0, 1.0, 0.5]
    """,
    "mean": """
    >>> x = gf.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    >>> gf.mean(x).backward()
    >>> x.grad.tolist()
    [[0.25, 0.25], [0.25, 0.25]]
    """,
    "min": """
    >>> gf.min(gf.tensor([[3.0, 1.0], [2.0, 4.0]]), axis=1).tolist()
    [1.0, 2.0]
    """,
    "minimum": """
    >>> gf.minimum(gf.tensor([1.0, 4.0, float("nan")]), 2.0).tolist()
    [1.0, 2.0, nan]
    """,
    "multiply": """
    >>> x, y = gf.tensor(-2.0, requires_grad=True), gf.tensor(5.0, requires_grad=True)
    >>> gf.multiply(x, y).backward()
    >>> x.grad.item(), y.grad.item()
    (5.0, -2.0)
    """,
    "mish": """
    >>> [f"{y:.3f}" for y in gf.mish(gf.tensor([-3.0, -1.0, 1.0, 3.0])).tolist()]
    ['-0.146', '-0.303', '0.865', '2.987']
    """,
    "negative": """
    >>> gf.negative(gf.tensor([1.0, -2.0])).tolist()
    [-1.0, 2.0]
    """,
    "not_equal": """
    >>> gf.not_equal(gf.tensor([float("nan"), 2.0]), gf.tensor([float("nan"), 2.0])).tolist()
    [True, False]
    """,
    "prod": """
    >>> x = gf.tensor([2.0, 0.0, 4.0], requires_grad=True)
    >>> gf.prod(x).backward()
    >>> x.grad.tolist()
    [0.0, 8.0, 0.0]
    """,
    "relu": """
    >>> x = gf.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    >>> gf.relu(x).sum().backward()
    >>> x.grad.tolist()
    [0.0, 0.0, 1.0]
    """,
    "remainder": """
    >>> x = gf.tensor([-7.0, 7.0])
    >>> gf.remainder(x, 3).tolist(), (x % -3).tolist()
    ([2.0, 1.0], [-1.0, -2.0])
    """,
    "round": """
    >>> gf.round(gf.tensor([0.5, 1.5, 2.5])).tolist()
    [0.0, 2.0, 2.0]
    """,
    "selu": """
    >>> [f"{y:.3f}" for y in gf.selu(gf.tensor([-100.0, -1.0, 1.0])).tolist()]
    ['-1.758', '-1.111', '1.051']
    """,
    "sigmoid": """
    >>> x = gf.tensor(1.0, requires_grad=True)
    >>> y = gf.sigmoid(x)
    >>> y.backward()
    >>> f"{y.item():.4f}, {x.grad.item():.4f}"
    '0.7311, 0.1966'
    """,
    "sign": """
    >>> gf.sign(gf.tensor([-3.0, 0.0, 2.0])).tolist()
    [-1.0, 0.0, 1.0]
    """,
    "silu": """
    >>> [f"{y:.3f}" for y in gf.silu(gf.tensor([-3.0, -1.0, 1.0, 3.0])).tolist()]
    ['-0.142', '-0.269', '0.731', '2.858']
    """,
    "sin": """
    >>> x = gf.tensor(0.0, requires_grad=True)
    >>> gf.sin(x).backward()
    >>> x.grad.item()
    1.0
    """,
    "sinh": """
    >>> [f"{y:.4f}" for y in gf.sinh(gf.tensor([0.0, 1.0])).tolist()]
    ['0.0000', '1.1752']
    """,
    "softplus": """
    >>> [f"{y:.3f}" for y in gf.softplus(gf.tensor([-100.0, 0.0, 100.0])).tolist()]
    ['0.000', '0.693', '100.000']
    """,
    "softsign": """
    >>> gf.softsign(gf.tensor([-3.0, 0.0, 1.0])).tolist()
    [-0.75, 0.0, 0.5]
    """,
    "sqrt": """
    >>> gf.sqrt(gf.tensor([4.0, 9.0])).tolist()
    [2.0, 3.0]
    """,
    "square": """
    >>> x = gf.tensor([-3.0, 2.0], requires_grad=True)
    >>> gf.square(x).sum().backward()
    >>> x.grad.tolist()
    [-6.0, 4.0]
    """,
    "subtract": """
    >>> gf.subtract(gf.tensor([[5.0], [7.0]]), gf.tensor([1.0, 2.0])).tolist()
    [[4.0, 3.0], [6.0, 5.0]]
    """,
    "sum": """
    >>> x = gf.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> gf.sum(x).item(), x.sum(axis=0).tolist(), x.sum(axis=1, keepdims=True).shape
    (10.0, [4.0, 6.0], (2, 1))
    """,
    "tan": """
    >>> gf.tan(gf.tensor([0.0, 0.78539816])).tolist()
    [0.0, 1.0]
    """,
    "tanh": """
    >>> gf.tanh(gf.tensor([-100.0, 0.0, 100.0])).tolist()
    [-1.0, 0.0, 1.0]
    """,
}
