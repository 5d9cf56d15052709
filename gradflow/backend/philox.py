"""Counter-based random bits, and dropout: the kernels composed of array functions."""

from __future__ import annotations

import math
from typing import Any

from gradflow.backend.array_functions import Array
from gradflow.backend.half_floats import in_float32
from gradflow.backend.kernels import KernelBase, kernel

_PHILOX_M = (0xD2E7470EE14C6C93, 0xCA5A826395121157)
_PHILOX_W = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_U64 = (1 << 64) - 1


def _words_of_host(self: Any, key: int | None, counter: Any, n: int) -> Any:
    """The values of `Backend.random_bits`, computed by NumPy."""
    from numpy.random import Philox  # for libraries without uint64 arithmetic

    key, counter = numbers_of_draw(key, counter if key is not None else self.to_host(counter))
    return Philox(key=key, counter=counter).random_raw(n)


def numbers_of_draw(key: int | None, counter: Any) -> tuple[int, int]:
    """The key and the counter of a draw whose words may be in a NumPy array, as in `Backend.random_bits`."""
    if key is not None:
        return key, counter
    first, key = (sum(int(word) << (64 * i) for i, word in enumerate(part)) for part in (counter[:4], counter[4:]))
    return key, (first - 1) % (1 << 256)


def philox_words(key: int, counter: int) -> tuple[int, ...]:
    """The words of such an array: 4 of the counter of the first block, 2 of the key."""
    first = counter + 1
    words = [first >> shift for shift in (0, 64, 128, 192)] + [key, key >> 64]
    return tuple(word & _U64 for word in words)


def dropout_threshold(p: float) -> int:
    """The smallest 32-bit value that dropout keeps, for the probability p in [0, 1) of dropping."""
    return min(round(p * 2**32), 2**32 - 1)


class RandomKernels(KernelBase):
    """The composed kernels of random bits and dropout."""

    # ------------------------------------------------------------------ kernels: randomness

    @kernel
    def random_bits(self, key: int | None, counter: Any, n: int) -> Array:
        """n uint64 values: the stream of `numpy.random.Philox(key=key, counter=counter)`, bit for bit.

        Philox4x64-10 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as 1, 2, 3"): value i is lane i % 4 of the
        block with the counter `counter` + 1 + i // 4. key: 128 bits. counter: 256 bits. Or key: None, and counter: an
        array of 6 uint64 words on the device, with the same results: `counter` + 1 in four words, the lowest first, and
        the key in two. If `uint64_works` is false, the default computes them by NumPy on the host.
        """
        if not self.uint64_works:
            return self.from_host(_words_of_host(self, key, counter, n))
        blocks = (n + 3) // 4
        u64 = self.dtypes["uint64"]

        def constant(value: int) -> Array:
            return self.full((), value & _U64, dtype=u64)

        low_mask, half = constant(0xFFFFFFFF), constant(32)

        def multiply_high_low(a: Array, m: int) -> tuple[Array, Array]:
            a0, a1 = self.bitwise_and(a, low_mask), self.bitwise_right_shift(a, half)
            m0, m1 = constant(m & 0xFFFFFFFF), constant(m >> 32)
            middle = self.add(self.multiply(a1, m0), self.bitwise_right_shift(self.multiply(a0, m0), half))
            other = self.add(self.multiply(a0, m1), self.bitwise_and(middle, low_mask))
            high = self.add(self.multiply(a1, m1), self.bitwise_right_shift(middle, half))
            return self.add(high, self.bitwise_right_shift(other, half)), self.multiply(a, constant(m))

        def key_of(i: int, r: int) -> Array:
            if key is None:
                return self.add(counter[4 + i : 5 + i], constant(r * _PHILOX_W[i]))
            return constant((key >> (64 * i)) + r * _PHILOX_W[i])

        words = [counter[i : i + 1] if key is None else constant((counter + 1) >> (64 * i)) for i in range(4)]
        steps = self.arange(blocks, dtype=u64)
        c = [self.add(words[0], steps)]
        carry = self.astype(self.less(c[0], words[0]), u64)
        for word in words[1:]:
            c.append(self.add(word, carry))
            carry = self.astype(self.less(c[-1], word), u64)
        for r in range(10):
            high0, low0 = multiply_high_low(c[0], _PHILOX_M[0])
            high1, low1 = multiply_high_low(c[2], _PHILOX_M[1])
            c = [
                self.bitwise_xor(self.bitwise_xor(high1, c[1]), key_of(0, r)), low1,
                self.bitwise_xor(self.bitwise_xor(high0, c[3]), key_of(1, r)), low0,
            ]  # fmt: skip
        return self.reshape(self.stack(c, axis=-1), (-1,))[:n]

    @kernel
    def dropout(self, x: Array, p: float, key: int | None, counter: Any, skip: int = 0) -> tuple[Array, Any]:
        """x / (1 - p) where kept, 0 where dropped (with probability p in [0, 1)); and the mask as the residual.

        Element i (in C order) is kept if the 32-bit half j % 2 (the low half first) of word j // 2 of `random_bits` is
        at least `dropout_threshold(p)`, about p * 2^32, for j = i + skip. key, counter: as for `random_bits`. skip: how
        many elements of a larger array, 0 to 7, come before x in its first block (default 0). Srivastava et al. 2014,
        "Dropout", scaled during training. If `uint64_works` is false, the default computes the mask by NumPy on the
        host.
        """
        n = skip + math.prod(x.shape)
        if not self.uint64_works:
            host = _words_of_host(self, key, counter, (n + 1) // 2).astype("<u8", copy=False).view("<u4")[skip:n]
            mask = self.from_host((host >= dropout_threshold(p)).reshape(x.shape))
            return self.dropout_backward(x, mask, p), mask
        words = self.random_bits(key, counter, (n + 1) // 2)
        u64 = self.dtypes["uint64"]
        low = self.bitwise_and(words, self.full((), 0xFFFFFFFF, dtype=u64))
        high = self.bitwise_right_shift(words, self.full((), 32, dtype=u64))
        halves = self.reshape(self.stack([low, high], axis=-1), (-1,))[skip:n]
        keep = self.greater_equal(halves, self.full((), dropout_threshold(p), dtype=u64))
        mask = self.reshape(keep, x.shape)
        return self.dropout_backward(x, mask, p), mask

    @kernel
    @in_float32
    def dropout_backward(self, g: Array, mask: Array, p: float) -> Array:
        """g / (1 - p) where the mask is true, 0 elsewhere, as a new array."""
        return self.where(mask, self.multiply(g, 1.0 / (1.0 - p)), 0.0)

    def dropout_factors(self, like: Any, p: float, key: int | None, counter: Any, skip: int = 0) -> Array:
        """The factors, 0 or 1 / (1 - p), by which `dropout` multiplies an array with the shape and dtype of `like`.

        For half floats the factors are float32, since 1 / (1 - p) may be too large for float16.
        """
        dtype = self.single if like.dtype in self.half_dtypes else like.dtype
        return self.dropout(self.ones(like.shape, dtype=dtype), p, key, counter, *[skip] * (skip > 0))[0]
