"""Least squares within limits, without the GIL: the event loop need not wait for it."""

from __future__ import annotations

from libc.math cimport fabs


def solve_boxed(
    const double[:, ::1] a, const double[::1] b, const double[::1] low, const double[::1] high,
    double[::1] x, int sweeps, double least,
) -> None:
    """Minimise x' A x / 2 - b' x within low <= x <= high, in place, from the x given.

    Coordinate descent on a convex quadratic (n, n): sweep after sweep, until none of the
    coordinates moves by more than `least`, or there were that many.
    """
    cdef Py_ssize_t n = x.shape[0], i, j
    cdef double moved, sum, best
    cdef int _
    if not (a.shape[0] == a.shape[1] == b.shape[0] == low.shape[0] == high.shape[0] == n):
        raise ValueError("sizes differ")
    with nogil:
        for _ in range(sweeps):
            moved = 0
            for i in range(n):
                sum = 0
                for j in range(n):
                    sum += a[i, j] * x[j]
                best = x[i] + (b[i] - sum) / a[i, i]
                if low[i] > best:
                    best = low[i]
                if high[i] < best:
                    best = high[i]
                moved = max(moved, fabs(best - x[i]))
                x[i] = best
            if not moved > least:
                break
