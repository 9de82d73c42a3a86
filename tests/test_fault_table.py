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

from robot.rig import Rig, RigConfig, build
from robot.settings import limit_ticks
from robot.types import Fault
from tasks.env import RobotEnv
from tasks.valve import FixedAngle, Valve, ValveConfig

IDS = RigConfig().dclaw.ids
TASK = ValveConfig(goal=FixedAngle(angle=0.0))
HEALTHY_STEPS = 3
GOES_ON = 10  # steps that a fault must not end
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


SOME = {"probability": 0.005}  # rare enough that three steps in a row are hardly ever late for it
TABLE = [
    # On the wire: single packets are asked for again within the step; a silent servo ends the episode.
    Row("lost", SOME, counter="bus_retries"),
    Row("lost", {"servo": 12, "duration": 1.0}, ("servo-silent",), waits=1.2),
    Row("late", {"value": 3.0}),
    Row("late", {"servo": 12, "value": 800.0, "duration": 1.0}, ("servo-silent",), waits=2.0),
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


DAILY = {"unplug", "dead", "overload", "overheat", "reboot"}  # the others: test-all


class Bench:
    """An emulated robot in a process of its own, with its control step; faults are told to it over HTTP."""

    def __init__(self) -> None:
        # On a busy machine the emulator, too, waits for the processor, and for longer than servos ever do.
        patient = {"bus": {"timeout_ms": 150}, "dclaw": {"watchdog": 1.5}}
        config = RigConfig.model_validate({"kind": "emulated", "control_period": 0.05, **patient})
        self.rig: Rig = build(config, cameras=False)
        self.url = self.rig.config.camera.source.rpartition("/")[0]
        self.rig.resources.enter_context(self.rig.robot)
        self.env = RobotEnv(self.rig, Valve(TASK), images=False, seed=0)
        self.env.reset(seed=1)
        self.in_order = True

    def inject(self, row: Row) -> None:
        body = json.dumps({"kind": row.kind, **row.settings}).encode()
        request = urllib.request.Request(f"{self.url}/faults", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=5) as answer:
            assert answer.status == 200

    def heal(self) -> None:
        urllib.request.urlopen(
            urllib.request.Request(f"{self.url}/faults", method="DELETE"), timeout=5
        ).close()

    def truth(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/state", timeout=5) as answer:
            return dict(json.load(answer))

    def step(self, rng: np.random.Generator) -> dict[str, Any]:
        """One step with a random action; what it measured must be what is true."""
        before = self.rig.clock.now()
        *_, truncated, info = self.env.step(rng.uniform(-1, 1, 9).astype(np.float32))
        assert truncated == ("fault" in info)
        if "fault" not in info:
            assert info["telemetry"]["time"] > before, "a reading from before the step"
        return dict(info)


@pytest.fixture(scope="module")
def benches() -> Iterator[list[Bench]]:
    """Holds the bench in use, if any: what a row has overcome, the next one need not know of."""
    shared: list[Bench] = []
    yield shared
    for bench in shared:
        bench.rig.close()


@pytest.fixture
def bench(benches: list[Bench]) -> Iterator[Bench]:
    """The bench that the row before has left in order, or a new one."""
    bench = benches.pop() if benches else Bench()
    yield bench
    if bench.in_order:
        benches.append(bench)
    else:
        bench.rig.close()


@pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=str(row), marks=[] if row.kind in DAILY else pytest.mark.slow) for row in TABLE],
)
def test_every_fault_is_found_at_once_told_by_name_and_overcome(bench: Bench, row: Row) -> None:
    bench.in_order = False
    rng = np.random.default_rng(0)
    for _ in range(HEALTHY_STEPS):
        assert "fault" not in bench.step(rng)
    bench.inject(row)
    found = run_until_fault(bench, rng, row)
    if row.ends_with:
        assert found.get("fault") in row.ends_with, found
        assert any(word in found["fault_message"] for word in ("servo", "/")), "it names no part"
    else:
        assert "fault" not in found, found
    inside_limits(bench)
    bench.rig.clock.sleep_until(bench.rig.clock.now() + row.waits)
    if row.reset == "goes on":
        bench.env.reset(seed=2)
        assert "fault" not in bench.step(rng)
        bench.heal()
        bench.in_order = True
    else:
        with pytest.raises(Fault) as caught:
            bench.env.reset(seed=2)
        assert caught.value.name == row.reset
        assert not any(servo["torque_enable"] for servo in bench.truth()["servos"].values())


def run_until_fault(bench: Bench, rng: np.random.Generator, row: Row) -> dict[str, Any]:
    """Steps until the fault is found or must have been: where a counter tells of it, until that has moved."""
    before = bench.rig.statistics().get(row.counter, 0)
    for count in range(1, 201):
        info = bench.step(rng)
        met = bench.rig.statistics()[row.counter] > before if row.counter else count >= GOES_ON
        if "fault" in info or (count >= AT_MOST if row.ends_with else met):
            return info
    raise AssertionError(f"{row.counter} has counted nothing in {count} steps")


def inside_limits(bench: Bench) -> None:
    """Goals in the servos' hands lie within their limits; so do the joints, their load apart."""
    servos = bench.truth()["servos"]
    config = bench.rig.config.dclaw
    for id, (low, high) in zip(config.joint_ids, limit_ticks(config).tolist(), strict=True):
        servo = servos[str(id)]
        if servo["torque_enable"]:
            assert low <= servo["goal_position"] <= high
        assert low - 130 <= servo["present_position"] <= high + 130  # 0.2 rad
