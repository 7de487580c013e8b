"""How fast a machine multiplies matrices, and what share of it a computation reaches."""

import torch

from tests.benchmarks.measure import seconds_of
from utils.process.distributed import device

TERA = 10**12
ROUNDS, PRODUCTS = 3, 10


def matrix_rate(small: bool) -> float:
    """Floating-point operations a second of products of square bf16 matrices, 2 n³ each: the best of several rounds."""
    size = 64 if small else 8192
    a, b = (torch.randn(size, size, device=device()).bfloat16() for _ in range(2))
    out = torch.empty_like(a)

    def products() -> None:
        for _ in range(PRODUCTS):
            torch.mm(a, b, out=out)

    products()
    return PRODUCTS * 2 * size**3 / min(seconds_of(products) for _ in range(ROUNDS))
