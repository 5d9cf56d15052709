"""Errors for names and arguments of PyTorch that gradflow does not have: they say what to write instead.

The tables have the names that are typed most. None of them exists in gradflow: `hasattr` is False, and `dir` of a
module or an object does not list it.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from types import CodeType, FunctionType
from typing import Any, NoReturn, TypeVar

FUNCTIONS = {
    "GradScaler": "gradflow.optim.GradScaler",
    "amp": "gradflow.autocast for autocast, gradflow.optim.GradScaler for GradScaler",
    "scatter_reduce": "none: gradflow.scatter(x, indices, values, axis, add=True) is its sum",
    "scatter_add": "gradflow.scatter(x, indices, values, axis, add=True)",
    "seed": "gradflow.manual_seed(number)",
    "BoolTensor": "gradflow.tensor(data, dtype=gradflow.bool)",
    "FloatTensor": "gradflow.tensor(data)",
    "LongTensor": "gradflow.tensor(data, dtype=gradflow.int64)",
    "Size": "a plain tuple: Tensor.shape is one",
    "absolute": "gradflow.abs",
    "addmm": "x @ w + b, or gradflow.linear(x, weight, bias)",
    "arccos": "gradflow.acos",
    "arcsin": "gradflow.asin",
    "arctan": "gradflow.atan",
    "arctan2": "gradflow.atan2",
    "as_tensor": "gradflow.asarray",
    "bernoulli": "gradflow.random.bernoulli(p)",
    "bmm": "gradflow.matmul, or the operator @",
    "cat": "gradflow.concat(arrays, axis)",
    "chunk": "gradflow.split(x, pieces, axis), for pieces of equal length",
    "clamp": "gradflow.clip(x, min, max)",
    "clone": "Tensor.clone",
    "compile": "none: gradflow.capture records a training step and replays it without the Python in between",
    "complex64": "none: there are no complex dtypes",
    "concatenate": "gradflow.concat(arrays, axis)",
    "cuda": "gradflow.diagnose('cuda').usable in place of is_available(), gradflow.devices(), gradflow.synchronize(), "
    "gradflow.memory_stats('cuda') and gradflow.free_memory('cuda')",
    "cumprod": "gradflow.cumulative_prod",
    "cumsum": "gradflow.cumulative_sum",
    "default_generator": "gradflow.random.default_generator",
    "device": "gradflow.Device('cuda:0'), or the text 'cuda:0' wherever a device is expected",
    "div": "gradflow.divide, or the operator /",
    "dot": "gradflow.matmul, or the operator @",
    "double": "gradflow.float64",
    "dtype": "gradflow.DType",
    "empty": "none: gradflow.zeros, whose memory is also set",
    "empty_like": "none: gradflow.zeros_like, whose memory is also set",
    "eq": "gradflow.equal, or the operator ==",
    "fix": "gradflow.trunc",
    "flatten": "Tensor.flatten() into one axis, gradflow.nn.Flatten for all but the first, or gradflow.reshape",
    "float": "gradflow.float32",
    "from_numpy": "gradflow.asarray, which shares the memory, or gradflow.tensor, which copies it",
    "func": "gradflow itself: gradflow.grad, gradflow.vmap, gradflow.vjp, gradflow.jvp, gradflow.jacobian",
    "ge": "gradflow.greater_equal, or the operator >=",
    "get_default_device": "gradflow.current_device()",
    "get_default_dtype": "gradflow.current_dtype()",
    "get_float32_matmul_precision": "gradflow.get_matmul_precision()",
    "gt": "gradflow.greater, or the operator >",
    "half": "gradflow.float16",
    "hstack": "gradflow.concat(arrays, axis=1), for vectors gradflow.concat(arrays, axis=0)",
    "index_add": "x.at[..., indices].add(values), with a colon for each axis before",
    "index_put": "x.at[indices].set(values), or .add(values) to accumulate",
    "index_select": "gradflow.take(x, indices, axis)",
    "inference_mode": "with gradflow.no_grad(): ...",
    "get_rng_state": "gradflow.random.default_generator.state_dict()",
    "int": "gradflow.int32",
    "is_tensor": "isinstance(x, gradflow.Tensor)",
    "jit": "none: gradflow.capture records a training step and replays it without the Python in between",
    "le": "gradflow.less_equal, or the operator <=",
    "long": "gradflow.int64",
    "lt": "gradflow.less, or the operator <",
    "meshgrid": "none: reshape the axes so that they broadcast, as in x[:, None] + y[None, :] of gradflow.arange",
    "mm": "gradflow.matmul, or the operator @",
    "mul": "gradflow.multiply, or the operator *",
    "mv": "gradflow.matmul, or the operator @",
    "ne": "gradflow.not_equal, or the operator !=",
    "neg": "gradflow.negative, or the operator -",
    "nonzero": "none: its shape depends on values; index with the mask itself, or gradflow.where(mask, x, y)",
    "normal": "gradflow.random.normal",
    "numel": "Tensor.size",
    "permute": "gradflow.permute_dims(x, axes)",
    "pow": "gradflow.power, or the operator **",
    "profiler": "gradflow.profile(); region(name) of the profile is record_function(name)",
    "rand": "gradflow.random.uniform(shape)",
    "randint": "gradflow.random.randint(shape, low=..., high=...)",
    "randn": "gradflow.random.normal(shape)",
    "randn_like": "gradflow.random.normal(x.shape)",
    "randperm": "gradflow.random.permutation(n)",
    "repeat_interleave": "gradflow.repeat(x, repeats, axis)",
    "reciprocal": "1 / x",
    "rsqrt": "1 / gradflow.sqrt(x)",
    "set_default_device": "with gradflow.use_device(device): ..., which ends with the block",
    "set_default_dtype": "with gradflow.use_dtype(dtype): ..., which ends with the block",
    "set_float32_matmul_precision": "gradflow.set_matmul_precision, which takes 'highest' or 'tf32'",
    "set_grad_enabled": "with gradflow.no_grad(): ... or with gradflow.enable_grad(): ..., which end with the block",
    "set_rng_state": "gradflow.random.default_generator.load_state_dict(state)",
    "sub": "gradflow.subtract, or the operator -",
    "t": "Tensor.T",
    "transpose": "gradflow.swapaxes(x, axis1, axis2)",
    "true_divide": "gradflow.divide, or the operator /",
    "unsqueeze": "gradflow.expand_dims(x, axis)",
    "utils": "gradflow.data.Batches for DataLoader, gradflow.checkpoint for checkpoint",
    "amax": "gradflow.max(x, axis)",
    "amin": "gradflow.min(x, axis)",
    "bincount": "gradflow.sum(gradflow.one_hot(labels, classes), axis=0)",
    "cdist": "none: gradflow.sqrt of the sum of squares of x[:, None] - y[None, :]",
    "lerp": "x + weight * (y - x)",
    "linalg": "none: gradflow.norm for vector_norm; use numpy.linalg on Tensor.numpy(), without gradients",
    "movedim": "gradflow.moveaxis(x, source, destination)",
    "multinomial": "gradflow.random.multinomial(weights, num_samples)",
    "tensordot": "none: gradflow.reshape to matrices, and gradflow.matmul",
    "unique": "gradflow.unique_values(x); gradflow.unique_inverse and gradflow.unique_counts give more",
    "inf": "float('inf')",
    "nan": "float('nan')",
    "pi": "math.pi",
    "vstack": "gradflow.concat(arrays, axis=0), for vectors gradflow.stack(arrays)",
}
"""For names of `torch`: what to write in gradflow, or "none" and what is nearest."""

_ALSO_METHODS = (
    "absolute addmm amax amin arccos arcsin arctan arctan2 bernoulli bincount bmm div dot eq fix ge gt le lerp lt mm "
    "movedim mul multinomial mv ne neg nonzero numel pow reciprocal repeat_interleave rsqrt sub true_divide unique"
)
"""The names of `FUNCTIONS` that are methods of `torch.Tensor`, too, with the same answer."""

METHODS = {
    **{name: FUNCTIONS[name] for name in _ALSO_METHODS.split()},
    "add_": "x += y, in place for a leaf under gradflow.no_grad; else x becomes a new tensor",
    "bool": "Tensor.astype('bool')",
    "chunk": "Tensor.split(pieces, axis), for pieces of equal length",
    "clamp": "Tensor.clip(min, max)",
    "clamp_": "Tensor.copy_(x.clip(min, max)) under gradflow.no_grad",
    "bfloat16": "Tensor.astype('bfloat16')",
    "byte": "Tensor.astype('uint8')",
    "clamp_max": "Tensor.clip(max=max)",
    "clamp_min": "Tensor.clip(min)",
    "contiguous": "none: leave it out, since operations take tensors of any strides",
    "cuda": "Tensor.to('cuda')",
    "cumprod": "Tensor.cumulative_prod(axis)",
    "cumsum": "Tensor.cumulative_sum(axis)",
    "data": "Tensor.detach()",
    "detach_": "x = x.detach(): Tensor.detach does not change the tensor itself",
    "dim": "Tensor.ndim",
    "div_": "x /= y, in place for a leaf under gradflow.no_grad; else x becomes a new tensor",
    "double": "Tensor.astype('float64')",
    "element_size": "Tensor.dtype.itemsize",
    "expand": "Tensor.broadcast_to(shape)",
    "expand_as": "Tensor.broadcast_to(other.shape)",
    "equal": "gradflow.all(x == y).item()",
    "fill_": "Tensor.copy_(value) under gradflow.no_grad",
    "float": "Tensor.astype('float32')",
    "get_device": "Tensor.device",
    "grad_fn": "none: gradflow.draw(tensor) is a picture of the graph, gradflow.explain(tensor) its backward pass",
    "half": "Tensor.astype('float16')",
    "index_add": FUNCTIONS["index_add"],
    "index_put": FUNCTIONS["index_put"],
    "index_put_": "x[indices] = values under gradflow.no_grad; x = x.at[indices].set(values) in a graph",
    "index_select": "Tensor.take(indices, axis)",
    "int": "Tensor.astype('int32')",
    "is_contiguous": "none: leave it out, since operations take tensors of any strides",
    "is_cuda": "Tensor.device.type == 'cuda'",
    "is_floating_point": "Tensor.dtype.is_floating",
    "long": "Tensor.astype('int64')",
    "masked_select": "x[mask]",
    "masked_fill_": "x[mask] = value under gradflow.no_grad",
    "mul_": "x *= y, in place for a leaf under gradflow.no_grad; else x becomes a new tensor",
    "ndimension": "Tensor.ndim",
    "nelement": "Tensor.size",
    "new_full": "gradflow.full(shape, value, x.dtype, x.device)",
    "new_ones": "gradflow.ones(shape, x.dtype, x.device)",
    "new_tensor": "gradflow.tensor(data, x.dtype, x.device)",
    "new_zeros": "gradflow.zeros(shape, x.dtype, x.device)",
    "normal_": "gradflow.nn.init.normal_",
    "permute": "Tensor.permute_dims(*axes)",
    "repeat": "gradflow.tile(x, repetitions)",
    "scatter_": "x = x.scatter(indices, values, axis); gradflow.one_hot makes one-hot rows",
    "scatter_reduce": FUNCTIONS["scatter_reduce"],
    "scatter_add": "Tensor.scatter(indices, values, axis, add=True)",
    "share_memory_": "none: each process of gradflow.distributed has its own parameters",
    "stride": "none: how the elements lie in memory is the backend's affair",
    "sub_": "x -= y, in place for a leaf under gradflow.no_grad; else x becomes a new tensor",
    "t": "Tensor.T",
    "transpose": "Tensor.swapaxes(axis1, axis2)",
    "type": "Tensor.astype(dtype)",
    "type_as": "Tensor.astype(other.dtype)",
    "uniform_": "gradflow.nn.init.uniform_",
    "unsqueeze": "Tensor.expand_dims(axis)",
    "view": "Tensor.reshape(*shape), which is a view where it can be",
    "view_as": "Tensor.reshape(other.shape)",
}
"""For attributes of `torch.Tensor`, as `FUNCTIONS`."""

MODULE_METHODS = {
    "add_module": "assigning the module to an attribute, or gradflow.nn.ModuleList and gradflow.nn.ModuleDict",
    "bfloat16": "Module.to('bfloat16')",
    "compile": "none: gradflow.capture records a training step and replays it without the Python in between",
    "cpu": "Module.to('cpu')",
    "cuda": "Module.to('cuda')",
    "double": "Module.to('float64')",
    "float": "Module.to('float32')",
    "get_parameter": "dict(Module.named_parameters())[name]",
    "get_submodule": "dict(Module.named_modules())[name]",
    "half": "Module.to('float16')",
    "register_full_backward_pre_hook": "none: Tensor.register_hook on the result of the module changes its gradient",
    "register_module": "assigning the module to an attribute, or gradflow.nn.ModuleList and gradflow.nn.ModuleDict",
    "type": "Module.to(dtype)",
}
"""For methods of `torch.nn.Module`, as `FUNCTIONS`."""

OPTIMIZER_METHODS = {
    "register_step_post_hook": "none: do it after Optimizer.step()",
    "register_step_pre_hook": "none: do it before Optimizer.step()",
    "state": "Optimizer.state_dict()['state']",
}
"""For attributes of `torch.optim.Optimizer`, as `FUNCTIONS`."""

_IMAGE_NORM = "none: gradflow.nn.BatchNorm1d normalizes over a batch, gradflow.nn.LayerNorm each sample by itself"
_CONVOLUTION = "none: gradflow trains multilayer perceptrons; gradflow.nn.Flatten and gradflow.nn.Linear take images"
_RECURRENT = "none: gradflow trains multilayer perceptrons; derive a cell from gradflow.nn.Module"
_ATTENTION = "none: derive one from gradflow.nn.Module, with gradflow.matmul and gradflow.softmax"
_PARALLEL = "none: Trainer(..., communicator=gradflow.distributed.world()), started with mpiexec"

_CONVOLUTIONS = (
    "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d AvgPool1d AvgPool2d MaxPool1d MaxPool2d AdaptiveAvgPool1d "
    "AdaptiveAvgPool2d"
)

NN = {
    **dict.fromkeys(("BatchNorm2d", "BatchNorm3d", "GroupNorm", "InstanceNorm1d", "InstanceNorm2d"), _IMAGE_NORM),
    **dict.fromkeys(_CONVOLUTIONS.split(), _CONVOLUTION),
    **dict.fromkeys(("GRU", "GRUCell", "LSTM", "LSTMCell", "RNN", "RNNCell"), _RECURRENT),
    **dict.fromkeys(("MultiheadAttention", "Transformer", "TransformerEncoder", "TransformerEncoderLayer"), _ATTENTION),
    "CosineSimilarity": "none: gradflow.sum(x * y, axis) by the product of the norms",
    "DataParallel": _PARALLEL,
    "Dropout1d": "gradflow.nn.Dropout",
    "Dropout2d": "gradflow.nn.Dropout",
    "EmbeddingBag": "none: gradflow.nn.Embedding, and the sum or the mean of its result",
    "LogSigmoid": "none: -gradflow.softplus(-x) in the forward of a module",
    "ParameterDict": "none: gradflow.nn.ParameterList, or assign each gradflow.nn.Parameter to an attribute",
    "ReLU6": "gradflow.nn.Hardtanh(0.0, 6.0)",
    "utils": "gradflow.optim.clip_grad_norm_, gradflow.optim.clip_grad_value_, gradflow.nn.parameters_to_vector and "
    "gradflow.nn.vector_to_parameters",
}
"""For names of `torch.nn`, as `FUNCTIONS`."""

FUNCTIONAL = {
    **dict.fromkeys(("avg_pool2d", "conv1d", "conv2d", "max_pool2d"), _CONVOLUTION),
    "embedding": "gradflow.take(weight, indices, axis=0), or the module gradflow.nn.Embedding",
    "logsigmoid": "-gradflow.softplus(-x)",
    "normalize": "none: divide by gradflow.sqrt(gradflow.sum(gradflow.square(x), axis, keepdims=True) + 1e-24)",
    "relu6": "gradflow.hardtanh(x, 0.0, 6.0)",
    "scaled_dot_product_attention": "none: combine gradflow.matmul and gradflow.softmax",
}
"""For names of `torch.nn.functional`, as `FUNCTIONS`; its other functions are functions of `gradflow`."""

INIT = {
    "eye_": "Tensor.copy_(gradflow.eye(n)) under gradflow.no_grad",
    "sparse_": "none: gradflow.nn.init.normal_",
    "xavier_normal": "gradflow.nn.init.xavier_normal_",
    "xavier_uniform": "gradflow.nn.init.xavier_uniform_",
}
"""For names of `torch.nn.init`, as `FUNCTIONS`."""

OPTIM = {
    "ASGD": "none: gradflow.optim.SGD, and gradflow.training.Settings(average=...) averages the weights",
    "Adadelta": "none: gradflow.optim.RMSprop is the nearest",
    "Adamax": "none: gradflow.optim.Adam is the nearest",
    "LBFGS": "none: gradflow.optim.Adam, or gradflow.optim.SGD with all data as one batch",
    "Rprop": "none: gradflow.optim.RMSprop is the nearest",
    "lr_scheduler": "gradflow.optim.schedules: an optimizer takes a schedule, a function of the step, as its lr",
}
"""For names of `torch.optim`, as `FUNCTIONS`."""

SCHEDULES = {
    "ConstantLR": "none: it lowers the first rates; gradflow.optim.schedules.warmup raises them step by step",
    "CosineAnnealingLR": "gradflow.optim.schedules.cosine",
    "ExponentialLR": "gradflow.optim.schedules.step(lr, every=1, factor=gamma)",
    "LambdaLR": "any function of the step: pass it to the optimizer as its lr, or one to each parameter group",
    "LinearLR": "gradflow.optim.schedules.warmup(schedule, steps), around another schedule",
    "MultiStepLR": "a function of the step: pass it to the optimizer as its lr",
    "OneCycleLR": "gradflow.optim.schedules.one_cycle",
    "ReduceLROnPlateau": "gradflow.optim.schedules.plateau: a function of the losses so far",
    "SequentialLR": "a function of the step that calls one schedule after another: pass it as lr",
    "StepLR": "gradflow.optim.schedules.step",
}
"""For names of `torch.optim.lr_scheduler`, as `FUNCTIONS`."""

AUTOGRAD = {
    "Function": "gradflow.operation(name, forward, *rules)",
    "Variable": "gradflow.tensor(data, requires_grad=True)",
    "detect_anomaly": "gradflow.detect_anomaly",
    "functional": "gradflow itself: gradflow.vjp, gradflow.jvp, gradflow.jacobian, gradflow.hessian, gradflow.hvp",
    "enable_grad": "gradflow.enable_grad",
    "no_grad": "gradflow.no_grad",
    "profiler": FUNCTIONS["profiler"],
    "set_grad_enabled": FUNCTIONS["set_grad_enabled"],
    "grad": "gradflow.gradients(outputs, inputs)",
    "gradcheck": "gradflow.gradcheck",
    "set_detect_anomaly": "gradflow.detect_anomaly",
}
"""For names of `torch.autograd`, as `FUNCTIONS`."""

MODULES: dict[str, Mapping[str, str]] = {
    "gradflow": FUNCTIONS,
    "gradflow.autograd": AUTOGRAD,
    "gradflow.nn": NN,
    "gradflow.nn.functional": FUNCTIONAL,
    "gradflow.nn.init": INIT,
    "gradflow.optim": OPTIM,
    "gradflow.optim.schedules": SCHEDULES,
}
"""The modules with hints, each with its table."""

_INPUT = "leave the name out: gradflow takes it by position"
_FUSED = "leave it out: one kernel updates all parameters"
KEYWORDS = {
    "capturable": _FUSED,
    "dim": "gradflow says axis=",
    "diagonal": "gradflow says k=",
    "dims": "gradflow says axis=",
    "end_dim": "gradflow says end_axis=",
    "foreach": _FUSED,
    "fused": _FUSED,
    "in_dims": "gradflow says in_axes=",
    "initial_accumulator_value": "leave it out: the sums of Adagrad start at 0",
    "inplace": "operations make new tensors, so leave it out",
    "input": _INPUT,
    "keepdim": "gradflow says keepdims=",
    "out_dims": "gradflow says out_axes=",
    "params": "gradflow says parameters=",
    "reduce": "use reduction=",
    "size_average": "use reduction=",
    "start_dim": "gradflow says start_axis=",
    "unbiased": "use correction=1 for True, correction=0 for False (default)",
}
"""For arguments of PyTorch's functions and classes: what to do instead."""


def _hint(name: str, text: str) -> str:
    if text.startswith("none: "):
        return f"gradflow has no {name}: {text.removeprefix('none: ')}"
    return f"PyTorch's {name} is {text}"


def hints_of(module: str, functions: Iterable[str] = ()) -> Callable[[str], NoReturn]:
    """A `__getattr__` for a module, which raises the error for a name that the module does not have.

    functions: names that PyTorch has in this module, and gradflow in `gradflow` (default none).
    """

    def __getattr__(name: str) -> NoReturn:  # noqa: N807
        raise missing_name(module, name, functions)

    return __getattr__


def missing_name(module: str, name: str, functions: Iterable[str] = ()) -> Exception:
    """The error for a name that `module` does not have, to be raised by its `__getattr__`.

    It is an AttributeError, or for `from module import name` an ImportError, since Python drops the text of an
    AttributeError there.
    """
    text = MODULES[module].get(name, f"gradflow.{name}" if name in functions else None)
    hint = "" if text is None else f"; {_hint(name, text)}"
    frame = sys._getframe(2)
    if hint and _imports_a_name(frame.f_code, frame.f_lasti):
        return ImportError(f"cannot import name {name!r} from {module!r}{hint}", name=module)
    return AttributeError(f"module {module!r} has no attribute {name!r}{hint}")


def _imports_a_name(code: CodeType, instruction: int) -> bool:
    from opcode import opmap

    return instruction >= 0 and code.co_code[instruction] == opmap["IMPORT_FROM"]


class MissingAttribute:
    """An attribute that PyTorch's class has and gradflow's does not: reading it raises AttributeError with the hint.

    Unlike `__getattr__`, it does not slow down the access to other attributes.
    """

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text

    def __get__(self, instance: Any, owner: type) -> NoReturn:
        raise AttributeError(f"{owner.__name__!r} object has no attribute {self.name!r}; {_hint(self.name, self.text)}")


_Class = TypeVar("_Class", bound=type)
_Function = TypeVar("_Function", bound=Callable[..., Any])


def hints_at(names: Mapping[str, str]) -> Callable[[_Class], _Class]:
    """Decorate a class: its instances do not have these attributes, and an error says so with the hint."""

    def decorate(cls: _Class) -> _Class:
        for name, text in names.items():
            setattr(cls, name, MissingAttribute(name, text))
        cls.__dir__ = _dir_without_hints  # type: ignore[method-assign, assignment]
        return cls

    return decorate


def _dir_without_hints(instance: Any) -> list[str]:
    names = object.__dir__(instance)
    return [n for n in names if not isinstance(inspect.getattr_static(instance, n, None), MissingAttribute)]


def explains_arguments(cls: _Class) -> _Class:
    """Decorate a class: a TypeError for unexpected arguments names the class, its arguments, and what to do."""
    init = cls.__init__  # type: ignore[misc]
    signature = inspect.signature(init)

    @functools.wraps(init)
    def __init__(self: Any, *arguments: Any, **options: Any) -> None:  # noqa: N807
        try:
            init(self, *arguments, **options)
        except TypeError:
            try:
                signature.bind(self, *arguments, **options)
            except TypeError as error:
                own = list(signature.parameters)[1:]
                advice = "".join(f"; for {name}: {KEYWORDS[name]}" for name in options if name in KEYWORDS)
                takes = f"takes {', '.join(own)}" if own else "takes no arguments"
                raise TypeError(f"{cls.__name__}: {error}; it {takes}{advice}") from None
            raise

    cls.__init__ = __init__  # type: ignore[misc]
    return cls


def refuses_keywords(function: _Function) -> _Function:
    """Decorate a function whose last parameters are keywords of PyTorch, None by default, for `refuse`.

    Its signature does not show them. As parameters they cost a call nothing measurable, which a wrapper would not.
    """
    plain: Any = function
    code = plain.__code__
    own = [name for name in code.co_varnames[: code.co_argcount] if name not in KEYWORDS]
    defaults = plain.__defaults__[: len(own) - code.co_argcount]
    code = code.replace(co_argcount=len(own))
    shown = FunctionType(code, plain.__globals__, code.co_name, defaults, plain.__closure__)
    shown.__annotations__ = {name: kind for name, kind in plain.__annotations__.items() if name not in KEYWORDS}
    plain.__wrapped__ = shown  # whose signature `inspect.signature` reads
    return function


def refuse(function: str, **keywords: Any) -> NoReturn:
    """Raise TypeError for the keywords of PyTorch that `function` got."""
    name = next(name for name, value in keywords.items() if value is not None)
    raise TypeError(f"{function}() got an unexpected keyword argument {name!r}: {KEYWORDS[name]}")
