"""Native code for the CPU, made by LLVM through llvmlite (the extra `fast`).

- `llvm`: compiles a group of kernels for this processor, and keeps the object file for later processes.
- `emit`: what kernels are written in: values with operators, loops, vectors of the processor's width.
- `kernels`: what a kernel is, how its arguments are passed, and `launch`.
- `tiles`: matrix products in tiles; `products`: the kernels of a linear layer; `linear`: which of them is used when.
- `threads`: runs kernels on several threads, which share the work as `sharing` says.
- `lowering`: a traced step as programs of kernels, with Python calls in between; `levels`: which kernels run at the
  same time; `step`: what replays a captured step.
"""
