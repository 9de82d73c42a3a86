"""What logging costs: the control thread per step, the writer thread per step, closing, and reading back."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from agent.episodes import EpisodeWriter, read_episode

STEPS = 50
REPEATS = 20


def frames(rng: np.random.Generator) -> list[np.ndarray]:
    """Scenes of 64x64 with camera noise: 6.5 kB each as PNG."""
    scene = np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((8, 8, 1)))
    noise = rng.integers(-3, 4, (STEPS + 1, 64, 64, 3))
    return list(np.clip(scene + noise, 0, 255).astype(np.uint8))


def reading(rng: np.random.Generator, number: int) -> dict[str, Any]:
    """The telemetry of a nine-joint robot."""
    vectors = ("joint_position", "joint_velocity", "joint_current", "requested", "applied")
    scalars = {"frame_time": 0.1 * number, "frame_age": 0.02, "overrun": 0.0, "frame_sequence": number}
    return {"time": 0.1 * number, **{name: rng.normal(size=9) for name in vectors}, **scalars, "reasons": ()}


def write(path: Path, images: list[np.ndarray] | None, pause: float) -> tuple[list[float], float]:
    """(seconds of each step in the control thread, seconds to close)."""
    rng = np.random.default_rng(0)

    def observation(number: int) -> dict[str, Any]:
        state = {"state": rng.normal(size=32).astype(np.float32)}
        return state if images is None else state | {"image": images[number]}

    laps = []
    with EpisodeWriter(path, {"seed": 0, "config": "a: 1\n" * 200}) as writer:
        writer.begin(observation(0), reading(rng, 0))
        for number in range(1, STEPS + 1):
            seen, telemetry = observation(number), reading(rng, number)
            info = {
                "terms": {"distance": -1.0},
                "measures": {"error": 0.1},
                "success": False,
                "telemetry": telemetry,
            }
            start = time.perf_counter()
            writer.step(seen, np.zeros(9, np.float32), -1.0, info)
            laps.append(time.perf_counter() - start)
            time.sleep(pause)
        writer.done(terminated=False, truncated=True)
        start = time.perf_counter()
    return laps, time.perf_counter() - start


def seconds_to_read(path: Path) -> float:
    """Best of five."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        read_episode(path)
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Prints a table."""
    pictures = frames(np.random.default_rng(1))
    print(f"{'episode of 50 steps':<34}{'step p50':>10}{'p99 us':>9}{'close ms':>10}{'read ms':>9}{'kB':>7}")
    for label, images in (("state only", None), ("state and 64x64 image", pictures)):
        for pace, pause in (("as fast as it goes", 0.0), ("every 4 ms", 0.004)):
            with tempfile.TemporaryDirectory() as folder:
                paths = [Path(folder) / f"{number:06d}.mcap" for number in range(REPEATS)]
                results = [write(path, images, pause) for path in paths]
                laps = np.concatenate([result[0] for result in results]) * 1e6
                close = float(np.median([result[1] for result in results])) * 1e3
                read, size = seconds_to_read(paths[0]) * 1e3, paths[0].stat().st_size / 1e3
            low, high = np.percentile(laps, (50, 99))
            print(f"{label + ', ' + pace:<34}{low:>10.0f}{high:>9.0f}{close:>10.1f}{read:>9.1f}{size:>7.0f}")


if __name__ == "__main__":
    main()
