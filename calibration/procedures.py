"""Every procedure at the bench, from the settings of its rig to the file that it ends in."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from rich.console import Console

from calibration import camera_report, finger_fit, fingers, joints_session, plant_report, scene, valve
from calibration.board import Board, BoardConfig, CalibrationError
from calibration.camera import calibrate
from calibration.capture import Session, Setup, Watch, read_folder
from calibration.excitation import Excitation, ExcitationConfig, plans, require_clear
from calibration.fingers_report import Report
from calibration.identify import identify
from calibration.overlay import Overlay, show
from calibration.plant_report import require_writable
from calibration.progress import bar, say
from calibration.recording import Recording
from calibration.terminal import Keys
from robot.camera import OpenCvCamera, identity
from robot.clock import SystemClock
from robot.rig import RigConfig, build, camera_name
from robot.world import WorldConfig

PLANTS = Path("plants")  # beside runs/, where the program was started
CAMERAS = Path("cameras")  # there, too
JOINTS = Path("joints")  # and there
HANDS_OFF = "{} moves for about {:.0f} s. Hands off; Ctrl-C lets it go limp."


@dataclass(frozen=True)
class Site:
    """Where a procedure takes place: the rig's name, and who is at its terminal."""

    name: str  # of --hw
    console: Console
    keyboard: TextIO | None  # None as `sys.stdin` is where a program was started without one
    wall: Callable[[str], str]  # the time of day, as `time.strftime` has it

    @property
    def minute(self) -> str:
        """Now, as settings tell when they were measured."""
        return self.wall("%Y-%m-%d %H:%M")

    @property
    def stamp(self) -> str:
        """Now, as files are named."""
        return self.wall("%Y%m%d-%H%M%S")

    def path(self, folder: Path, what: str = "", suffix: str = ".yaml") -> Path:
        """Where a procedure will write, known to be writable before anybody works for it. Raises OSError."""
        path = folder / f"{Path(self.name).stem}{what}-{self.stamp}{suffix}"
        require_writable(path)
        return path

    def say(self, text: str) -> None:
        """Prints a line as it is."""
        say(self.console, text)


# --- The plant ------------------------------------------------------------------------------------------


def identify_plant(site: Site, config: RigConfig) -> None:
    """Fits the simulated plant to the robot, which moves for it. Raises Fault, RecordingError, OSError."""
    path = _record_motions(site, config)
    _fit(site, Recording.load(path), path, path.with_suffix(".yaml"))


def identify_again(site: Site, path: Path) -> None:
    """Fits the simulated plant to an earlier recording; nothing moves. Raises RecordingError, OSError."""
    recording = Recording.load(path)
    _fit(site, recording, path, path.with_name(f"{Path(recording.name).stem}-{site.stamp}.yaml"))


def _record_motions(site: Site, config: RigConfig) -> Path:
    """Moves the robot as an identification needs it; the file of what was measured, written at the end."""
    name, motions, path = Path(site.name).stem, ExcitationConfig(), site.path(PLANTS, suffix=".npz")
    require_clear(motions, config.dclaw, plans(motions, config.dclaw, config.control_period))
    with closing(build(config, cameras=False)) as rig, bar(site.console, "moving") as told:
        excitation = Excitation(rig, motions, told)
        site.say(HANDS_OFF.format(name, excitation.duration))
        with rig:
            recording = excitation.record(name)
        recording.save(path)  # limp, should the disk hang
    site.say(f"recorded: {path}")
    return path


def _fit(site: Site, recording: Recording, path: Path, plant: Path) -> None:
    """Ends in the plant's settings, with a picture beside."""
    with bar(site.console, "fitting") as told:
        found = identify(recording, told)
    plant_report.publish(found, path, plant, site.minute, site.console)


# --- The joints, the valve and the scene ----------------------------------------------------------------


def calibrate_joints(site: Site, config: RigConfig) -> bool:
    """Zero, direction and stops of each joint, moved by somebody's hands; True once they are written.

    Raises CalibrationError, NoTerminal, JointsError, Fault, OSError.
    """
    if config.kind == "sim":
        way_out = "--hw emulated and --hw dclaw have some"
        raise CalibrationError(f"--hw {site.name} has no joints that a hand could move: {way_out}")
    path = site.path(JOINTS)
    return joints_session.calibrate_joints(config, site.name, path, site.minute, site.keyboard)


def calibrate_valve(site: Site, config: RigConfig, *, by_hand: bool) -> None:
    """Zero and sign of the valve's encoder, by its pointer in the picture while somebody, or it, turns it.

    Raises CalibrationError, Fault, OSError.
    """
    path = site.path(CAMERAS, "-valve")
    slow = config.dclaw.model_copy(update={"object_velocity": valve.SLOW})
    told = _changes(site)
    with closing(build(config.model_copy(update={"dclaw": slow}))) as rig:
        if by_hand:
            sightings = valve.by_hand(rig, Keys(site.keyboard), told)
        else:
            told(HANDS_OFF.format(site.name, 40))
            with rig:
                sightings = valve.by_servo(rig, told)
    found = valve.fit(sightings, config.dclaw.object_offset)
    valve.publish(found, site.name, path, site.minute, site.console)


def _changes(site: Site) -> Callable[[str], None]:
    """Says what is not what was said before."""
    said = [""]

    def told(news: str) -> None:
        if news != said[-1]:
            site.say(news)
        said[:] = [news]

    return told


def calibrate_scene(site: Site, config: RigConfig) -> None:
    """The picture by which later starts see whether the camera was moved.

    Raises CalibrationError, Fault, OSError.
    """
    camera = config.camera.model_copy(update={"scene": None})
    path = site.path(CAMERAS, "-scene")
    with closing(build(config.model_copy(update={"camera": camera}))) as rig:
        site.say(HANDS_OFF.format(site.name, 5))
        with rig:
            scene.calibrate_scene(rig, site.name, path, site.minute, site.console)


def show_overlay(site: Site, config: RigConfig) -> None:
    """The model over the camera's picture, until Ctrl-C. Raises MissingPart, Fault, OSError."""
    path = site.path(CAMERAS, "-overlay", ".png")
    with (
        suppress(KeyboardInterrupt),  # its usual end
        closing(build(config)) as rig,
        closing(Overlay(rig)) as overlay,
    ):
        show(overlay, path, SystemClock(), site.console, lambda: True)


# --- The camera --------------------------------------------------------------------------------------------


def camera_setup(site: Site, config: RigConfig, board: BoardConfig) -> Setup:
    """The camera as it is before it is calibrated, and the board."""
    camera = config.camera.model_copy(update={"lens": None, "projection": None, "calibration": None})
    return Setup(
        name=site.name, kind=config.kind, identity=identity(camera.source), camera=camera, board=board
    )


def print_board(site: Site, board: BoardConfig, sheet: Path) -> None:
    """Writes the sheet with the board. Raises CalibrationError, OSError."""
    Board(board).print_to(sheet)
    site.say(f"{sheet}: print it at 100 %, then measure its ruler")


def calibrate_camera(site: Site, setup: Setup | None, source: Path | None) -> None:
    """Lens and place of the camera, with a board in somebody's hands, or by the photographs in `source`.

    setup: None where the photographs say themselves with what they were taken. Raises CalibrationError,
    CameraFault, OSError.
    """
    if setup is not None and setup.kind != "real":
        way_out = "its projection is known exactly; --hw dclaw has a camera to calibrate"
        raise CalibrationError(f"--hw {setup.name} sees through a simulated camera: {way_out}")
    if source is None:
        assert setup is not None
        photographs = read_folder(_photograph(site, setup))
    else:
        photographs = read_folder(source, setup)
    found = calibrate(Board(photographs.setup.board), photographs.views, photographs.base)
    path = CAMERAS / f"{Path(photographs.setup.name).stem}-{site.stamp}.yaml"
    camera_report.publish(found, photographs, path, site.minute, site.console)


def find_camera(site: Site, config: RigConfig) -> None:
    """The camera's place, without a board, by where the fingers move in its picture.

    Raises CalibrationError, MissingPart, Fault, OSError.
    """
    unwatched = config.model_copy(update={"camera": config.camera.model_copy(update={"scene": None})})
    path, poses = site.path(CAMERAS, "-fingers"), fingers.plan(config.dclaw.safety)
    with closing(build(unwatched)) as rig:
        site.say(HANDS_OFF.format(site.name, fingers.DURATION))
        with rig, bar(site.console, "moving") as told:
            series = fingers.take(rig, poses, told)
        used = rig.config
    # What is drawn by the simulation is what is looked for; a real finger is nearest to its meshes.
    world = WorldConfig(geoms="meshes" if used.kind == "real" else used.sim.geoms)
    with bar(site.console, "fitting") as told:
        found = finger_fit.fit(series, used.camera, world, *finger_fit.beginning(config, used.camera), told)
    report = Report(found, series, used.camera, world, site.name, camera_name(used), site.minute)
    report.publish(path, site.console)


def _photograph(site: Site, setup: Setup) -> Path:
    """Photographs of the board, taken with the person who holds it; their folder."""
    folder, clock = CAMERAS / f"{Path(site.name).stem}-{site.stamp}", SystemClock()
    with closing(OpenCvCamera(setup.camera, clock)) as camera, camera_report.watched(site.console) as told:
        again = f"run_robot.py calibrate camera --from {folder}"
        site.say(f"photographs go to {folder}; however this ends, {again} evaluates them")
        Session(Watch(camera, clock, Board(setup.board)), setup, folder, Keys(site.keyboard), told).take()
    return folder
