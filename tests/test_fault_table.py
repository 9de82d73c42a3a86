"""Every fault that the emulator can make, met by SDK, driver and control step in real time.

Each row says what the control step must make of it: which fault ends the episode (none: it goes on), and
whether the next reset gets the robot going again by itself. Detection is demanded at the first control step
that the fault can reach; where physics forbids that, the row says so.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from robot.bus import BusConfig
from robot.rig import Rig, RigConfig, build
from robot.settings import limit_ticks
from robot.types import Fault
from tasks.env import RobotEnv
from tasks.valve import FixedAngle, Valve, ValveConfig

IDS = RigConfig().dclaw.ids
TASK = ValveConfig(goal=FixedAngle(angle=0.0))
HEALTHY_STEPS = 3
AT_MOST = 2  # steps until a fault is found: one may be half over when the fault comes


@dataclass(frozen=True)
class Row:
    """One fault and what must come of it."""

    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    ends_with: tuple[str, ...] = ()  # names, one of which must end the episode; none: it goes on
    reset: str = "goes on"  # "goes on" once the fault is over, or the name of the fault with which it fails
    waits: float = 0.3  # s after which the fault is over and a person or nature has mended it
    counter: str = ""  # of the bus, which must have counted something

    def __str__(self) -> str:
        marks = [f"{key}={value}" for key, value in self.settings.items() if key != "duration"]
        return "-".join([self.kind, *marks])


SOME = {"probability": 0.02}
TABLE = [
    # On the wire: single packets are asked for again within the step; a silent servo ends the episode.
    Row("lost", SOME, counter="bus_retries"),
    Row("lost", {"servo": 12, "duration": 1.0}, ("servo-silent",), waits=1.2),
    Row("late", {"value": 3.0}),
    Row("late", {"servo": 12, "value": 200.0, "duration": 1.0}, ("servo-silent",), waits=1.5),
    Row("corrupt", SOME, counter="bus_crc_errors"),
    Row("corrupt", {"servo": 12, "duration": 1.0}, ("servo-silent",), waits=1.2),
    Row("duplicate", SOME),
    Row("short", SOME, counter="bus_retries"),
    Row("short", {"servo": 12, "duration": 1.0}, ("servo-silent",), waits=1.2),
    Row("id-conflict", {"servo": 12, "duration": 1.0}, ("servo-silent",), waits=1.2),
    # The adapter.
    Row("unplug", {"duration": 1.0}, ("port-lost", "servo-silent"), waits=1.5),
    Row("usb-latency", {"duration": 1.0}, waits=1.0),
    # One servo, or its supply.
    Row("dead", {"servo": 12, "duration": 1.0}, ("servo-silent",), waits=1.5),
    Row("overload", {"servo": 12}, ("servo-alert",)),
    Row("overheat", {"servo": 12}, ("servo-alert",), reset="servo-alert"),
    Row("electrical", {"servo": 12}, ("servo-alert",), reset="servo-alert"),
    Row("encoder", {"servo": 12}, ("servo-alert",), reset="servo-alert"),
    Row("voltage-dip", {"value": 8.5, "duration": 0.5}, ("supply",), waits=0.8),
    Row("reboot", {"servo": 12}, ("torque-lost", "servo-silent")),
    Row("brown-out", {}, ("torque-lost", "servo-silent")),
    Row("heat", {"servo": 12, "value": 66, "duration": 0.5}, ("servo-hot",), waits=0.8),
    # Mechanics. A blocked joint looks like one that presses against the valve: only a reset, which knows
    # where the joint must get to, can tell. Of a slipping valve no servo knows: only a camera can tell.
    Row("stuck-joint", {"servo": 12}, reset="motion"),
    Row("frozen-encoder", {"servo": 12}, reset="motion"),
    Row("slipping-valve", {}),
]


class Bench:
    """An emulated robot in a process of its own, with its control step; faults are told to it over HTTP."""

    def __init__(self) -> None:
        bus = BusConfig(
            timeout_ms=30
        )  # on a busy machine the emulator, too, may have to wait for the processor
        config = RigConfig(kind="emulated", control_period=0.05, bus=bus)
        self.rig: Rig = build(config, cameras=False)
        self.url = self.rig.config.camera.source.rpartition("/")[0]
        self.rig.resources.enter_context(self.rig.robot)
        self.env = RobotEnv(self.rig, Valve(TASK), images=False, seed=0)

    def inject(self, row: Row) -> None:
        body = json.dumps({"kind": row.kind, **row.settings}).encode()
        request = urllib.request.Request(f"{self.url}/faults", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            assert answer.status == 200

    def truth(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/state", timeout=5) as answer:
            return dict(json.load(answer))

    def step(self, rng: np.random.Generator) -> dict[str, Any]:
        """One step with a random action; what it measured must be what is true."""
        before = self.rig.clock.now()
        *_, truncated, info = self.env.step(rng.uniform(-1, 1, 9).astype(np.float32))
        assert truncated == ("fault" in info) or self.env._episode is None or not truncated
        if "fault" not in info:
            assert info["telemetry"]["time"] > before, "a reading from before the step"
        return dict(info)


@pytest.fixture(params=TABLE, ids=str)
def bench_and_row(request: pytest.FixtureRequest) -> Iterator[tuple[Bench, Row]]:
    bench = Bench()
    yield bench, request.param
    bench.rig.close()


def test_every_fault_is_found_at_once_told_by_name_and_overcome(bench_and_row: tuple[Bench, Row]) -> None:
    bench, row = bench_and_row
    rng = np.random.default_rng(0)
    bench.env.reset(seed=1)
    for _ in range(HEALTHY_STEPS):
        assert "fault" not in bench.step(rng)
    bench.inject(row)
    found = run_until_fault(bench, rng, AT_MOST if row.ends_with else 10)
    if row.ends_with:
        assert found.get("fault") in row.ends_with, found
        assert any(word in found["fault_message"] for word in ("servo", "/")), "it names no part"
    else:
        assert "fault" not in found, found
    if row.counter:
        assert bench.rig.statistics()[row.counter] > 0
    inside_limits(bench)
    bench.rig.clock.sleep_until(bench.rig.clock.now() + row.waits)
    if row.reset == "goes on":
        bench.env.reset(seed=2)
        assert "fault" not in bench.step(rng)
    else:
        with pytest.raises(Fault) as caught:
            bench.env.reset(seed=2)
        assert caught.value.name == row.reset
        assert not any(servo["torque_enable"] for servo in bench.truth()["servos"].values())


def run_until_fault(bench: Bench, rng: np.random.Generator, steps: int) -> dict[str, Any]:
    info: dict[str, Any] = {}
    for _ in range(steps):
        info = bench.step(rng)
        if "fault" in info:
            break
    return info


def inside_limits(bench: Bench) -> None:
    """Goals in the servos' hands lie within their limits; so do the joints, their load apart."""
    servos = bench.truth()["servos"]
    config = bench.rig.config.dclaw
    for id, (low, high) in zip(config.joint_ids, limit_ticks(config).tolist(), strict=True):
        servo = servos[str(id)]
        if servo["torque_enable"]:
            assert low <= servo["goal_position"] <= high
        assert low - 130 <= servo["present_position"] <= high + 130  # 0.2 rad
