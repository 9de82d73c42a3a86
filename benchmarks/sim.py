"""What the simulated D'Claw costs on this machine: physics, bus, picture; run it as a script.

Every quantity is sampled in turns with its yardstick (raw MuJoCo steps, ROBEL's untouched model), so that
both see the same disturbances. Printed are the median and the 5th to 95th percentile.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import mujoco
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from robot import registers as reg
from robot.sim import FINGER_SERVOS, RESET_POSE, VALVE_SERVO, SimConfig, SimPlant
from robot.types import Floats
from robot.world import CameraPose, Painter, dclaw_model, original_model

IDS = (*FINGER_SERVOS, VALVE_SERVO)
STATE = (reg.PRESENT_CURRENT, reg.PRESENT_VELOCITY, reg.PRESENT_POSITION)
PERIOD = 0.1  # s, one control step of 40 physics steps
STEP = 136  # ticks: the furthest goal in one step at ROBEL's velocity limit of 2 pi / 3 rad/s
FASTER = 30  # times the rendering of ROBEL's model as it comes
PROFILE = 175  # 0.229 rpm: 4.2 rad/s, for a rig that sets one


def timed(work: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def show(name: str, seconds: list[float], note: str = "") -> None:
    """One line of the table, in microseconds or milliseconds."""
    low, median, high = np.percentile(seconds, [5, 50, 95])
    unit, factor = ("us", 1e6) if median < 1e-3 else ("ms", 1e3)
    spread = f"({low * factor:.2f} - {high * factor:.2f})"
    print(f"{name:<34}{median * factor:9.2f} {unit}   {spread:<18}n={len(seconds):<6}{note}".rstrip())


def claim(seconds: list[float], limit: float) -> str:
    """Whether the median keeps what is claimed on one core, as a note in the table."""
    kept = "kept" if np.median(seconds) <= limit else "NOT KEPT (is the machine busy?)"
    shown = f"{limit * 1e6:.0f} us" if limit < 1e-3 else f"{limit * 1e3:.0f} ms"
    return f"claim: <= {shown} on one core: {kept}"


class Walk:
    """Random goals as in an untrained episode, so that fingers meet the valve."""

    def __init__(self, images: bool, profile_velocity: int = 0) -> None:
        self.plant = SimPlant(SimConfig())
        self.images = images
        self.rng = np.random.default_rng(0)
        for servo in FINGER_SERVOS:
            self.plant.write(reg.TORQUE_ENABLE, servo, 1)
            self.plant.write(reg.BUS_WATCHDOG, servo, 15)
            self.plant.write(reg.PROFILE_VELOCITY, servo, profile_velocity)
        self.read = self.write = self.physics = self.frame = 0.0  # s, the latest step

    def step(self) -> None:
        """One control step as the driver does it, each part timed."""
        plant = self.plant
        start = time.perf_counter()
        ticks = plant.sync_read(STATE, IDS).values[:9, 2]
        self.read = time.perf_counter() - start
        goals = (ticks + self.rng.integers(-STEP, STEP + 1, 9)).tolist()
        values = dict(zip(FINGER_SERVOS, goals, strict=True))
        self.write = timed(lambda: plant.sync_write(reg.GOAL_POSITION, values))
        self.physics = timed(lambda: plant.sleep_until(plant.now() + PERIOD))
        if self.images:
            self.frame = timed(lambda: plant.latest(0.0))


def raw_physics() -> tuple[mujoco.MjModel, mujoco.MjData]:
    """The same model under MuJoCo alone, fingers driven and valve free."""
    model = dclaw_model(SimConfig())
    model.actuator_gainprm[:, 0] = [2] * 9 + [0]
    model.actuator_biasprm[:, 1] = [-2] * 9 + [0]
    return model, mujoco.MjData(model)


def bench_steps(count: int) -> None:
    """Bus and physics inside control steps, against raw MuJoCo on the same states."""
    walk, ramped = Walk(images=False), Walk(images=False, profile_velocity=PROFILE)
    model, raw = raw_physics()
    samples: dict[str, list[float]] = {"read": [], "write": [], "physics": [], "ramped": [], "raw": []}
    for _ in range(count):
        truth = walk.plant.truth
        raw.qpos[:], raw.qvel[:] = truth["qpos"], truth["qvel"]
        walk.step()
        raw.ctrl[:] = walk.plant.truth["setpoint"]
        samples["raw"].append(timed(lambda: mujoco.mj_step(model, raw, 40)))
        ramped.step()
        samples["ramped"].append(ramped.physics)
        for name in ("read", "write", "physics"):
            samples[name].append(getattr(walk, name))
    yardstick = float(np.median(samples["raw"]))
    show("sync read, 3 registers x 10", samples["read"], claim(samples["read"], 60e-6))
    show("sync write, 9 goals", samples["write"], claim(samples["write"], 60e-6))
    show("raw mj_step(nstep=40)", samples["raw"])
    for name, title in (("physics", "plant, 0.1 s"), ("ramped", "plant with profile velocity")):
        show(title, samples[name], f"{np.median(samples[name]) / yardstick:.2f} x raw")


def bench_memory(count: int) -> None:
    """Byte access, as the wire emulator uses it."""
    plant = SimPlant(SimConfig())
    show("read_memory, 10 bytes", [timed(lambda: plant.read_memory(10, 126, 10)) for _ in range(count)])
    goal = (1024).to_bytes(4, "little")
    show("write_memory, goal", [timed(lambda: plant.write_memory(10, 116, goal)) for _ in range(count)])


def raw_painter() -> tuple[Painter, Floats]:
    """ROBEL's model drawn as it comes: 166,000 triangles, shadows, reflections, four samples a pixel."""
    model = original_model()
    painter = Painter(model, CameraPose(), "meshes", shadows=True)
    qpos = np.zeros(model.nq)
    qpos[:9] = RESET_POSE
    return painter, qpos


def bench_frames(seconds: float) -> None:
    """A 64x64 picture against the raw model's, taken in turns."""
    plants = {geoms: SimPlant(SimConfig.model_validate({"geoms": geoms})) for geoms in ("fast", "meshes")}
    painter, qpos = raw_painter()
    painter.draw(qpos, 64, 64)
    draws: dict[str, Callable[[], object]] = {
        name: lambda plant=plant: plant.latest(0.0)  # type: ignore[misc]
        for name, plant in plants.items()
    }
    samples: dict[str, list[float]] = {"fast": [], "meshes": [], "raw": []}
    for draw in draws.values():
        draw()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(samples["raw"]) < 3:
        for _ in range(10):
            samples["fast"].append(timed(draws["fast"]))
        samples["meshes"].append(timed(draws["meshes"]))
        samples["raw"].append(timed(lambda: painter.draw(qpos, 64, 64)))
    show("frame 64x64, primitives", samples["fast"], claim(samples["fast"], 3e-3))
    show("frame 64x64, decimated meshes", samples["meshes"])
    ratio = float(np.median(samples["raw"]) / np.median(samples["fast"]))
    faster = f"{ratio:.0f} x primitives; claim: >= {FASTER} x: {'kept' if ratio >= FASTER else 'NOT KEPT'}"
    show("frame 64x64, ROBEL as it comes", samples["raw"], faster)
    painter.close()
    for plant in plants.values():
        plant.close()


def bench_rate(images: bool, seconds: float) -> None:
    """Control steps per second of wall time."""
    walk = Walk(images)
    walk.step()
    rates = []
    for _ in range(5):
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < seconds / 5:
            walk.step()
            count += 1
        rates.append(count / (time.perf_counter() - start))
    name, rate = f"control steps {'with' if images else 'without'} image", float(np.median(rates))
    enough = 150 if images else 1200  # /s on one core
    kept = "kept" if rate >= enough else "NOT KEPT (is the machine busy?)"
    spread = f"({min(rates):.0f} - {max(rates):.0f})   {rate * PERIOD:.0f} x real time"
    print(f"{name:<34}{rate:9.0f} /s   {spread}; claim: >= {enough}/s on one core: {kept}")
    walk.plant.close()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="about how long to measure")
    seconds = parser.parse_args().seconds
    print(f"MuJoCo {mujoco.__version__}, physics step 2.5 ms, control step {PERIOD} s")
    bench_steps(int(seconds * 100))
    bench_memory(int(seconds * 100))
    bench_frames(seconds / 2)
    bench_rate(False, seconds / 8)
    bench_rate(True, seconds / 8)


if __name__ == "__main__":
    main()
