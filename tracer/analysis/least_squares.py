"""Robust least squares with coefficients that are not negative, for at most some dozens of coefficients.

The normal equations are solved directly: with so few columns, of counts of about one size, doubles are exact enough.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist, median

Matrix = list[list[float]]

_HUBER = 1.345  # 95 % as efficient as least squares where errors are normal; Huber, Robust Statistics, 1981
_BISQUARE = 4.685  # the same for Tukey's bisquare, which ignores what is farther away; Beaton & Tukey 1974
_SIGMA_OF_MAD = 1.4826  # of a normal distribution: 1 / NormalDist().inv_cdf(0.75)
_ROUNDS = 25
_NOTABLE = 0.1  # share of a column's total that makes another one a part of it
_TINY = 1e-10  # of the largest diagonal element: numerically zero


@dataclasses.dataclass(frozen=True, slots=True)
class Row:
    """An observation: `value` is about the sum of coefficient times count over `cells`, pairs (column, count).

    No column comes twice. `weight` is how much more exact the value is than that of a row of weight 1.
    """

    cells: tuple[tuple[int, float], ...]
    value: float
    weight: float = 1.0

    def predicted(self, coefficients: Sequence[float]) -> float:
        """The value that these coefficients give."""
        return sum([coefficients[column] * count for column, count in self.cells])


@dataclasses.dataclass(frozen=True, slots=True)
class Fit:
    """A solution. `trust` is a weight for each row, from 1 (it fits) to 0 (an outlier that had no influence)."""

    coefficients: list[float]  # none is negative
    unbounded: list[float]  # the same without that bound
    covariance: Matrix  # of `unbounded`
    residuals: list[float]  # of `coefficients`
    trust: list[float]
    degrees: float  # of freedom: trusted rows less columns; 0 or negative if there are too few rows


def fit(rows: Sequence[Row], columns: int, *, floor: float, robust: bool = True) -> Fit:
    """Fit the rows by iteratively reweighted least squares: first with Huber's weights, then with Tukey's.

    `floor` is the least standard deviation of a value, such as that of its rounding. Without `robust` all rows are
    trusted, outliers too.
    """
    trust = [1.0] * len(rows)
    coefficients = [0.0] * columns
    scale = floor
    for weigh in (_huber, _bisquare) if robust else (_equal,):
        for _ in range(_ROUNDS):
            previous = coefficients
            coefficients = nonnegative(*_normal_equations(rows, columns, trust))
            residuals = _residuals(rows, coefficients)
            if weigh is not _bisquare:
                scale = max(floor, _SIGMA_OF_MAD * median([abs(residual) for residual in residuals] or [0.0]))
            trust = [weigh(residual / scale) for residual in residuals]
            if all(abs(a - b) <= 1e-4 * (1.0 + abs(a)) for a, b in zip(coefficients, previous, strict=True)):
                break
    return _solution(rows, columns, trust, floor)


def dependences(rows: Sequence[Row], columns: int, least: float) -> dict[int, list[int]]:
    """Return the columns of counts that are sums of others, each with these others.

    Counts of independent events vary by about their mean. A column depends on others if what they do not explain of it
    has a mean square of less than `least` times its mean. Weights and values of rows have no part in it.
    """
    gram, _ = _normal_equations(rows, columns, [1 / row.weight for row in rows])
    totals = [0.0] * columns
    for row in rows:
        for column, count in row.cells:
            totals[column] += count
    independent: list[int] = []
    found: dict[int, list[int]] = {}
    for column in sorted((i for i in range(columns) if totals[i] > 0), key=lambda i: -totals[i]):
        lower = cholesky([[gram[i][j] for j in independent] for i in independent])
        assert lower is not None  # columns that depend on others are not among them
        products = [gram[i][column] for i in independent]
        shares = substitute(lower, products)
        unexplained = gram[column][column] - sum([a * b for a, b in zip(shares, products, strict=True)])
        freedom = max(1, len(rows) - len(independent) - 1) / len(rows)
        if independent and unexplained < least * totals[column] * freedom:
            found[column] = [
                i
                for i, share in zip(independent, shares, strict=True)
                if abs(share) * totals[i] > _NOTABLE * totals[column]
            ]
        else:
            independent.append(column)
    return found


def nonnegative(gram: Matrix, moments: Sequence[float]) -> list[float]:
    """Return the x >= 0 that minimises x'Gx/2 - m'x, for G = X'X and m = X'y: Lawson & Hanson 1974, chapter 23.

    Columns that are linear combinations of others get 0, or their share, as they come.
    """
    size = len(moments)
    largest = max((gram[i][i] for i in range(size)), default=0.0)
    tolerance = 1e-9 * max((abs(moment) for moment in moments), default=0.0)
    x = [0.0] * size
    free: list[int] = []
    refused: set[int] = set()
    for _ in range(10 * size + 10):
        slopes = {
            j: moments[j] - sum([gram[j][k] * x[k] for k in free])
            for j in range(size)
            if j not in free and j not in refused
        }
        entering = max(slopes, key=lambda j: slopes[j], default=None)
        if entering is None or slopes[entering] <= tolerance:
            break
        before = list(x)
        free.append(entering)
        if not _solve_free(gram, moments, x, free, _TINY * largest):
            x = before
            free = [j for j in range(size) if x[j] > 0.0]
        if entering in free and x[entering] > before[entering]:
            refused.clear()
        else:
            refused.add(entering)
    return x


def _solve_free(gram: Matrix, moments: Sequence[float], x: list[float], free: list[int], tiny: float) -> bool:
    """Solve for the columns in `free`, and take out those that would become negative. False if they are dependent."""
    while free:
        factor = cholesky([[gram[i][j] for j in free] for i in free], tiny)
        if factor is None:
            return False
        wanted = substitute(factor, [moments[i] for i in free])
        negative = [(i, value) for i, value in zip(free, wanted, strict=True) if value <= 0.0]
        if not negative:
            for i, value in zip(free, wanted, strict=True):
                x[i] = value
            return True
        step = min(x[i] / (x[i] - value) if x[i] > 0.0 else 0.0 for i, value in negative)
        for i, value in zip(list(free), wanted, strict=True):
            x[i] += step * (value - x[i])
        leaving = min(negative, key=lambda pair: x[pair[0]])[0]
        for i, _ in negative:
            if i == leaving or x[i] <= 0.0:
                x[i] = 0.0
                free.remove(i)
    return True


def cholesky(matrix: Matrix, tiny: float = 0.0) -> Matrix | None:
    """Return the lower triangle L with L L' = `matrix`, or None if a pivot is not larger than `tiny`."""
    size = len(matrix)
    lower = [[0.0] * size for _ in range(size)]
    for i in range(size):
        row = lower[i]
        for j in range(i + 1):
            other = lower[j]
            rest = matrix[i][j] - sum([row[k] * other[k] for k in range(j)])
            if i == j:
                if rest <= tiny:
                    return None
                row[i] = math.sqrt(rest)
            else:
                row[j] = rest / other[j]
    return lower


def substitute(lower: Matrix, right: Sequence[float]) -> list[float]:
    """Solve L L' x = `right`."""
    size = len(right)
    x = list(right)
    for i in range(size):
        row = lower[i]
        x[i] = (x[i] - sum([row[k] * x[k] for k in range(i)])) / row[i]
    for i in reversed(range(size)):
        x[i] = (x[i] - sum([lower[k][i] * x[k] for k in range(i + 1, size)])) / lower[i][i]
    return x


def student_quantile(share: float, degrees: float) -> float:
    """Quantile of Student's t for a share over 1/2 (Hill, CACM 13:619, 1970, algorithm 396); inf without degrees.

    Off by less than 1 % from 2 degrees on; with 1 it is exact.
    """
    if degrees < 1:
        return math.inf
    tails = 2 * (1 - share)
    if degrees < 2:
        return 1 / math.tan(tails * math.pi / 2)
    if degrees < 3:
        return math.sqrt(2 / (tails * (2 - tails)) - 2)
    a = 1 / (degrees - 0.5)
    b = 48 / (a * a)
    c = ((20700 * a / b - 98) * a - 16) * a + 96.36
    d = ((94.5 / (b + c) - 3) / b + 1) * math.sqrt(a * math.pi / 2) * degrees
    y = (d * tails) ** (2 / degrees)
    if y > 0.05 + a:
        x = NormalDist().inv_cdf(tails / 2)
        y = x * x
        if degrees < 5:
            c += 0.3 * (degrees - 4.5) * (x + 0.6)
        c = (((0.05 * d * x - 5) * x - 7) * x - 2) * x + b + c
        y = (((((0.4 * y + 6.3) * y + 36) * y + 94.5) / c - y - 3) / b + 1) * x
        y = math.expm1(a * y * y)
    else:
        y = (
            (1 / (((degrees + 6) / (degrees * y) - 0.089 * d - 0.822) * (degrees + 2) * 3) + 0.5 / (degrees + 4)) * y
            - 1
        ) * (degrees + 1) / (degrees + 2) + 1 / y
    return math.sqrt(degrees * y)


def _huber(distance: float) -> float:
    return min(1.0, _HUBER / abs(distance)) if distance else 1.0


def _equal(_: float) -> float:
    return 1.0


def _bisquare(distance: float) -> float:
    share = distance / _BISQUARE
    return (1 - share * share) ** 2 if -1 < share < 1 else 0.0


def _normal_equations(rows: Sequence[Row], columns: int, trust: Sequence[float]) -> tuple[Matrix, list[float]]:
    gram = [[0.0] * columns for _ in range(columns)]
    moments = [0.0] * columns
    for row, trusted in zip(rows, trust, strict=True):
        weight = row.weight * trusted
        if not weight:
            continue
        for i, count in row.cells:
            line, scaled = gram[i], weight * count
            moments[i] += scaled * row.value
            for j, other in row.cells:
                line[j] += scaled * other
    return gram, moments


def _residuals(rows: Sequence[Row], coefficients: Sequence[float]) -> list[float]:
    return [(row.value - row.predicted(coefficients)) * math.sqrt(row.weight) for row in rows]


def _solution(rows: Sequence[Row], columns: int, trust: list[float], floor: float) -> Fit:
    gram, moments = _normal_equations(rows, columns, trust)
    ridge = 1e-6 * max([gram[i][i] for i in range(columns)], default=0.0) or 1.0
    inverse = _inverse(gram, ridge)
    coefficients = nonnegative(gram, moments)
    unbounded = _times(inverse, moments)
    spread = [[0.0] * columns for _ in range(columns)]
    for row, trusted, residual in zip(rows, trust, _residuals(rows, unbounded), strict=True):
        if not trusted:
            continue
        # Residuals are smaller than errors, the more so the more the row decides: HC3 of MacKinnon & White 1985.
        weight = row.weight * trusted
        reached = [sum([inverse[i][j] * count for j, count in row.cells]) for i in range(columns)]
        leverage = min(0.9, weight * sum([reached[i] * count for i, count in row.cells]))
        error = residual * trusted / (1 - leverage)
        variance = row.weight * (error * error + floor * floor * trusted * trusted)
        for i, count in row.cells:
            line, scaled = spread[i], variance * count
            for j, other in row.cells:
                line[j] += scaled * other
    correction = _flatness(trust) ** 2
    covariance = [[correction * value for value in line] for line in _product(_product(inverse, spread), inverse)]
    return Fit(
        coefficients=coefficients,
        unbounded=unbounded,
        covariance=covariance,
        residuals=[
            residual / math.sqrt(row.weight) for residual, row in zip(_residuals(rows, coefficients), rows, strict=True)
        ],
        trust=trust,
        degrees=sum(trust) - sum(gram[i][i] > 0.0 for i in range(columns)),
    )


def _flatness(trust: Sequence[float]) -> float:
    """How much less a coefficient moves with an error than the weights say, for they fall as the error rises.

    Tukey's weight of an error u is t = (1 - u²)², and its influence u t has the slope (1 - u²) (1 - 5 u²).
    """
    slopes = sum([math.sqrt(trusted) * (5 * math.sqrt(trusted) - 4) for trusted in trust])
    return min(2.0, sum(trust) / slopes) if slopes > 0 else 2.0


def _inverse(gram: Matrix, ridge: float) -> Matrix:
    size = len(gram)
    lower = cholesky([[gram[i][j] + (ridge if i == j else 0.0) for j in range(size)] for i in range(size)])
    assert lower is not None  # a Gram matrix plus a positive ridge
    return [substitute(lower, [float(i == j) for j in range(size)]) for i in range(size)]


def _times(matrix: Matrix, vector: Sequence[float]) -> list[float]:
    return [sum([a * b for a, b in zip(line, vector, strict=True)]) for line in matrix]


def _product(left: Matrix, right: Matrix) -> Matrix:
    columns = list(zip(*right, strict=True))
    return [[sum([a * b for a, b in zip(line, column, strict=True)]) for column in columns] for line in left]
