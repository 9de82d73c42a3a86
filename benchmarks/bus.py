"""What a bus cycle costs: against the cable's limit, against the stock SDK, in CPU, and in punctuality.

A cycle writes 9 goals and reads 16 bytes of each of 10 servos, state and health. The servos are emulated in a
process of their own, on a cable of 1 Mbps without return delay, behind an adapter whose latency timer ticks
every 1 ms. The limit is that cable under a host that takes no time at all, over all phases of the timer. A
bare host, which only moves the bytes and looks at none, shows how much of the rest is the emulator's.
"""

from __future__ import annotations

import argparse
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
from dynamixel_sdk import GroupSyncRead, GroupSyncWrite, PacketHandler, PortHandler

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from robot import registers as reg
from robot.bus import BusConfig, SerialBus
from robot.chain import Reply
from robot.clock import SystemClock, Ticker
from robot.emulator import EmulatorConfig, EmulatorSetup, Wire
from robot.protocol import BROADCAST, STATUS_OVERHEAD, Instruction, build
from robot.rig import EmulatorProcess
from robot.sim import FINGER_SERVOS, VALVE_SERVO

IDS = (*FINGER_SERVOS, VALVE_SERVO)
GOALS = dict.fromkeys(FINGER_SERVOS, 2048)
CABLE = EmulatorConfig(wire=True, usb_latency_ms=1, return_delay_us=0)
SIZE = sum(register.size for register in reg.CYCLE)
REQUEST = 14 + len(IDS)  # bytes of a sync read, plain or fast
WRITE = 14 + len(GOALS) * (1 + reg.GOAL_POSITION.size)
DATA = reg.INDIRECT_DATA[0].address
PLAIN = (STATUS_OVERHEAD + SIZE,) * len(IDS)  # bytes that each servo sends
FAST = (8 + SIZE + 4, *(SIZE + 4,) * (len(IDS) - 1))
ROUNDS = 6
SHARE = 0.9  # of the limit that is claimed
CPU = 0.15  # of a core at 100 Hz
JITTER = 0.3e-3  # s, median at 10 Hz
LATE = 10e-3  # s; at most 1 % of the steps
CLOCK = SystemClock()

# A learner: gradients without end, in a process and at a priority of its own.
LEARNER = """
import os, torch
os.nice(10)
torch.set_num_threads(1)
net = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 5, 2), torch.nn.ReLU(), torch.nn.Conv2d(32, 64, 3, 2))
optimizer = torch.optim.Adam(net.parameters())
while True:
    optimizer.zero_grad()
    net(torch.randn(32, 3, 64, 64)).square().mean().backward()
    optimizer.step()
"""

Cycle = Callable[[], None]


def limit(replies: tuple[int, ...], phase: float) -> float:
    """Seconds from sending goals and request to the last byte of the answers, on the cable alone."""
    wire = Wire(CABLE)
    wire.schedule(phase, WRITE, CABLE.baud, [])
    sent = [Reply(0, bytes(size), 0.0) for size in replies]
    return wire.schedule(phase, REQUEST, CABLE.baud, sent)[-1][0] - phase


def mean_limit(replies: tuple[int, ...]) -> float:
    """The mean over all phases of the adapter's timer, s."""
    return float(np.mean([limit(replies, phase) for phase in np.arange(0, 1e-3, 1e-6)]))


@contextmanager
def ours(port: str, fast: str = "auto") -> Iterator[Cycle]:
    """A cycle by the driver."""
    bus = SerialBus(BusConfig.model_validate({"port": port, "fast_reads": fast}), CLOCK)
    bus.gather(reg.CYCLE, IDS)

    def cycle() -> None:
        bus.sync_write(reg.GOAL_POSITION, GOALS)
        bus.sync_read(reg.CYCLE, IDS)

    try:
        yield cycle
    finally:
        bus.close()


@contextmanager
def bare(port: str, instruction: Instruction, replies: tuple[int, ...]) -> Iterator[Cycle]:
    """The bytes of a cycle and nothing else, from servos that collect already."""
    goals = b"".join(bytes([servo]) + goal.to_bytes(4, "little") for servo, goal in GOALS.items())
    write = build(BROADCAST, Instruction.SYNC_WRITE, struct.pack("<HH", 116, 4) + goals)
    read = build(BROADCAST, instruction, struct.pack("<HH", DATA, SIZE) + bytes(IDS))
    assert (len(write), len(read)) == (WRITE, REQUEST)
    line = os.open(port, os.O_RDWR | os.O_NOCTTY)

    def cycle() -> None:
        os.write(line, write)
        os.write(line, read)
        missing = sum(replies)
        while missing > 0:
            missing -= len(os.read(line, missing))

    try:
        yield cycle
    finally:
        os.close(line)


@contextmanager
def stock(port: str) -> Iterator[Cycle]:
    """The same by the SDK's own group reads and writes, from servos that collect already."""
    line, packets = PortHandler(port), PacketHandler(2.0)
    line.openPort()
    line.setBaudRate(CABLE.baud)
    read = GroupSyncRead(line, packets, DATA, SIZE)
    write = GroupSyncWrite(line, packets, reg.GOAL_POSITION.address, reg.GOAL_POSITION.size)
    for servo in IDS:
        read.addParam(servo)
    for servo, goal in GOALS.items():
        write.addParam(servo, list(goal.to_bytes(reg.GOAL_POSITION.size, "little")))
    places = np.cumsum([DATA, *(register.size for register in reg.CYCLE)])

    def cycle() -> None:
        write.txPacket()
        read.txRxPacket()
        for register, place in zip(reg.CYCLE, places, strict=False):
            for servo in IDS:
                read.getData(servo, place, register.size)

    try:
        yield cycle
    finally:
        line.closePort()


def sample(cycle: Cycle, seconds: float) -> list[float]:
    """Durations of cycles that begin at any phase of the adapter's timer, s."""
    took, end = [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        cycle()
        took.append(time.perf_counter() - start)
        CLOCK.sleep_until(CLOCK.now() + random.random() * 1e-3)
    return took


def pooled(samples: Sequence[Sequence[float]]) -> list[float]:
    """All rounds together."""
    return [duration for samples_of_round in samples for duration in samples_of_round]


def show(name: str, took: Sequence[float], bound: float) -> None:
    """One line: a cycle's duration, and how near it comes to the limit."""
    low, median, high = np.percentile(took, [5, 50, 95]) * 1e3
    mean = float(np.mean(took))
    claimed = not name.startswith(("bare", "stock"))
    note = f"; claimed: {SHARE:.0%} {verdict(bound / mean >= SHARE)}" if claimed else ""
    spread = f"({low:.2f} - {high:.2f})"
    print(f"{name:<16}{median:6.2f} ms {spread:<15} mean {mean * 1e3:.2f}: {bound / mean:.0%} of limit{note}")


def verdict(kept: bool) -> str:
    """Whether a claim is kept, as a note."""
    return "kept" if kept else "NOT KEPT (is the machine busy?)"


def bench_speed(port: str, seconds: float) -> None:
    """Cycles of all clients in turns, so that all meet the same load."""
    with ours(port):
        pass  # has the servos collect
    clients: dict[str, tuple[Callable[[], AbstractContextManager[Cycle]], tuple[int, ...]]] = {
        "plain": (lambda: ours(port, "off"), PLAIN),
        "fast": (lambda: ours(port), FAST),
        "bare host, plain": (lambda: bare(port, Instruction.SYNC_READ, PLAIN), PLAIN),
        "bare host, fast": (lambda: bare(port, Instruction.FAST_SYNC_READ, FAST), FAST),
        "stock SDK, plain": (lambda: stock(port), PLAIN),
    }
    took: dict[str, list[list[float]]] = {name: [] for name in clients}
    for _ in range(ROUNDS):
        for name, (client, _) in clients.items():
            with client() as cycle:
                took[name].append(sample(cycle, seconds / ROUNDS / len(clients)))
    for name, (_, replies) in clients.items():
        show(name, pooled(took[name]), mean_limit(replies))
    for other, name in (
        ("bare host, plain", "plain"),
        ("bare host, fast", "fast"),
        ("stock SDK, plain", "fast"),
    ):
        ratios = [np.median(a) / np.median(b) for a, b in zip(took[other], took[name], strict=True)]
        spread = f"({min(ratios):.2f} - {max(ratios):.2f})"
        print(f"{other:<16} takes {np.median(ratios):.2f} {spread} times as long as {name}")


def bench_cpu(port: str, seconds: float) -> None:
    """The client's CPU at 100 cycles/s."""
    with ours(port) as cycle:
        share = cpu_share(cycle, seconds / 2)
    with stock(port) as cycle:
        theirs = cpu_share(cycle, seconds / 2)
    note = f"claimed: <= {CPU} {verdict(share <= CPU)}"
    print(f"CPU at 100 Hz         {share:6.3f} of a core; {note}; stock SDK {theirs:.3f}")


def cpu_share(cycle: Cycle, seconds: float) -> float:
    """Of one core, at 100 cycles/s."""
    start, used = CLOCK.now(), time.process_time()
    for step in range(int(seconds * 100)):
        CLOCK.sleep_until(start + step / 100)
        cycle()
    return (time.process_time() - used) / (CLOCK.now() - start)


def bench_jitter(port: str, seconds: float) -> None:
    """How late steps of 0.1 s start, with nobody else and with a learner in its own process."""
    for name, command in (("alone", None), ("with a learner", [sys.executable, "-c", LEARNER])):
        learner = subprocess.Popen(command) if command else None
        try:
            late = lateness(port, seconds / 2)
        finally:
            if learner:
                learner.kill()
                learner.wait()
        median, p99 = np.percentile(late, [50, 99]) * 1e3
        share = float(np.mean(late > LATE))
        kept = verdict(median <= JITTER * 1e3 and share <= 0.01)
        print(
            f"start of step, 10 Hz, {name:<15}median {median:.2f} ms, p99 {p99:.2f}, later than 10 ms: "
            f"{share:.1%} of {len(late)}; claimed: <= 0.3 ms, <= 1 % {kept}"
        )


def lateness(port: str, seconds: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """By how much each step's deadline was missed, s, with one cycle in every step."""
    ticker = Ticker(CLOCK, 0.1)
    with ours(port) as cycle:
        ticker.start()
        for _ in range(int(seconds * 10)):
            ticker.wait()
            cycle()
    return np.array(ticker.lateness)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=45.0, help="about how long to measure")
    seconds = parser.parse_args().seconds
    process = EmulatorProcess(EmulatorSetup(emulator=CABLE, camera=False))
    load = os.getloadavg()[0]
    sizes = (
        f"{WRITE} bytes of goals, {REQUEST} of request, {sum(PLAIN)} (plain) or {sum(FAST)} (fast) of answers"
    )
    print(f"{sizes}; load of this machine before: {load:.1f} on {os.cpu_count()} cores")
    try:
        bench_speed(process.ready["port"], seconds * 0.4)
        bench_cpu(process.ready["port"], seconds * 0.2)
        bench_jitter(process.ready["port"], seconds * 0.4)
    finally:
        process.close()


if __name__ == "__main__":
    main()
