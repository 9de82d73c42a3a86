"""How well hidden plants are identified: planted parameters against found ones, and the held-out error.

    python benchmarks/identify.py [--plants 12] [--seed 0]

Prints one line per plant and the table of errors (median, 90th percentile, worst).
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from calibration.excitation import Excitation, ExcitationConfig
from calibration.identify import UNITS, Identification, identify
from robot.rig import RigConfig, build
from robot.sim import SimConfig

# Servos from half of ROBEL's stiffness to the stiffest that published behaviour suggests; friction up to what
# a worn gear has. The delay is at most that of a busy USB adapter.
RANGES = {
    "servo_stiffness": (1.0, 8.0),
    "joint_damping": (0.02, 0.2),
    "friction_loss": (0.003, 0.1),
    "valve_stiffness": (1.0, 8.0),
    "valve_damping": (0.01, 0.1),
    "valve_friction_loss": (0.001, 0.05),
}
DELAY = 0.03  # s at most


def drawn(rng: np.random.Generator) -> SimConfig:
    """A plant from the ranges, evenly in the logarithm."""
    values = {name: float(np.exp(rng.uniform(*np.log(ends)))) for name, ends in RANGES.items()}
    step = 0.0025  # s: a simulated delay is a whole number of physics steps
    return SimConfig(**values, command_delay=step * round(float(rng.uniform(0, DELAY)) / step))


def identified(hidden: SimConfig) -> tuple[Identification, float, float]:
    """The identification, and the CPU seconds that motion and fit took."""
    began = time.process_time()
    with build(RigConfig(kind="sim", sim=hidden), cameras=False) as rig:
        recording = Excitation(rig, ExcitationConfig(), lambda what, share: None).record("sim")
    moved = time.process_time()
    found = identify(recording)
    return found, moved - began, time.process_time() - moved


def main() -> None:
    """Recovers so many plants and prints what came of it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--plants", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng = np.random.default_rng(args.seed)
    errors: dict[str, list[float]] = {name: [] for name in UNITS}
    ratios: dict[str, list[float]] = {"fingers": [], "valve": []}
    left_open = dict.fromkeys(UNITS, 0)
    seconds = []
    for number in range(args.plants):
        hidden = drawn(rng)
        found, *times = identified(hidden)
        seconds.append(times)
        words = []
        for finding in found.findings:
            true = getattr(hidden, finding.name)
            unit = 1.0 if finding.name == "command_delay" else true  # a delay's error is told in s
            errors[finding.name].append(abs(finding.estimate.value - true) / unit)
            left_open[finding.name] += not finding.determined
            words.append(f"{finding.name} {true:.4g}->{finding.estimate.value:.4g}")
        for what, collected in ratios.items():
            if error := found.errors(what, "held-out"):
                collected.append(error.identified / error.nominal)
        print(f"{number + 1:3} {', '.join(words)}; held out {ratios['fingers'][-1]:.3f}", flush=True)
    print(f"\n{'error':<22}{'median':>9}{'p90':>9}{'worst':>9}  open")
    for name, values in errors.items():
        scale, unit = (1e3, "ms") if name == "command_delay" else (100.0, "%")
        row = [scale * float(value) for value in (np.median(values), np.percentile(values, 90), max(values))]
        print(f"{name:<22}{''.join(f'{value:7.2f}{unit:>2}' for value in row)}  {left_open[name]}")
    print(f"\n{'held-out ratio':<22}{'median':>9}{'p90':>9}{'worst':>9}")
    for what, values in ratios.items():
        row = [float(value) for value in (np.median(values), np.percentile(values, 90), max(values))]
        print(f"{what:<22}{''.join(f'{value:9.3f}' for value in row)}")
    motion, fit = np.mean(seconds, axis=0)
    print(f"\nCPU per plant: motion {motion:.1f} s, fit {fit:.1f} s; n = {args.plants}")


if __name__ == "__main__":
    main()
