"""Draws docs/dclaw.png, sawyer.png and valve_family.png: robots, and beside them the images that agents see.

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
from tasks.claw import Dot, project
from tasks.registration import make
from tasks.task import DemonstratedTask

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


def enlarged(view: np.ndarray, height: int) -> np.ndarray:
    """An agent's image (64, 64, 3) with its pixels as squares, (height, height, 3)."""
    return view.repeat(height // 64, axis=0).repeat(height // 64, axis=1)


def beside(*images: np.ndarray) -> np.ndarray:
    """Images of one height in a row, with gaps."""
    gap = np.full((images[0].shape[0], 12, 3), 255, np.uint8)
    return np.concatenate([part for image in images for part in (image, gap)][:-1], axis=1)


def sawyer(steps: int = 24, height: int = 320) -> np.ndarray:
    """Door, drawer and pick-up as people and as agents see them, while the expert is at work."""
    rows = []
    for task in ("sawyer_door", "sawyer_drawer", "sawyer_pickup"):
        env = make(task)
        expert = env.task
        assert isinstance(expert, DemonstratedTask)
        seen, _ = env.reset(seed=1)
        for _ in range(steps):
            seen, *_ = env.step(expert.expert(seen["state"].astype(np.float64)))
        rows.append(beside(np.asarray(env.rig.picture()), enlarged(seen["image"], height)))
        env.close()
    gap = np.full((12, rows[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([part for row in rows for part in (row, gap)][:-1])


def family(height: int = 192) -> np.ndarray:
    """What agents see at the beginning of the valve family's tasks."""
    views = []
    for task in ("valve_fixed", "valve_random", "turn_random", "screw_random", "pose_fixed"):
        env = make(task)
        views.append(enlarged(env.reset(seed=2)[0]["image"], height))
        env.close()
    return beside(*views)


def main() -> None:
    """Writes the pictures beside this file."""
    pictures = {
        "dclaw": beside(scene(), enlarged(agent_view(), HEIGHT)),
        "sawyer": sawyer(),
        "valve_family": family(),
    }
    for name, picture in pictures.items():
        Image.fromarray(picture).save(Path(__file__).with_name(f"{name}.png"))


if __name__ == "__main__":
    main()
