"""How well the valve's angle is seen in simulated pictures, by their size, and what a look costs.

Each picture has its own draw of hw.sim.randomise, a random pose of the fingers and a valve angle anywhere on
the circle. "Shown" is the share of pictures that got an angle at all; errors are against the true angle.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from robot.camera import CameraConfig, deliver
from robot.randomise import RandomiseConfig
from robot.sim import SimConfig, SimPlant
from robot.types import Floats, Image, ValveGeometry
from robot.valve_vision import NotVisible, Sighting, ValveEye, pitch
from robot.world import CameraPose

REACH = np.tile([0.48, math.pi / 3, math.pi / 2], 3)  # rad, all that actions ask of the fingers
QUALITY = 92  # of JPEG, the emulator's
AWAY = np.tile([0.0, -math.pi / 3, math.pi / 3], 3)  # rad, the fingers as a reset leaves them


@dataclass
class Tally:
    """What was seen in pictures of one size."""

    errors: list[float] = field(default_factory=list)  # rad, of sightings
    told: list[float] = field(default_factory=list)  # rad, the errors that these admit
    reasons: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)  # of CPU, for each look
    opening: list[float] = field(default_factory=list)  # of CPU, for each new camera

    def add(self, plant: SimPlant, image: Image, angle: float) -> None:
        """Looks at a picture of the valve as it is."""
        size = len(image)
        start = time.process_time()
        eye = ValveEye(plant.projection_at((size, size)), (size, size))
        opened = time.process_time()
        found = eye.look(image)
        self.seconds.append(time.process_time() - opened)
        self.opening.append(opened - start)
        if isinstance(found, NotVisible):
            self.reasons[found.reason.partition(":")[0]] += 1
        else:
            self._judge(found, angle)

    def _judge(self, found: Sighting, angle: float) -> None:
        self.errors.append(abs(math.remainder(found.angle - angle, math.tau)))
        self.told.append(found.error)

    def row(self, size: int) -> str:
        """One line of the table."""
        errors, count = np.degrees(self.errors), len(self.seconds)
        median, most, worst = np.percentile(errors, [50, 99, 100]) if len(errors) else (math.nan,) * 3
        beyond = int((errors > np.degrees(self.told)).sum())
        millimetres = pitch(CameraPose().projection(size, size), ValveGeometry()) * 1e3
        return (
            f"{size:5d}{millimetres:7.1f}{len(errors) / count:8.1%}{median:9.2f}{most:8.2f}{worst:8.2f}"
            f"{(errors > 2).sum():6d}{(errors > 6).sum():6d}{beyond:8d}"
            f"{np.median(self.seconds) * 1e3:9.2f}{np.median(self.opening) * 1e3:8.2f}"
        )


def photograph(plant: SimPlant, size: int, captured: int | None) -> Image:
    """The picture as the simulation draws it, or as a camera of `captured` px has it: JPEG, then resized."""
    if captured is None:
        return plant.view((size, size), 0.1).image
    image = plant.view((captured, captured), 0.1).image[..., ::-1]
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    config = CameraConfig(width=captured, height=captured, size=(size, size))
    return deliver(cv2.imdecode(encoded, cv2.IMREAD_COLOR), config)


def poses(rng: np.random.Generator, still: bool) -> Floats:
    """(9,) rad: fingers anywhere, or out of the way."""
    return AWAY if still else rng.uniform(-1, 1, 9) * REACH


def measure(options: argparse.Namespace, count: int, still: bool) -> dict[int, Tally]:
    """Looks at `count` scenes, at each in all sizes."""
    config = SimConfig(randomise=RandomiseConfig.model_validate(options.preset))
    rng, plant = np.random.default_rng(options.seed), SimPlant(config)
    tallies = {size: Tally() for size in options.sizes}
    for number in range(count):
        draw = config.randomise.draw(rng)
        if draw.values:
            plant.vary(draw)
        angle = math.tau * (number + rng.random()) / count - math.pi
        plant.teleport(poses(rng, still), angle)
        for size, tally in tallies.items():
            tally.add(plant, photograph(plant, size, options.captured), angle)
    plant.close()
    return tallies


def show(title: str, tallies: dict[int, Tally]) -> None:
    """The table, and why the other pictures told nothing."""
    print(f"\n{title}")
    print("   px     mm   shown  p50 deg p99 deg max deg    >2    >6   >told  look ms open ms")
    for size, tally in tallies.items():
        print(tally.row(size))
    for size, tally in tallies.items():
        print(f"{size} px not visible: " + ", ".join(f"{n} {why}" for why, n in tally.reasons.most_common()))


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=500, help="scenes with fingers anywhere")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 96, 128], help="px")
    parser.add_argument("--preset", default="sim2real", choices=("off", "robel", "sim2real"))
    parser.add_argument("--captured", type=int, help="px of a camera that sends JPEG; none: as drawn")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for title, count, still in (
        (f"{options.pictures} scenes, fingers anywhere", options.pictures, False),
        (f"{options.pictures // 5} scenes, fingers as after a reset", options.pictures // 5, True),
    ):
        show(f"{options.preset}: {title}", measure(options, count, still))


if __name__ == "__main__":
    main()
