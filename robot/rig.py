"""The one place that chooses what is beneath the driver: simulated, emulated or real hardware."""

from __future__ import annotations

import json
import math
import re
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from numpy.random import Generator
from pydantic import Field, field_validator

from robot.bus import BusConfig, SerialBus
from robot.camera import CameraConfig, OpenCvCamera, SceneRecord, crop_box, identity
from robot.clock import SystemClock
from robot.collision import FingerClearance
from robot.dynamixel import DynamixelRobot
from robot.emulator import EmulatorConfig, EmulatorSetup
from robot.events import EventLog
from robot.keepalive import kept_alive
from robot.patience import PatienceConfig
from robot.randomise import Draw
from robot.recording import Recorder
from robot.sawyer import SawyerConfig, SawyerPlant, SawyerRobot
from robot.scene import (
    AVERAGED,
    Drift,
    SceneCheckConfig,
    Untold,
    View,
    averaged,
    check_scene,
    reference,
    several,
)
from robot.settings import DynamixelConfig
from robot.sim import SimConfig, SimPlant
from robot.types import Camera, CameraFault, Clock, Config, Fault, Image, PortLost, Robot, Snapshot
from robot.valve_check import SharpCamera, ValveCheck, ValveCheckConfig, sharp_enough

CAMERA = "front"
OURS = "dclaw"
ROBOTS = "dclaw_slac.robots"  # the group of entry points by which packages bring robots
NO_LIMIT = (4096, 4096)  # px: the simulation draws any size
PICTURE = (320, 320)  # (width, height) px of pictures for people in simulation
START_TIMEOUT = 20.0  # s for the emulator's process; measured 0.9 s on an idle machine
STOP_TIMEOUT = 3.0  # s for it to end when told


class RigConfig(Config):
    """One robot with its camera: what is beneath the driver, and everything that is known about it."""

    kind: Literal["sim", "emulated", "real"] = "sim"
    name: str = "dclaw"
    robot: str = "dclaw"  # or one of an installed package: an entry point of the group dclaw_slac.robots
    settings: Mapping[str, Any] = Field(default_factory=dict)  # of such a robot, which checks them itself
    control_period: float = Field(0.05, gt=0, le=1)  # s, the shortest that bus and camera are good for
    bus: BusConfig = BusConfig()
    dclaw: DynamixelConfig = DynamixelConfig()
    camera: CameraConfig = CameraConfig()  # the agent's
    cameras: Mapping[str, CameraConfig] = Field(default_factory=dict)  # further ones by name, for the log
    sim: SimConfig = SimConfig()
    emulator: EmulatorConfig = EmulatorConfig()
    patience: PatienceConfig = PatienceConfig()
    valve_check: ValveCheckConfig = ValveCheckConfig()
    scene_check: SceneCheckConfig = SceneCheckConfig()

    @field_validator("cameras")
    @classmethod
    def _names_of_their_own(cls, cameras: Mapping[str, CameraConfig]) -> Mapping[str, CameraConfig]:
        for name in cameras:
            if name == CAMERA or not re.fullmatch(r"[a-z][a-z0-9]*", name):
                raise ValueError(
                    f"{name!r} is no name for a further camera: small letters and digits, and not "
                    f"{CAMERA!r}, which is hw.camera"
                )
        return cameras

    @property
    def all_cameras(self) -> dict[str, CameraConfig]:
        """By name, the agent's first."""
        return {CAMERA: self.camera, **self.cameras}


class DescribedRobot(Robot, Protocol):
    """A robot that can say by which numbers it works, and be tended while the program computes."""

    def tend(self) -> None:
        """Feeds the servos' watchdogs if the program has not spoken to them for a while."""
        ...

    def describe(self) -> dict[str, Any]:
        """Calibration and limits in force, as plain data."""
        ...


class ForeignRobotError(ValueError):
    """A robot of another package could not be built."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"hw.robot: {problem}")


def _nothing() -> Mapping[str, float]:
    return {}


def _as_it_is(rng: Generator) -> Mapping[str, float]:
    return {}


def _no_other(parameters: Mapping[str, float]) -> None:
    pass


def _clearly(snapshot: Snapshot) -> Snapshot:
    return snapshot


def _unchecked(snapshot: Snapshot) -> None:
    pass


def _no_pictures(count: int) -> list[Image]:
    raise CameraFault("this rig was built without a camera")


@dataclass
class Rig:
    """Robot, cameras and clock of one bench, opened together and closed together.

    Entering it engages the robot; leaving it relaxes the robot and closes everything, by whatever exception.
    """

    config: RigConfig
    robot: DescribedRobot
    cameras: Mapping[str, Camera]
    clock: Clock
    events: EventLog
    picture: Callable[[], Image]  # the scene for people, (H, W, 3) uint8 RGB, as large as there is
    bus_statistics: Callable[[], Mapping[str, float]] = _nothing
    # Draws another world for an episode, if this rig has others; what was drawn, by name, for the log.
    randomise: Callable[[Generator], Mapping[str, float]] = _as_it_is
    # Makes the world again that an episode's logged parameters tell of, where one was drawn.
    imitate: Callable[[Mapping[str, float]], object] = _no_other
    perceived: Callable[[Snapshot], Snapshot] = _clearly  # what an agent is told of a reading
    check: Callable[[Snapshot], None] = _unchecked  # holds a control step's reading against what cameras see
    recorders: tuple[Recorder, ...] = ()  # of the cameras whose captured frames are kept
    # So many pictures of all that the camera captures, (H, W, 3) uint8 RGB, for what is done at a start.
    pictures: Callable[[int], list[Image]] = _no_pictures
    resources: ExitStack = field(default_factory=ExitStack)

    @property
    def realtime(self) -> bool:
        """False where time passes only when somebody sleeps on the clock."""
        return self.config.kind != "sim"

    def snapshot(self, max_age: float) -> Snapshot:
        """A fresh reading and each camera's newest frame, at most max_age seconds old. Raises Fault."""
        state = self.robot.read()
        frames = {}
        for name, camera in self.cameras.items():
            with _naming(name):
                frames[name] = camera.latest(max_age)
        return Snapshot(state.time, state.joints, state.object, frames, state.health)

    def snapshot_without_images(self) -> Snapshot:
        """A fresh reading alone. Raises BusFault."""
        state = self.robot.read()
        return Snapshot(state.time, state.joints, state.object, {}, state.health)

    def view(self) -> View:
        """All that the camera captures, of little noise, and how the robot stands. Raises Fault."""
        return whole_view(self.robot, self.pictures)

    def check_camera(self) -> None:
        """Holds the camera's place against that of `hw.camera.scene`; nothing where there is none.

        What cannot be told is an event, "scene-unseen". Raises CameraMoved, CameraFault, BusFault.
        """
        if self.config.camera.scene is None or not self.cameras:
            return
        found = camera_drift(self.config, self.config.camera.scene, self.robot, self.pictures)
        if isinstance(found, Untold):
            self.events.emit("scene-unseen", f"whether the camera was moved cannot be told: {found.reason}")

    def describe(self) -> dict[str, Any]:
        """What a log must hold to be understood without this machine, as plain data."""
        about = {"kind": self.config.kind, "name": self.config.name, "realtime": self.realtime}
        ours = isinstance(self.robot, DynamixelRobot) and self.config.kind != "real"
        world = {"sim": self.config.sim.model_dump(mode="json")} if ours else {}
        views = {name: _projection(camera) for name, camera in self.cameras.items()}
        return {**about, "robot": self.robot.describe(), "projections": views, **world}

    def statistics(self) -> dict[str, float]:
        """Counters of bus and cameras since they were opened."""
        counters = {f"bus_{name}": value for name, value in self.bus_statistics().items()}
        for name, camera in self.cameras.items():
            if isinstance(camera, OpenCvCamera):
                counters.update({f"{name}_{key}": value for key, value in camera.statistics().items()})
        for recorder in self.recorders:
            counters.update({f"{recorder.name}_{key}": n for key, n in recorder.statistics().items()})
        return counters

    @contextmanager
    def filming(self, log: Path) -> Iterator[None]:
        """Within it cameras that record do so beside an episode's log: 000012.front.mkv for 000012.mcap."""
        for recorder in self.recorders:
            recorder.begin(log.with_name(f"{log.name.partition('.')[0]}.{recorder.name}"))
        try:
            yield
        finally:
            for recorder in self.recorders:
                recorder.end()

    def close(self) -> None:
        """Relaxes the robot if it was engaged, and releases port, cameras and processes. May be repeated."""
        self.resources.close()

    def __enter__(self) -> Self:
        try:
            self.check_camera()  # before anything moves
            self.resources.enter_context(self.robot)
            if self.realtime:  # in simulation no time passes while the program computes
                self.resources.enter_context(kept_alive(self.robot.tend, self.config.dclaw.watchdog / 6))
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def build(config: RigConfig, *, cameras: bool = True, arm: SawyerConfig | None = None) -> Rig:
    """The rig that the configuration names, open and not yet engaged; nothing moves.

    With `arm` a simulated Sawyer in its place. Raises PortLost, CameraFault or, without a model's files,
    MissingPart, with everything closed again that was opened before.
    """
    if arm is not None:
        return _build_sawyer(config, arm, cameras=cameras)
    if config.robot != OURS:
        return _build_other(config, cameras=cameras)
    if config.kind == "sim":
        return _build_simulated(config, cameras=cameras)
    with ExitStack() as resources:
        if config.kind == "emulated":
            config = emulate(config, resources, cameras=cameras)
        rig = _build_wired(config, resources, cameras=cameras)
        rig.resources = resources.pop_all()  # from here on the rig's own to close
    return rig


def emulator_setup(config: RigConfig, link: str | None, *, camera: bool = True) -> EmulatorSetup:
    """What the emulator must know of a rig to stand in for its hardware; link: where to find its port."""
    return EmulatorSetup(
        emulator=config.emulator.model_copy(update={"link": link}),
        sim=config.sim,
        servos=config.dclaw.joint_ids,
        object_servo=config.dclaw.object_id,
        guide_servo=config.dclaw.guide_id,
        camera=camera,
    )


def emulate(config: RigConfig, resources: ExitStack, *, cameras: bool = True) -> RigConfig:
    """Starts emulated hardware that lives as long as `resources`; the configuration that leads to it."""
    # A name of its own, as by udev: an adapter that was pulled may come back as another /dev/pts/N.
    folder = resources.enter_context(tempfile.TemporaryDirectory(prefix="dclaw-"))
    link = config.emulator.link or Path(folder) / "ttyDclaw"
    process = EmulatorProcess(emulator_setup(config, str(Path(link).absolute()), camera=cameras))
    resources.callback(process.close)
    found = {
        "source": process.ready["camera"],
        "projection": process.ready["projection"],
        "width": config.emulator.width,
        "height": config.emulator.height,
        "crop": None,
        "controls": {},
        "lens": None,
        "calibration": None,
        "health": {**config.camera.health.model_dump(), "noise": "on" if config.emulator.noise else "off"},
    }
    camera = _with(config.camera, found)
    bus = config.bus.model_copy(update={"port": process.ready["port"]})
    return config.model_copy(update={"bus": bus, "camera": camera})


def _build_simulated(config: RigConfig, *, cameras: bool) -> Rig:
    dclaw = config.dclaw
    plant = SimPlant(config.sim, dclaw.joint_ids, dclaw.object_id, config.camera.size, dclaw.guide_id)
    captured = config.camera.width, config.camera.height
    # The simulation draws through a perfect lens in the place that its settings say.
    view = {"projection": config.sim.camera.projection(*captured).tolist(), "lens": None}
    config = config.model_copy(update={"camera": _with(config.camera, view)})
    resources = ExitStack()
    resources.callback(plant.close)
    events = EventLog(plant)
    robot = DynamixelRobot(plant, dclaw, plant, events, FingerClearance())
    views = {CAMERA: plant} if cameras else {}
    return Rig(
        config=config,
        robot=robot,
        cameras=views,
        clock=plant,
        events=events,
        picture=lambda: plant.render(*PICTURE),
        randomise=lambda rng: _become(plant, config.sim.randomise.draw(rng)),
        imitate=lambda parameters: _become(plant, Draw.of(parameters)),
        perceived=plant.perceived,
        pictures=lambda count: [plant.view(captured, math.inf).image for _ in range(count)],
        check=_valve_check(config, plant, NO_LIMIT, events) if cameras else _unchecked,
        resources=resources,
    )


def _with(camera: CameraConfig, found: Mapping[str, Any]) -> CameraConfig:
    return CameraConfig.model_validate({**camera.model_dump(), **found})


def _become(plant: SimPlant, draw: Draw) -> Mapping[str, float]:
    """Varies the plant; the draw for an episode's log. Where nothing is drawn, not a bit of it changes."""
    if draw.values:
        plant.vary(draw)
    return draw.floats()


def other_robots() -> dict[str, EntryPoint]:
    """The robots that installed packages bring, by name: each a function `(config, cameras=...) -> Rig`."""
    return {entry.name: entry for entry in entry_points(group=ROBOTS)}


def unknown_robot(name: str) -> str:
    """What is wrong with a robot's name, or nothing."""
    known = [OURS, *other_robots()]
    return "" if name in known else f"no installed package brings a robot {name!r}; known: {', '.join(known)}"


def _build_other(config: RigConfig, *, cameras: bool) -> Rig:
    if problem := unknown_robot(config.robot):
        raise ForeignRobotError(problem)
    robot = other_robots()[config.robot]
    try:
        rig = robot.load()(config, cameras=cameras)
    except Fault:
        raise
    except Exception as error:  # whatever somebody else's module does
        said = f"{type(error).__name__}: {error}"
        raise ForeignRobotError(f"{robot.value} made no rig of hw ({said})") from error
    if not isinstance(rig, Rig):
        raise ForeignRobotError(f"{robot.value} made a {type(rig).__name__}, expected a robot.rig.Rig")
    return rig


def _build_sawyer(config: RigConfig, arm: SawyerConfig, *, cameras: bool) -> Rig:
    if config.kind != "sim":
        raise ValueError(f"a Sawyer is simulated only, this rig is {config.kind}: choose --hw sim")
    plant = SawyerPlant(arm, config.camera.size)
    resources = ExitStack()
    resources.callback(plant.close)
    views = {CAMERA: plant} if cameras else {}
    events = EventLog(plant)
    return Rig(
        config, SawyerRobot(plant), views, plant, events, lambda: plant.render(*PICTURE), resources=resources
    )


def _build_wired(config: RigConfig, resources: ExitStack, *, cameras: bool) -> Rig:
    clock = SystemClock()
    bus = SerialBus(config.bus, clock)
    resources.callback(bus.close)
    events = EventLog(clock)
    robot = DynamixelRobot(bus, config.dclaw, clock, events, FingerClearance())
    if not cameras:
        return Rig(config, robot, {}, clock, events, _no_picture, bus.statistics)
    recorders = {name: Recorder(name, events.emit) for name, one in config.all_cameras.items() if one.record}
    views = {
        name: _open_camera(name, config.all_cameras[name], clock, resources, events, recorders.get(name))
        for name in config.all_cameras
    }
    front, largest = views[CAMERA], crop_box(config.camera)[2:]
    check = _valve_check(config, front, largest, events)
    return Rig(
        config,
        robot,
        views,
        clock,
        events,
        front.picture,
        bus.statistics,
        check=check,
        recorders=tuple(recorders.values()),
        pictures=lambda count: several(front, clock, count),
    )


def whole_view(robot: Robot, pictures: Callable[[int], list[Image]]) -> View:
    """All that a camera captures, of little noise, and how the robot stands. Raises Fault."""
    state = robot.read()
    return View(averaged(pictures(AVERAGED)), state.joints.position, float(state.object.position[0]))


def camera_drift(
    config: RigConfig, scene: SceneRecord, robot: Robot, pictures: Callable[[int], list[Image]]
) -> Drift | Untold:
    """How far the camera is from where it was when a reference was taken, or why nobody can tell.

    Raises CameraMoved beyond `hw.scene_check`, CameraFault, BusFault.
    """
    before = reference(config.camera, scene, camera_name(config))
    return check_scene(config.camera, config.scene_check, before, whole_view(robot, pictures))


def camera_name(config: RigConfig) -> str:
    """Which camera a rig has, by what does not change from start to start."""
    return identity(config.camera.source) if config.kind == "real" else config.kind


def _valve_check(
    config: RigConfig, camera: SharpCamera, largest: tuple[int, int], events: EventLog
) -> Callable[[Snapshot], None]:
    """The check that the configuration asks for; with "auto" none where the camera does not allow it.

    Raises CameraFault when it is asked for in vain.
    """
    mode = config.valve_check.mode
    if mode == "off" or (mode == "auto" and config.kind == "sim"):
        return _unchecked
    try:
        size = sharp_enough(camera, config.camera.size, largest)
    except CameraFault:
        if mode == "on":
            raise
        return _unchecked
    return ValveCheck(config.valve_check, camera, size, config.camera.max_age, events.emit)


def _open_camera(
    name: str,
    config: CameraConfig,
    clock: Clock,
    resources: ExitStack,
    events: EventLog,
    recorder: Recorder | None,
) -> OpenCvCamera:
    with _naming(name):
        camera = OpenCvCamera(
            config,
            clock,
            tell=lambda event, text: events.emit(event, f"{name}: {text}"),
            taker=recorder.take if recorder else None,
        )
    resources.callback(camera.close)
    if recorder:
        resources.callback(recorder.end)
    return camera


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Has faults of a further camera speak of its own settings, where a camera speaks of the agent's."""
    try:
        yield
    except CameraFault as fault:
        if name == CAMERA:
            raise
        raise type(fault)(f"{name}: {fault}".replace("hw.camera.", f"hw.cameras.{name}.")) from None


def _no_picture() -> Image:
    raise CameraFault("this rig was built without a camera")


def _projection(camera: Camera) -> list[list[float]] | None:
    try:
        return [[float(number) for number in row] for row in camera.projection]
    except CameraFault:
        return None


class EmulatorProcess:
    """Emulated hardware in a process of its own, which ends with this one in whatever way this one ends.

    It is in a session of its own: Ctrl-C in the terminal must not switch the robot off before it is relaxed.
    """

    def __init__(self, setup: EmulatorSetup) -> None:
        """Waits until port and camera are there. Raises PortLost with the process's own words when not."""
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process
        command = [sys.executable, "-m", "robot.emulator", "--config-json", setup.model_dump_json()]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            cwd=Path(__file__).parents[1],
            start_new_session=True,
        )
        try:
            self.ready = self._await_ready()
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def close(self) -> None:
        """Ends the process. May be repeated."""
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()

    def _await_ready(self) -> dict[str, Any]:
        output = self._process.stdout
        assert output is not None
        if not select.select([output], [], [], START_TIMEOUT)[0]:
            raise PortLost(f"the emulator said nothing for {START_TIMEOUT:g} s; is the machine overloaded?")
        line = output.readline()
        if not line:
            self._errors.seek(0)
            words = self._errors.read().decode(errors="replace").strip().splitlines()
            raise PortLost(f"the emulator did not start: {words[-1] if words else 'it said nothing'}")
        return dict(json.loads(line))
