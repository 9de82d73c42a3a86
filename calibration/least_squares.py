"""Least squares for a handful of parameters with bounds, and an honest word on how well they are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from robot.types import Floats

Values = Mapping[str, float]
# One series of residuals per joint and motion: errors within one hang together, between them they do not.
Residuals = Callable[[Values], Sequence[Floats]]

ITERATIONS = 20
GOOD = 3.0  # times the noise: a valley whose floor is as low as this is the right one
CLOSE = 1e-4  # a step that improves the sum of squares by less than this share ends the search
# Levenberg-Marquardt: at least, at first, and where no direction leads down any more.
DAMPING = (1e-6, 1e-3, 1e4)


@dataclass(frozen=True)
class Parameter:
    """One unknown: where the search begins, where it may go, how finely it is varied."""

    name: str
    start: float
    low: float
    high: float
    # "log" for what is positive and known only by its order of magnitude; "linear" for what may well be 0.
    scale: Literal["log", "linear"] = "log"
    vary: float = 0.01  # by which slopes are measured: of the logarithm, or in the parameter's own unit
    least: float = 0.0  # below this a value cannot be told from nothing, whatever its standard error

    def inner(self, value: float) -> float:
        """The coordinate of the search."""
        return math.log(value) if self.scale == "log" else value

    def outer(self, coordinate: float) -> float:
        """The value of a coordinate, inside the bounds."""
        return min(max(math.exp(coordinate) if self.scale == "log" else coordinate, self.low), self.high)


@dataclass(frozen=True)
class Estimate:
    """A parameter's value and standard error, both in its unit."""

    value: float
    error: float  # infinite when the data do not depend on it
    at_bound: bool

    @property
    def relative(self) -> float:
        """The standard error as a share of the value."""
        return self.error / self.value if self.value > 0 else math.inf


@dataclass(frozen=True)
class Solution:
    """The best values found, and what the residuals came to with them (root mean square)."""

    estimates: Mapping[str, Estimate]
    rms: float

    @property
    def values(self) -> dict[str, float]:
        """The values alone."""
        return {name: estimate.value for name, estimate in self.estimates.items()}


def solve(
    residuals: Residuals,
    parameters: Sequence[Parameter],
    starts: Sequence[Values],
    noise: float,
    told: Callable[[float], None] = lambda share: None,
    tries: int = 1,
) -> Solution:
    """The parameters with the smallest sum of squares, from the best `tries` of several starts.

    starts: values that replace some parameters' own; noise: what a perfect model leaves (rms), so that errors
    are never told smaller than it allows. told: hears how much of the work is done, 0 to 1.
    """
    problem = _Problem(residuals, parameters)
    candidates = [problem.coordinates({**problem.begin, **start}) for start in (*starts, {})]
    ends: list[Solution] = []
    for number, begin in enumerate(sorted(candidates, key=problem.cost)[:tries]):
        told(0.2 + 0.8 * number / tries)
        ends.append(problem.solution(_descend(problem, begin), noise))
        if ends[-1].rms < GOOD * noise:
            break
    return min(ends, key=lambda end: end.rms)


@dataclass
class _Problem:
    """Residuals as a function of the search's coordinates."""

    residuals: Residuals
    parameters: Sequence[Parameter]

    @property
    def begin(self) -> dict[str, float]:
        return {parameter.name: parameter.start for parameter in self.parameters}

    def coordinates(self, values: Values) -> Floats:
        clipped = (min(max(values[p.name], p.low), p.high) for p in self.parameters)
        return np.array([p.inner(value) for p, value in zip(self.parameters, clipped, strict=True)])

    def values(self, x: Floats) -> dict[str, float]:
        return {p.name: p.outer(float(c)) for p, c in zip(self.parameters, x, strict=True)}

    def inside(self, x: Floats) -> Floats:
        return self.coordinates(self.values(x))

    def series(self, x: Floats) -> list[Floats]:
        return list(self.residuals(self.values(x)))

    def flat(self, x: Floats) -> Floats:
        return np.concatenate(self.series(x))

    def cost(self, x: Floats) -> float:
        return float(np.square(self.flat(x)).sum())

    def jacobian(self, x: Floats, here: Floats) -> Floats:
        """(N, P) slopes; towards the inside where a bound is in the way."""
        columns = []
        for number, parameter in enumerate(self.parameters):
            step = np.zeros(len(x))
            step[number] = parameter.vary
            if (self.inside(x + step) != x + step)[number]:
                step = -step
            columns.append((self.flat(x + step) - here) / step[number])
        return np.stack(columns, axis=1)

    def solution(self, x: Floats, noise: float) -> Solution:
        series = self.series(x)
        here = np.concatenate(series)
        slopes = self.jacobian(x, here)
        errors = _standard_errors(slopes, series, noise)
        values = self.values(x)
        estimates = {}
        for parameter, error in zip(self.parameters, errors.tolist(), strict=True):
            value = values[parameter.name]
            unit = value if parameter.scale == "log" else 1.0
            edge = value <= parameter.low * (1 + 1e-9) or value >= parameter.high * (1 - 1e-9)
            estimates[parameter.name] = Estimate(value, error * unit, edge)
        return Solution(estimates, float(np.sqrt(np.square(here).mean())))


def _descend(problem: _Problem, x: Floats) -> Floats:
    """Levenberg and Marquardt's way down, in steps that stay inside the bounds."""
    here, damping = problem.flat(x), DAMPING[1]
    for _ in range(ITERATIONS):
        slopes, cost = problem.jacobian(x, here), float(here @ here)
        while damping < DAMPING[2]:
            trial = problem.inside(x + _step(slopes, here, damping))
            there = problem.flat(trial)
            if (reached := float(there @ there)) < cost:
                break
            damping *= 10
        else:
            return x
        x, here, damping = trial, there, max(damping / 10, DAMPING[0])
        if cost - reached < CLOSE * cost:
            return x
    return x


def _step(slopes: Floats, here: Floats, damping: float) -> Floats:
    curvature = slopes.T @ slopes
    floor = 1e-12 * max(float(curvature.diagonal().max()), 1e-300)
    damped = curvature + np.diag(damping * curvature.diagonal() + floor)
    return np.asarray(np.linalg.solve(damped, -slopes.T @ here), np.float64)


def _standard_errors(slopes: Floats, series: Sequence[Floats], noise: float) -> Floats:
    """(P,), whichever is larger: for independent errors, or for errors that hang together within a series.

    What the model gets wrong hangs together over seconds; thousands of readings then say less than they seem
    to. The sandwich over series (Liang and Zeger 1986) counts each series once.
    """
    here, count = np.concatenate(series), slopes.shape[1]
    curvature = slopes.T @ slopes
    ridge = 1e-12 * max(float(np.trace(curvature)), 1e-300)
    inverse = np.linalg.inv(curvature + ridge * np.eye(count))
    variance = max(float(here @ here) / max(len(here) - count, 1), noise**2)
    edges = np.cumsum([len(part) for part in series])[:-1]
    pulls = [part.T @ rest for part, rest in zip(np.split(slopes, edges), series, strict=True)]
    few = len(pulls) / max(len(pulls) - 1, 1)
    sandwich = few * inverse @ sum(np.outer(pull, pull) for pull in pulls) @ inverse
    spread = np.maximum(np.diag(variance * inverse), np.diag(sandwich))
    return np.asarray(np.sqrt(spread), np.float64)
