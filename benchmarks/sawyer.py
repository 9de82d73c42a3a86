"""What a step of the simulated Sawyer costs, against Metaworld's own environments; run it as a script.

Both are sampled in turns. A step of ours is 0.05 s of simulated time, one of theirs 0.0125 s; pictures are
64x64. Printed are the median and the 5th to 95th percentile.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("MUJOCO_GL", "egl")  # Metaworld's renderer asks for it when MuJoCo is imported
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import mujoco
import numpy as np

from benchmarks.sim import show, timed
from robot.sawyer import SCENES, WELD, SawyerRobot
from tasks.registration import make
from tasks.sawyer import ArmTask

STOCK = {"door": "door-open-v3", "drawer": "drawer-close-v3", "pickup": "pick-place-v3"}
ENOUGH, FACTOR = 150, 8  # steps per second with a picture, and how many times Metaworld's: what is claimed


def stock(scene: str) -> Any:
    """Metaworld's environment, patched to run at all: its row for a weld is one number short."""
    from metaworld.env_dict import ALL_V3_ENVIRONMENTS
    from metaworld.sawyer_xyz_env import SawyerMocapBase

    def reset_mocap_welds(self: Any) -> None:
        self.model.eq_data[0, : len(WELD)] = WELD

    SawyerMocapBase.reset_mocap_welds = reset_mocap_welds
    options = {"render_mode": "rgb_array", "camera_name": "corner2", "width": 64, "height": 64}
    env = ALL_V3_ENVIRONMENTS[STOCK[scene]](**options)
    env._set_task_called, env._freeze_rand_vec, env.seeded_rand_vec = True, False, True
    env.seed(0)
    env.reset()
    env.render()
    return env


def ours(scene: str, *, images: bool) -> tuple[Callable[[], object], Callable[[], object]]:
    """A step of random actions, which begins anew when its time is up, and a reset."""
    env = make(f"sawyer_{scene}", images=images)
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    over = False

    def step() -> None:
        nonlocal over
        if over:
            env.reset()
        over = env.step(rng.uniform(-1, 1, 4).astype(np.float32))[3]

    task, robot = env.task, env.rig.robot
    assert isinstance(task, ArmTask)
    assert isinstance(robot, SawyerRobot)
    return step, lambda: robot.restart(task.placed, task.start(), task.grip)


def bench(scene: str, seconds: float) -> None:
    """One scene's part of the table."""
    seen, restart = ours(scene, images=True)
    blind, _ = ours(scene, images=False)
    other = stock(scene)
    rng = np.random.default_rng(0)

    def theirs() -> None:
        # Without this it draws into whichever context is current: ours, without shadows, and a wrong picture.
        other.mujoco_renderer.viewer.make_context_current()
        other.step(rng.uniform(-1, 1, 4).astype(np.float32))
        other.render()

    works: dict[str, Callable[[], object]] = {"seen": seen, "blind": blind, "restart": restart}
    samples: dict[str, list[float]] = {name: [] for name in (*works, "theirs")}
    for work in works.values():
        work()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(samples["theirs"]) < 3:
        for _ in range(10):
            for name, work in works.items():
                samples[name].append(timed(work))
        if len(samples["theirs"]) < 400:  # after 500 steps its episode is over
            samples["theirs"].append(timed(theirs))
    median = {name: float(np.median(values)) for name, values in samples.items()}
    factor = median["theirs"] / median["seen"]
    kept = 1 / median["seen"] >= ENOUGH and factor >= FACTOR
    show(
        f"{scene}: step with picture",
        samples["seen"],
        f"{1 / median['seen']:.0f}/s, {factor:.0f} x Metaworld's",
    )
    show(f"{scene}: step without", samples["blind"], f"{1 / median['blind']:.0f}/s")
    show(f"{scene}: restart", samples["restart"])
    show(f"{scene}: Metaworld, step with picture", samples["theirs"], f"{1 / median['theirs']:.1f}/s")
    verdict = "kept" if kept else "NOT KEPT (is the machine busy?)"
    print(f"  claim: >= {ENOUGH}/s and >= {FACTOR} x on one core: {verdict}")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="about how long to measure")
    seconds = parser.parse_args().seconds
    print(f"MuJoCo {mujoco.__version__}, a control step of 0.05 s; Metaworld's is 0.0125 s")
    for scene in SCENES:
        bench(scene, seconds / len(SCENES))
    os._exit(0)  # Metaworld's renderer cannot be closed without an error


if __name__ == "__main__":
    main()
