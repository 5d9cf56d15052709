"""The native code of `threads`: how threads share the chunks of a run, and how Python calls it.

A *run* is a table of chunks, numbered level by level. Words of the `CONTROL` block that all threads see:

- TICKET: the number of chunks of the run (high 32 bits) and the next chunk that nobody has claimed (low 32 bits).
  Whoever adds one to it by compare-and-set owns this chunk. Nobody reads the run before that, and a run does not end
  before its chunks are done, so that the memory of a run may be freed after it.
- DONE: how many of its chunks are done. The owner of a chunk first waits for all chunks of earlier levels: they have
  been claimed before, by threads that wait for even earlier ones at most.
- ACTIVE: how many workers are wanted; a worker with a number not below it returns from `serve`.
- for each worker, whether it sleeps (1), and the lock of the interpreter's library that it waits for then. Whoever
  changes 1 to 0 releases the lock.
- LOCK: 1 while a thread runs chunks for others to share, with the memory SCRATCH. Another thread that wants to run
  something meanwhile does all of it alone, with memory of its own.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from typing import Any

from llvmlite import ir

from gradflow_numpy.native.emit import F64, I32, I64, Function, Target, Value

# words of the control block, in bytes: those that change often are in different lines of the cache
LOCK, TICKET, DONE, ACTIVE = 0, 64, 128, 192
RUN, SCRATCH, NONE, NDARRAY = 256, 264, 272, 280
WORKERS, WORKER = 320, 64  # for each worker: whether it sleeps, and a lock
MOST_WORKERS = 255
CONTROL = WORKERS + WORKER * MOST_WORKERS

# words of a run: the number of chunks and the addresses of its tables
CHUNKS, CHUNK_TABLE, PIECE_TABLE, OPERATION_TABLE, STATUS = 0, 8, 16, 24, 32
# and, for a program: how it is run, and the number and the table of its patches
MODE, PATCHES, PATCH_TABLE = 40, 48, 56
CHUNK = 24  # first piece, end of pieces, chunks that must be done before
PIECE = 32  # first operation, end of operations, start, stop
OPERATION = 16  # function, arguments
PATCH = 24  # address of a word, number of an input, bytes to add

AT_ONCE, ALONE, SHARED = 0, 1, 2
"""Modes: on this thread and with the lock of the interpreter; without it; and on several threads."""

SPINS = 2000
"""How often a waiting thread looks before it lets other threads have the core between looks."""
PATIENCE = 8000
"""How often an idle worker looks before it sleeps."""

API = (
    "PyErr_BadArgument",
    "PyErr_Occurred",
    "PyEval_RestoreThread",
    "PyEval_SaveThread",
    "PyFloat_AsDouble",
    "PyLong_AsLongLong",
    "PyLong_FromLongLong",
    "PyMem_RawFree",
    "PyMem_RawMalloc",
    "PyThread_acquire_lock",
    "PyThread_release_lock",
    "PyTuple_GetItem",
    "PyTuple_Size",
    "PyType_IsSubtype",
)
"""What is called of the interpreter."""


def module_text(target: Target, scratch: int, head: int) -> str:
    """The LLVM IR of `serve(control, scratch, number)`, `wake(control, workers)`, `launch` and `run`.

    `launch(function, kinds, items, size, arguments)` and `run(program, inputs)` are functions for Python
    (METH_FASTCALL) whose `self` is the control block, an array; arguments and inputs are tuples. `kinds` has a bit for
    each argument, 1 for a number, and one more bit that is 1. size: the items of a chunk, or 0: AT_ONCE.

    scratch: the bytes of a thread's memory. head: the bytes at the beginning of every object of the interpreter.
    """
    module = ir.Module("threads")

    def function(name: str, parameters: int, build: Callable[..., Value | None], result: Any = I64) -> None:
        fn = Function(module, name, [I64] * parameters, F64, target, result)
        fn.finish(build(fn, *fn.parameters))

    function("perform", 3, _perform, ir.VoidType())
    function("assist", 2, _assist)
    function("wake", 2, _wake, ir.VoidType())
    function("execute", 3, functools.partial(_execute, scratch_bytes=scratch), ir.VoidType())
    function("serve", 3, _serve, ir.VoidType())
    function("address", 2, functools.partial(_address, head=head))
    function("launch", 3, functools.partial(_launch, head=head))
    function("run", 3, functools.partial(_run, head=head))
    return str(module)


# ---------------------------------------------------------------------- chunks


def _perform(fn: Function, run: Value, chunk: Value, scratch: Value) -> None:
    """Do a chunk, unless an earlier level has set the status."""
    status = fn.variable(fn.integer(0))
    with fn.when((_word(fn, run, STATUS) != 0) & (_word(fn, chunk, 16) > 0)):
        status.set(_word(fn, _word(fn, run, STATUS)))
    with (
        fn.when(status.get() == 0),
        fn.loop(_word(fn, chunk), _word(fn, chunk, 8)) as i,
    ):
        piece = _word(fn, run, PIECE_TABLE) + i * PIECE
        with fn.loop(_word(fn, piece), _word(fn, piece, 8)) as k:
            operation = _word(fn, run, OPERATION_TABLE) + k * OPERATION
            given = _word(fn, operation, 8), _word(fn, piece, 16), _word(fn, piece, 24), scratch
            kind = ir.FunctionType(ir.VoidType(), [I64] * 4).as_pointer()
            kernel = fn.builder.inttoptr(_word(fn, operation).ir, kind)
            fn.builder.call(kernel, [x.ir for x in given])


def _assist(fn: Function, control: Value, scratch: Value) -> Value:
    """Try to claim a chunk of the current run and do it: 0 if all have been claimed."""
    ticket = _atomic(fn, control + TICKET)
    following, chunks = ticket & 0xFFFFFFFF, ticket >> 32
    with fn.when(following < chunks), fn.when(_compare_and_set(fn, control + TICKET, ticket, ticket + 1)):
        run = _word(fn, control, RUN)
        chunk = _word(fn, run, CHUNK_TABLE) + following * CHUNK
        before = _word(fn, chunk, 16)
        _wait(fn, lambda: _atomic(fn, control + DONE) < before)
        fn.call("perform", ir.VoidType(), run, chunk, scratch)
        fn.builder.atomic_rmw("add", _pointer(fn, control + DONE), I64(1), "seq_cst")
    return (following < chunks).as_integer(I64)


def _execute(fn: Function, control: Value, run: Value, mode: Value, scratch_bytes: int) -> None:
    """Do all chunks of a run, with the workers if the mode is SHARED and no other thread has them."""
    locked = _compare_and_set(fn, control + LOCK, fn.integer(0), fn.integer(1))
    memory, state = fn.variable(fn.integer(0)), fn.variable(fn.integer(0))
    with fn.when(~locked):
        memory.set(fn.call("PyMem_RawMalloc", I64, fn.integer(scratch_bytes + 64)))
    scratch = fn.select(locked, _word(fn, control, SCRATCH), (memory.get() + 63) & -64)
    with fn.when(mode != AT_ONCE):
        state.set(fn.call("PyEval_SaveThread", I64))

    chunks = _word(fn, run, CHUNKS)
    with fn.when_else(locked & (mode == SHARED)) as (shared, alone):
        with shared:
            fn.store(run, control + RUN)
            _set(fn, control + DONE, fn.integer(0))
            _set(fn, control + TICKET, chunks << 32)
            fn.call("wake", ir.VoidType(), control, _atomic(fn, control + ACTIVE))
            with fn.repeat_while(lambda: fn.call("assist", I64, control, scratch) != 0):
                pass
            _wait(fn, lambda: _atomic(fn, control + DONE) < chunks)
        with alone, fn.loop(0, chunks) as i:
            fn.call("perform", ir.VoidType(), run, _word(fn, run, CHUNK_TABLE) + i * CHUNK, scratch)

    with fn.when_else(locked) as (was_locked, was_not):
        with was_locked:
            _set(fn, control + LOCK, fn.integer(0))
        with was_not:
            fn.call("PyMem_RawFree", ir.VoidType(), memory.get())
    with fn.when(mode != AT_ONCE):
        fn.call("PyEval_RestoreThread", ir.VoidType(), state.get())


def _serve(fn: Function, control: Value, scratch: Value, number: Value) -> None:
    """What a worker does as long as it is wanted."""
    worker, idle = control + WORKERS + number * WORKER, fn.variable(fn.integer(0))
    with (
        fn.repeat_while(lambda: number < _atomic(fn, control + ACTIVE)),
        fn.when_else(fn.call("assist", I64, control, scratch) != 0) as (busy, free),
    ):
        with busy:
            idle.set(fn.integer(0))
        with free, fn.when_else(idle.get() < PATIENCE) as (look, sleep):
            with look:
                _rest(fn, idle.get())
                idle.set(idle.get() + 1)
            with sleep:
                _set(fn, worker, fn.integer(1))
                with fn.when(number >= _atomic(fn, control + ACTIVE)):  # whoever changed this may have missed the 1
                    fn.call("wake", ir.VoidType(), control, number + 1)
                fn.call("PyThread_acquire_lock", I32, _word(fn, worker, 8), fn.constant(1, I32))
                idle.set(fn.integer(0))


def _wake(fn: Function, control: Value, workers: Value) -> None:
    """Wake the first workers, if they sleep."""
    with fn.loop(0, workers) as i:
        worker = control + WORKERS + i * WORKER
        with fn.when(_atomic(fn, worker) == 1), fn.when(_compare_and_set(fn, worker, fn.integer(1), fn.integer(0))):
            fn.call("PyThread_release_lock", ir.VoidType(), _word(fn, worker, 8))


# ---------------------------------------------------------------------- calls by Python


def _launch(fn: Function, control: Value, objects: Value, count: Value, head: int) -> Value:
    control = _word(fn, control, head)
    function, kinds, items, size = (_integer(fn, _word(fn, objects, 8 * i)) for i in range(4))
    mode = fn.select(size == 0, AT_ONCE, fn.select(size < items, SHARED, fn.integer(ALONE)))
    size = fn.select(mode == SHARED, size, items)
    chunks = fn.select(items == 0, 0, (items + size - 1) / fn.select(items == 0, 1, size))

    given = _word(fn, objects, 32)
    count = fn.call("PyTuple_Size", I64, given)
    arguments = _memory(fn, count)
    fits = (kinds >> count) == 1
    with fn.when(fits), fn.loop(0, count) as i:
        x, place = fn.call("PyTuple_GetItem", I64, given, i), arguments + 8 * i
        with fn.when_else(((kinds >> i) & 1) == 1) as (number, other):
            with number:
                fn.store(fn.call("PyFloat_AsDouble", F64, x), place)
            with other:
                fn.store(fn.call("address", I64, control, x), place)
    with fn.when(~fits):
        fn.call("PyErr_BadArgument", I32)

    operation, run, pieces, table = (_memory(fn, n) for n in (fn.integer(2), fn.integer(5), chunks * 4, chunks * 3))
    _fill(fn, operation, function, arguments)
    _fill(fn, run, chunks, table, pieces, operation, fn.integer(0))
    with fn.loop(0, chunks) as i:
        stop = fn.select(i == chunks - 1, items, (i + 1) * size)
        _fill(fn, pieces + i * PIECE, fn.integer(0), fn.integer(1), i * size, stop)
        _fill(fn, table + i * CHUNK, i, i + 1, fn.integer(0))
    return _result(fn, control, run, mode, fn.integer(0))


def _run(fn: Function, control: Value, objects: Value, count: Value, head: int) -> Value:
    control = _word(fn, control, head)
    program = _word(fn, _word(fn, objects), head)
    with fn.loop(0, _word(fn, program, PATCHES)) as i:
        patch = _word(fn, program, PATCH_TABLE) + i * PATCH
        given = fn.call("PyTuple_GetItem", I64, _word(fn, objects, 8), _word(fn, patch, 8))
        fn.store(fn.call("address", I64, control, given) + _word(fn, patch, 16), _word(fn, patch))
    status = _word(fn, program, STATUS)
    with fn.when(status != 0):
        fn.store(fn.integer(0), status)
    return _result(fn, control, program, _word(fn, program, MODE), status)


def _result(fn: Function, control: Value, run: Value, mode: Value, status: Value) -> Value:
    """Do a run and return its status as an object, or raise the error of reading its arguments."""
    result, code = fn.variable(fn.integer(0)), fn.variable(fn.integer(0))
    with fn.when(fn.call("PyErr_Occurred", I64) == 0):
        fn.call("execute", ir.VoidType(), control, run, mode)
        with fn.when(status != 0):
            code.set(_word(fn, status))
        result.set(fn.call("PyLong_FromLongLong", I64, code.get()))
    return result.get()


def _address(fn: Function, control: Value, x: Value, head: int) -> Value:
    """The address of an array's data, 0 for None, or an integer."""
    result = fn.variable(fn.integer(0))
    kind, ndarray = _word(fn, x, head - 8), _word(fn, control, NDARRAY)
    with fn.when_else(kind == ndarray) as (array, other):
        with array:
            result.set(_word(fn, x, head))  # after the head of the object: NumPy's ABI
        with (
            other,
            fn.when(x != _word(fn, control, NONE)),
            fn.when_else(fn.call("PyType_IsSubtype", I32, kind, ndarray) != 0) as (array, integer),
        ):
            with array:
                result.set(_word(fn, x, head))
            with integer:
                result.set(_integer(fn, x))
    return result.get()


def _integer(fn: Function, x: Value) -> Value:
    return fn.call("PyLong_AsLongLong", I64, x)


# ---------------------------------------------------------------------- memory and waiting


def _word(fn: Function, address: Value, offset: int = 0) -> Value:
    return fn.load(address + offset, I64)


def _fill(fn: Function, address: Value, *words: Value) -> None:
    for i, word in enumerate(words):
        fn.store(word, address + 8 * i)


def _memory(fn: Function, words: Value) -> Value:
    """The address of memory for this call."""
    return Value(fn, fn.builder.ptrtoint(fn.builder.alloca(I64, words.ir), I64))


def _pointer(fn: Function, address: Value) -> Any:
    return fn.builder.inttoptr(address.ir, I64.as_pointer())


def _atomic(fn: Function, address: Value) -> Value:
    return Value(fn, fn.builder.load_atomic(_pointer(fn, address), "seq_cst", 8))


def _set(fn: Function, address: Value, value: Value) -> None:
    fn.builder.store_atomic(value.ir, _pointer(fn, address), "seq_cst", 8)


def _compare_and_set(fn: Function, address: Value, expected: Value, value: Value) -> Value:
    """Whether the word was as expected and has been set."""
    pair = fn.builder.cmpxchg(_pointer(fn, address), expected.ir, value.ir, "seq_cst")
    return Value(fn, fn.builder.extract_value(pair, 1))


def _wait(fn: Function, condition: Callable[[], Value]) -> None:
    """Wait while a condition is true."""
    turns = fn.variable(fn.integer(0))
    with fn.repeat_while(condition):
        _rest(fn, turns.get())
        turns.set(turns.get() + 1)


def _rest(fn: Function, turns: Value) -> None:
    """A short pause, or after many turns let another thread have the core."""
    with fn.when_else(turns < SPINS) as (spin, let):
        with spin:
            if platform.machine().lower() in ("aarch64", "arm64"):
                fn.call("llvm.aarch64.hint", ir.VoidType(), fn.constant(1, I32))
            else:
                fn.call("llvm.x86.sse2.pause", ir.VoidType())
        with let:
            fn.call("sched_yield", I32)
