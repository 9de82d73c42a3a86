"""What a killed or stopped program leaves behind, through its real processes and a real serial port.

The servos are an emulator in a process of its own, as hardware would be: it outlives the program.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agent.episodes import parse, read_episode
from agent.recovery import recover
from agent.run_dir import RunDir
from robot.registers import WATCHDOG_TRIPPED
from tests.screen import Screen

ROOT = Path(__file__).parents[1]
START = 60.0  # s for a program to come up on a busy machine
PERIOD = 0.1  # s, of the task
LOST = 0.1  # s of log that a kill -9 may cost
SETTINGS = (
    "task.horizon=20",
    "train.random_steps=20",
    "train.final_episodes=1",
    "agent.sac.hidden=[16]",
    "agent.sac.batch_size=16",
    "agent.matmul=highest",
)
FINGERS = ("10", "11", "12", "20", "21", "22", "30", "31", "32")


class Servos:
    """The emulated servos, seen past the wire: looking feeds no watchdog."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        self.port, self._url = ready["port"], ready["camera"].rpartition("/")[0] + "/state"

    def state(self) -> dict[str, dict[str, int]]:
        with urllib.request.urlopen(self._url, timeout=5) as answer:
            return dict(json.load(answer)["servos"])

    @property
    def relaxed(self) -> bool:
        return not any(servo["torque_enable"] for servo in self.state().values())

    @property
    def stopped(self) -> bool:
        """Whether every joint is without torque or stands, held by its own watchdog."""
        state = self.state()
        return all(
            not state[servo]["torque_enable"] or state[servo]["bus_watchdog"] == WATCHDOG_TRIPPED
            for servo in FINGERS
        )


@pytest.fixture(scope="module")
def servos() -> Iterator[Servos]:
    command = [sys.executable, "-m", "robot.emulator", "--keep", "--config-json", '{"camera": false}']
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield Servos(process)
    finally:
        process.terminate()
        process.wait(10)


class Program:
    """A training run in a session of its own, as in a terminal: Ctrl-C reaches the whole group."""

    def __init__(self, folder: Path, *flags: str, steps: int = 100_000) -> None:
        self.run = RunDir(folder / "run")
        self._output = folder / "output"
        settings = [word for setting in SETTINGS for word in ("--set", setting)]
        command = ["run_robot.py", "--task", "valve_fixed", "--agent", "sac_state", "--steps", str(steps)]
        with self._output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command, *settings, "--run", str(self.run.path), *flags],
                cwd=ROOT,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait_for(self, happened: Callable[[], object], timeout: float = START) -> None:
        deadline = time.monotonic() + timeout
        while not happened():
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline, self.output
            time.sleep(0.01)

    def in_episode(self, first: int, steps: int = 4) -> Callable[[], bool]:
        return partial(in_episode, self.run, first, steps)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The index of the training episodes."""
        return self.run.index("episodes")

    @property
    def learner(self) -> int:
        """The learner's process, once it has said something."""
        return int((self.run.last_beat("learner") or {}).get("pid", 0))

    def ends(self, timeout: float = 60) -> int:
        return self.process.wait(timeout)

    def destroy(self) -> None:
        for pid in (self.process.pid, self.learner):
            if pid and running(pid):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)


def in_episode(run: RunDir, first: int, steps: int = 4) -> bool:
    """Whether so many steps are on disk of an episode that is not over: of number `first` or later."""
    for part in (run.path / "episodes").glob("*.mcap.part"):
        with suppress(FileNotFoundError):  # closed in this moment
            rows = parse(part, part.read_bytes()).rows
            return RunDir.episode_index(part) >= first and len(rows) > steps
    return False


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def begin(*flags: str, **options: Any) -> Program:
        started.append(Program(tmp_path, *flags, **options))
        return started[-1]

    yield begin
    for program in started:
        program.destroy()


def bench(servos: Servos) -> list[str]:
    return ["--hw", "dclaw", "--set", f"hw.bus.port={servos.port}"]


def test_a_killed_actor_leaves_stopped_servos_and_its_log(
    servos: Servos, start: Callable[..., Program]
) -> None:
    program = start(*bench(servos))
    program.wait_for(program.in_episode(1))
    assert not servos.relaxed
    killed_at = time.monotonic()
    program.process.kill()
    while not servos.stopped:
        assert time.monotonic() - killed_at < 0.5
        time.sleep(0.01)
    program.ends()
    recover(program.run.path)
    episode = read_episode(max((program.run.path / "episodes").iterdir()))
    assert (episode.recovered, episode.fault) == (True, "killed")
    # The log counts by the clock of this machine. The step that was under way is never measured.
    lost = killed_at - float(episode.telemetry["time"][-1])
    assert lost < PERIOD + LOST
    assert len(episode.actions) >= 4


@pytest.mark.slow
def test_a_killed_actor_takes_its_learner_with_it_and_can_go_on(
    servos: Servos, start: Callable[..., Program]
) -> None:
    program = start(*bench(servos))
    program.wait_for(program.in_episode(3))
    learner = program.learner
    assert running(learner)
    program.process.kill()
    program.ends()
    deadline = time.monotonic() + 10
    while running(learner):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert program.run.load_checkpoint() is not None  # saved on its way out
    steps = 3 * 20
    resumed = start(*bench(servos), "--resume", steps=steps)
    assert resumed.ends() == 0, resumed.output
    assert re.search(r"recovered episodes/0+[3-9]\.mcap", resumed.output)
    assert [row["index"] for row in resumed.rows] == list(range(1, len(resumed.rows) + 1))
    assert sum(row["steps"] for row in resumed.rows) >= steps
    assert servos.relaxed


@pytest.mark.slow
def test_a_killed_learner_stops_the_robot_after_its_episode(
    servos: Servos, start: Callable[..., Program]
) -> None:
    program = start(*bench(servos))
    program.wait_for(program.in_episode(2))
    os.kill(program.learner, signal.SIGKILL)
    assert program.ends() == 1, program.output
    assert "the learner was killed by signal 9. The robot stopped after its episode" in program.output
    assert f"--resume --run {program.run.path}" in program.output
    assert servos.relaxed
    assert (program.rows[-1]["steps"], program.rows[-1]["fault"]) == (20, None)
    assert not list(program.run.path.rglob("*.part"))
    assert (program.run.path / "summary.json").exists()
    resumed = start(*bench(servos), "--resume", steps=60)
    assert resumed.ends() == 0, resumed.output
    assert sum(row["steps"] for row in resumed.rows) >= 60


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_whoever_is_killed_whenever_the_servos_stop_and_the_run_goes_on(
    servos: Servos, start: Callable[..., Program], request: pytest.FixtureRequest
) -> None:
    """`--kills 100`: one run, killed over and over, actor and learner in turn, at random moments."""
    rng = np.random.default_rng(0)
    slowest, first, program = 0.0, 1, start(*bench(servos))
    for kill in range(request.config.getoption("--kills")):
        program.wait_for(program.in_episode(first, steps=1))
        time.sleep(float(rng.uniform(0, 4)))
        if kill % 2:
            program.wait_for(partial(getattr, program, "learner"))
            os.kill(program.learner, signal.SIGKILL)
            assert program.ends() == 1, program.output
            assert servos.relaxed
        else:
            slowest = max(slowest, killed_and_stopped(program, servos))
        first = program.run.next_episode()
        program = start(*bench(servos), "--resume")
    program.wait_for(program.in_episode(first))
    program.destroy()
    recover(program.run.path)
    print(f"servos stopped {slowest:.2f} s after the actor's death, at most; {len(program.rows)} episodes")
    assert [row["index"] for row in program.rows] == list(range(1, len(program.rows) + 1))
    for row in program.rows:
        assert len(read_episode(program.run.path / row["file"]).actions) == row["steps"]


def killed_and_stopped(program: Program, servos: Servos) -> float:
    """Kills the actor; s until its servos have stopped by themselves."""
    killed_at = time.monotonic()
    program.process.kill()
    while not servos.stopped:
        assert time.monotonic() - killed_at < 0.5, servos.state()
        time.sleep(0.005)
    program.ends()
    return time.monotonic() - killed_at


def stopped_in_order(program: Program) -> None:
    """What must hold after Ctrl-C or SIGTERM in the middle of episode 3."""
    assert program.ends() == 130, program.output
    assert "Traceback" not in program.output
    assert "torque may still be on" not in program.output
    last = read_episode(max((program.run.path / "episodes").iterdir()))
    assert last.fault == program.rows[-1]["fault"] == "interrupted"
    assert 4 <= len(last.actions) < 20
    assert not list(program.run.path.rglob("*.part"))
    assert not running(program.learner)
    assert program.run.load_checkpoint() is not None
    assert not program.run.stop_requested()
    assert (program.run.path / "summary.json").exists()
    assert re.search(r"^training +\d episodes", program.output, re.MULTILINE)


@pytest.mark.slow
def test_ctrl_c_in_the_terminal_stops_in_order(servos: Servos, start: Callable[..., Program]) -> None:
    program = start(*bench(servos))
    program.wait_for(program.in_episode(3))
    os.killpg(program.process.pid, signal.SIGINT)
    began = time.monotonic()
    while not servos.relaxed:
        assert time.monotonic() - began < 0.5
    stopped_in_order(program)


@pytest.mark.slow
def test_sigterm_stops_in_order_with_emulated_hardware(start: Callable[..., Program]) -> None:
    program = start("--hw", "emulated")
    program.wait_for(program.in_episode(3))
    os.kill(program.process.pid, signal.SIGTERM)
    stopped_in_order(program)


@pytest.mark.slow
def test_a_second_ctrl_c_does_not_wait_for_the_learner(servos: Servos, start: Callable[..., Program]) -> None:
    program = start(*bench(servos))
    program.wait_for(program.in_episode(2))
    os.kill(program.learner, signal.SIGSTOP)  # it will never save
    os.killpg(program.process.pid, signal.SIGINT)
    program.wait_for(lambda: "Ctrl-C again" in program.output)
    assert servos.relaxed
    time.sleep(1.5)  # the first second after Ctrl-C belongs to the robot
    os.killpg(program.process.pid, signal.SIGINT)
    assert program.ends(20) == 130, program.output


@pytest.mark.slow
def test_ctrl_c_again_and_again_loses_nothing_and_leaves_the_terminal_as_it_was(
    servos: Servos, tmp_path: Path
) -> None:
    """In a terminal of its own; the learner takes its time with the checkpoint."""
    run = RunDir(tmp_path / "run")
    settings = [word for setting in SETTINGS for word in ("--set", setting)]
    words = ["--task", "valve_fixed", "--agent", "sac_state", "--steps", "100000", "--run", str(run.path)]
    screen, learner = Screen([*words, *settings, *bench(servos)], tmp_path), 0
    try:
        screen.read_until(lambda: in_episode(run, 2))
        learner = int((run.last_beat("learner") or {})["pid"])
        os.kill(learner, signal.SIGSTOP)
        screen.read_until(lambda: in_episode(run, 3))
        screen.interrupt_until_it_ends()
        assert screen.process.wait(10) in (130, -signal.SIGINT), screen.text  # the same to a shell
        assert screen.echoes
    finally:
        screen.close()
        if learner:
            os.kill(learner, signal.SIGCONT)
    assert servos.relaxed
    assert "Traceback" not in screen.text
    assert "KeyboardInterrupt" not in screen.text
    assert f"To go on: the same command with --resume --run {run.path}" in screen.whole_lines
    assert not list(run.path.rglob("*.part"))
    rows = run.index("episodes")
    assert {row["file"] for row in rows} == {f"episodes/{path.name}" for path in run.episodes()}
    assert [row["fault"] for row in rows][-1] == "interrupted"
    deadline = time.monotonic() + START
    while running(learner):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert run.load_checkpoint() is not None


@pytest.mark.slow
def test_a_disk_that_hangs_at_an_episodes_end_lets_the_fingers_go_and_is_named(
    servos: Servos, start: Callable[..., Program]
) -> None:
    """A pipe in place of the log of episode 2, full from its middle on: what is written to it waits."""
    program = start(*bench(servos))
    program.wait_for(program.in_episode(1))
    path = program.run.path / "episodes" / "000002.mcap.part.new"
    os.mkfifo(path)
    disk = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    program.wait_for(lambda: not path.exists())
    os.set_blocking(disk, False)
    with suppress(BlockingIOError):
        while True:
            os.write(disk, b"x")
    program.wait_for(lambda: servos.relaxed)
    program.wait_for(lambda: "the disk hangs" in program.output)
    assert servos.relaxed
    assert program.ends() == 1, program.output
    assert "keep-alive" not in program.output
    assert "Traceback" not in program.output
    assert [row["index"] for row in program.rows] == [1]
    os.close(disk)
