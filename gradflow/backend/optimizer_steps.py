"""Steps of optimizers on flat arrays, and the clipping of gradients: the composed defaults."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from gradflow.backend.array_functions import Array
from gradflow.backend.half_floats import in_float32
from gradflow.backend.kernels import KernelBase, kernel


class OptimizerKernels(KernelBase):
    """Steps of optimizers, composed of array functions; all change arrays in place."""

    # ------------------------------------------------------------------ kernels: optimizers, all in place

    @kernel
    @functools.partial(in_float32, changes=(0, 2))
    def sgd_step(
        self,
        parameter: Array,
        gradient: Array,
        velocity: Array | None,
        lr: float,
        momentum: float,
        dampening: float,
        nesterov: bool,
        weight_decay: float,
        first: bool,
    ) -> None:
        """A step of SGD on flat arrays: `parameter` and `velocity` change, `gradient` does not.

        PyTorch's SGD: d = g + weight_decay * p; v = d at the `first` step, else momentum * v + (1 - dampening) * d;
        p -= lr * (d + momentum * v if nesterov else v). `velocity` is None where momentum is 0.
        """
        d = gradient
        if weight_decay:
            d = self.add(d, self.multiply(parameter, weight_decay))
        if velocity is not None:
            if first:
                velocity[...] = d
            else:
                velocity[...] = self.add(self.multiply(velocity, momentum), self.multiply(d, 1.0 - dampening))
            d = self.add(d, self.multiply(velocity, momentum)) if nesterov else velocity
        parameter[...] = self.subtract(parameter, self.multiply(d, lr))

    @kernel
    @functools.partial(in_float32, changes=(0, 2, 3))
    def adam_step(
        self,
        parameter: Array,
        gradient: Array,
        mean: Array,
        square: Array,
        step: int,
        lr: float,
        beta1: float,
        beta2: float,
        epsilon: float,
        weight_decay: float,
        decoupled: bool,
    ) -> None:
        """A step of Adam, or of AdamW with `decoupled`, on flat arrays: all but `gradient` change. step: 1, 2, ...

        Kingma & Ba 2015, "Adam", algorithm 1, with epsilon as in PyTorch, outside the corrected root; Loshchilov &
        Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2.
        """
        if weight_decay and decoupled:
            parameter[...] = self.multiply(parameter, 1.0 - lr * weight_decay)
        elif weight_decay:
            gradient = self.add(gradient, self.multiply(parameter, weight_decay))
        mean[...] = self.add(self.multiply(mean, beta1), self.multiply(gradient, 1.0 - beta1))
        square[...] = self.add(self.multiply(square, beta2), self.multiply(self.square(gradient), 1.0 - beta2))
        root = self.multiply(self.sqrt(square), 1.0 / math.sqrt(1.0 - beta2**step))
        update = self.divide(self.multiply(mean, lr / (1.0 - beta1**step)), self.add(root, epsilon))
        parameter[...] = self.subtract(parameter, update)

    @kernel
    @functools.partial(in_float32, changes=(0, 2, 3, 4))
    def rmsprop_step(
        self,
        parameter: Array,
        gradient: Array,
        square: Array,
        mean: Array | None,
        velocity: Array | None,
        lr: float,
        alpha: float,
        epsilon: float,
        weight_decay: float,
        momentum: float,
    ) -> None:
        """A step of RMSprop on flat arrays: all but `gradient` change.

        Tieleman & Hinton 2012, lecture 6.5; centred where `mean` is given (Graves 2013, "Generating Sequences",
        eq. 38-41), with a momentum where `velocity` is; epsilon outside the root, as in PyTorch. Where rounding makes
        the centred mean square negative, it is 0.
        """
        if weight_decay:
            gradient = self.add(gradient, self.multiply(parameter, weight_decay))
        square[...] = self.add(self.multiply(square, alpha), self.multiply(self.square(gradient), 1.0 - alpha))
        average = square
        if mean is not None:
            mean[...] = self.add(self.multiply(mean, alpha), self.multiply(gradient, 1.0 - alpha))
            average = self.maximum(self.subtract(square, self.square(mean)), 0.0)  # which rounding may miss
        update = self.divide(gradient, self.add(self.sqrt(average), epsilon))
        if velocity is not None:
            velocity[...] = self.add(self.multiply(velocity, momentum), update)
            update = velocity
        parameter[...] = self.subtract(parameter, self.multiply(update, lr))

    @kernel
    @functools.partial(in_float32, changes=(0,))
    def clip_global_norm(self, gradients: Sequence[Array], max_norm: float) -> Array:
        """Scale the arrays in place by min(1, max_norm / (norm + 1e-6)); returns their 2-norm before that, 0-d.

        The norm stays on the device: nothing waits for it. Pascanu et al. 2013, "On the difficulty of training
        recurrent neural networks", algorithm 1.
        """
        total = self.sum(self.square(gradients[0]))
        for gradient in gradients[1:]:
            total = self.add(total, self.sum(self.square(gradient)))
        norm = self.sqrt(total)
        factor = self.minimum(self.divide(max_norm, self.add(norm, 1e-6)), 1.0)
        for gradient in gradients:
            gradient[...] = self.multiply(gradient, self.astype(factor, gradient.dtype, copy=False))
        return self.astype(norm, gradients[0].dtype, copy=False)
