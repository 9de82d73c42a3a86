"""Draws docs/dclaw.png: the simulated robot, and beside it the image that the agent sees.

Usage: PYTHONPATH=. python docs/picture.py
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from robot.sim import SimConfig, SimPlant
from robot.types import ValveGeometry
from robot.world import CameraPose
from tasks.valve import Dot, project

POSE = (0.1, -0.75, 0.9, -0.05, -0.8, 0.95, 0.0, -0.95, 1.0)  # rad, fingers near the valve
VALVE, GOAL = math.radians(140), math.radians(55)
HEIGHT = 448  # px: seven times the agent's 64


def scene() -> np.ndarray:
    """The robot as a person would photograph it (HEIGHT, 720, 3)."""
    camera = CameraPose(lookat=(0, 0, 0.13), distance=0.58, azimuth=60, elevation=-26)
    plant = SimPlant(SimConfig(geoms="meshes", shadows=True, msaa=4, camera=camera))
    plant.teleport(POSE, VALVE)
    picture = plant.render(720, HEIGHT)
    plant.close()
    return picture


def agent_view() -> np.ndarray:
    """What the agent sees (64, 64, 3), goal dot included."""
    plant = SimPlant(SimConfig())
    plant.teleport(POSE, VALVE)
    frame = plant.latest(max_age=1.0)
    dot = Dot.at(project(plant.projection, ValveGeometry().rim(GOAL)), frame.image.shape[:2])
    plant.close()
    return dot.draw(frame.image)


def main() -> None:
    """Writes the picture beside this file."""
    view = agent_view().repeat(HEIGHT // 64, axis=0).repeat(HEIGHT // 64, axis=1)
    gap = np.full((HEIGHT, 12, 3), 255, np.uint8)
    Image.fromarray(np.concatenate([scene(), gap, view], axis=1)).save(Path(__file__).with_name("dclaw.png"))


if __name__ == "__main__":
    main()
