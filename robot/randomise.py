"""Another D'Claw in every episode: what a draw may vary, within which ranges, and what it does to the model.

A policy that has met many slightly wrong simulations is less surprised by the robot. Everything is off unless
`hw.sim.randomise` says otherwise; docs/randomisation.md has the quantities in a table.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Self

import mujoco
import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    ValidationInfo,
    field_validator,
    model_validator,
)

from robot.types import Config, Floats, Image, Snapshot
from robot.world import FLOOR_TEXTURE, JOINTS, VALVE_JOINT, CameraPose, addresses, blotch, pointer_geom

PREFIX = "sim."  # before the names of a draw among an episode's parameters
LUCK = "luck"  # the draw's own seed, of what varies within the episode
PIXELS, TEXTURE, DROPS, ENCODERS, EYES = range(5)  # the purposes of luck
STANDS_OUT = 0.1  # by so much the strongest channel of a colour may lead if it is red or green
# What ROBEL's noise is a share of: rad and rad/s, for the joints of a finger, the valve, a joint's velocity.
# A share of 0.05 is +-0.024, 0.052, 0.079 and 0.157 rad, and +-0.105 rad/s.
FINGER_RANGES = (0.96, 2 * math.pi / 3, math.pi)
VALVE_RANGE = 2 * math.pi
VELOCITY_RANGE = 4 * math.pi / 3


def _pair(value: Any) -> Any:
    """What YAML and JSON call a list: a validator that ran before has hidden from pydantic that it is one."""
    return tuple(value) if isinstance(value, list) else value


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    low, high = interval
    if low > high:
        raise ValueError(f"low {low:g} is above high {high:g}; swap them")
    return interval


# Beyond these a simulation means nothing any more, and in the end its arithmetic fails.
LIMITS = {
    **dict.fromkeys(("mount_offset", "camera_shift"), 0.1),  # m
    **{"camera_azimuth": 180.0, "camera_elevation": 90.0, "camera_fovy": 180.0},  # deg
    **{"command_delay": 1.0, "frame_delay": 1.0},  # s
    **{"backlash": 0.5, "encoder_noise": 100.0, "colour_noise": 255.0},  # rad, ticks, levels
}
LIMIT = 100.0  # of everything else
Probability = Annotated[float, Field(ge=0, le=1)]
_LIST, _ORDER = BeforeValidator(_pair), AfterValidator(_ordered)
Interval = Annotated[tuple[float, float], _LIST, _ORDER]
Sizes = Annotated[tuple[NonNegativeFloat, NonNegativeFloat], _LIST, _ORDER]
Positives = Annotated[tuple[PositiveFloat, PositiveFloat], _LIST, _ORDER]
Shares = Annotated[tuple[Probability, Probability], _LIST, _ORDER]

# TurnRandomDynamics and ScrewRandomDynamics of ROBEL, which draw just these at every reset.
ROBEL = {
    "servo_stiffness": (1.0, 3.0),
    "joint_damping": (0.005, 0.1),
    "friction_loss": (0.001, 0.005),
    "valve_damping": (0.005, 0.1),
    "valve_friction_loss": (0.001, 0.005),
    "friction": (0.8, 1.2),
    "friction_torsional": (0.003, 0.007),
    "friction_rolling": (5e-5, 1.5e-4),
    "mount_offset": (-0.01, 0.01),
    "mount_colour": (0.2, 0.9),
    "valve_colour": (0.2, 0.9),
}
# What may differ on a bench. What has no source is an assumption, to be replaced by what a bench measures.
SIM2REAL = {
    "servo_stiffness": (1.5, 8.0),  # below the model's 2, to the 8 of published behaviour
    "joint_damping": (0.05, 0.2),  # half to twice the model's; less rings at 8 Nm/rad as no geared servo does
    "friction_loss": (0.001, 0.02),  # ROBEL's least, to 1 % of the servo's 2.5 Nm: dry gears
    "valve_damping": (0.005, 0.1),  # ROBEL's: the model's 0.1 is its heaviest, too heavy by all signs
    "valve_friction_loss": (0.001, 0.02),  # as in the joints: the valve's limp servo is of the same kind
    "friction": (0.2, 1.2),  # bare plastic, as in the model, to rubber tips, ROBEL's most
    "friction_torsional": (0.003, 0.007),
    "friction_rolling": (5e-5, 1.5e-4),
    "mount_offset": (-0.005, 0.005),  # m: set up with a ruler
    "backlash": (0.0, 0.01),  # rad: a new gear has a quarter of a degree (0.0044), a worn one twice that
    "command_delay": (0.0, 0.02),  # s: 3 to 8 ms on the bus, up to 16 in a USB adapter that waits
    # s: a frame of a 30 Hz camera, from exposure to arrival. More, and a single dropped frame would make the
    # next one too old for a step of 0.1 s: 0.03 + 0.065 between frames.
    "frame_delay": (0.0, 0.03),
    "frame_drops": (0.0, 0.01),  # two in a row may be too late for a step: 1 of 2000 episodes ends so
    "encoder_noise": (0.0, 2.0),  # ticks: the last bit or two of 4096
    "camera_shift": (-0.005, 0.005),  # m: a tripod that was moved and put back
    "camera_distance": (-0.01, 0.01),  # m
    "camera_azimuth": (-3.0, 3.0),  # deg: 22 mm sideways, as far as the eye lets pass
    "camera_elevation": (-3.0, 3.0),  # deg
    "camera_fovy": (-2.0, 2.0),  # deg: 5 % of what the lens is said to have
    "light": (0.4, 1.6),  # a lamp that is dimmed or near; three of them, so shading turns, too
    "ambient": (0.6, 1.4),  # an overcast and a sunny room, after the camera's own exposure
    "floor_colour": (0.3, 0.9),  # any table but a black one
    "floor_texture": (0.0, 0.3),  # blotches: wood, paper, dust
    "finger_colour": (0.1, 0.7),
    "mount_colour": (0.1, 0.9),
    "valve_colour": (0.05, 0.6),  # darker than the floor, as the model's arms are
    "pointer_shade": (0.8, 1.15),  # of its red, which stays red
    "exposure": (0.75, 1.3),  # a third of a stop either way: what locked exposure leaves to daylight
    "white_balance": (0.92, 1.08),  # each channel: what a locked white balance leaves to another lamp
    "colour_noise": (0.0, 6.0),  # levels of 255: from a bright room to a dim one
}
PRESETS: dict[str, dict[str, tuple[float, float]]] = {"off": {}, "robel": ROBEL, "sim2real": SIM2REAL}
# How many numbers are drawn; one where nothing is said. Nine: each joint has its own. Three: axes, channels.
COUNTS = {
    **dict.fromkeys(("joint_damping", "friction_loss"), len(JOINTS)),
    **dict.fromkeys(("mount_offset", "camera_shift", "light", "white_balance"), 3),
    **dict.fromkeys(("floor_colour", "finger_colour", "mount_colour", "valve_colour"), 3),
}


class RandomiseConfig(Config):
    """Which quantities each episode draws anew, uniformly from [low, high]; null: as configured.

    A preset's name alone stands for all of its ranges; a section changes those of its `base`.
    """

    @field_validator("*")
    @classmethod
    def _means_something(cls, value: Any, info: ValidationInfo) -> Any:
        limit = LIMITS.get(info.field_name or "", LIMIT)
        if isinstance(value, tuple) and max(map(abs, value)) > limit:
            raise ValueError(f"numbers go to {limit:g} here, got {list(value)}")
        return value

    base: Literal["off", "robel", "sim2real"] = "off"
    # Physics, in place of the values in hw.sim
    servo_stiffness: Positives | None = None  # Nm/rad, one for all fingers
    joint_damping: Sizes | None = None  # Nm s/rad, each joint its own
    friction_loss: Sizes | None = None  # Nm, each joint its own
    valve_damping: Sizes | None = None  # Nm s/rad
    valve_friction_loss: Sizes | None = None  # Nm
    friction: Sizes | None = None  # sliding, one for everything that touches
    friction_torsional: Sizes | None = None  # m, about the contact's normal
    friction_rolling: Sizes | None = None  # m
    mount_offset: Interval | None = None  # m along each axis: the fingers, relative to valve and camera
    backlash: Sizes | None = None  # rad of play between command and motion
    # Time
    command_delay: Sizes | None = None  # s, in place of hw.sim's
    frame_delay: Sizes | None = None  # s, in place of hw.sim's
    frame_drops: Shares | None = None  # probability that one of 30 frames a second is lost
    # Sensors
    encoder_noise: Sizes | None = None  # ticks, the most that a position is off
    observation_noise: Sizes | None = None  # share of a joint's range by which the agent sees it off, ROBEL's
    # Looks
    camera_shift: Interval | None = None  # m along each axis, added to the point that the camera looks at
    camera_distance: Interval | None = None  # m, added
    camera_azimuth: Interval | None = None  # deg, added
    camera_elevation: Interval | None = None  # deg, added
    camera_fovy: Interval | None = None  # deg, added
    light: Sizes | None = None  # times the brightness, each lamp its own
    ambient: Sizes | None = None  # times
    floor_colour: Shares | None = None  # each channel
    floor_texture: Shares | None = None  # contrast of a random pattern on the floor
    finger_colour: Shares | None = None
    mount_colour: Shares | None = None
    valve_colour: Shares | None = None  # the arms that are no pointer, and the hub
    pointer_shade: Sizes | None = None  # times its colour
    exposure: Positives | None = None  # times all channels of the agent's picture
    white_balance: Positives | None = None  # times each channel
    colour_noise: Sizes | None = None  # levels of 255, standard deviation in each pixel of each frame

    @model_validator(mode="before")
    @classmethod
    def _over_its_base(cls, settings: Any) -> Any:
        if isinstance(settings, str):
            settings = {"base": settings}
        base = settings.get("base") if isinstance(settings, dict) else None
        return {**PRESETS[base], **settings} if isinstance(base, str) and base in PRESETS else settings

    @property
    def ranges(self) -> dict[str, tuple[float, float]]:
        """What is drawn, and from where."""
        names = [name for name in type(self).model_fields if name != "base"]
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def draw(self, rng: np.random.Generator) -> Draw:
        """One episode's values, nothing but the generator's doing; empty where there is nothing to draw."""
        values = {
            name: tuple(rng.uniform(low, high, COUNTS.get(name, 1)).tolist())
            for name, (low, high) in self.ranges.items()
        }
        values |= {name: _unmistakable(value) for name, value in values.items() if name.endswith("_colour")}
        return Draw({**values, LUCK: (float(rng.integers(2**32)),)} if values else {})


def _unmistakable(colour: tuple[float, ...]) -> tuple[float, ...]:
    """The colour; a clear red or green, as pointer and goal have it, changes place with its blue."""
    strongest = int(np.argmax(colour))
    second = sorted(colour)[-2]
    if strongest == 2 or colour[strongest] - second <= STANDS_OUT:
        return colour
    swapped = list(colour)
    swapped[strongest], swapped[2] = swapped[2], swapped[strongest]
    return tuple(swapped)


@dataclass(frozen=True)
class Draw:
    """What one episode drew, by the names of `RandomiseConfig`; what it does not name is as configured."""

    values: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def number(self, name: str, nominal: float) -> float:
        """A quantity of one number; `nominal` where it was not drawn."""
        return self.values[name][0] if name in self.values else nominal

    def numbers(self, name: str) -> Floats | None:
        """(n,): a quantity's numbers, None where it was not drawn."""
        return np.array(self.values[name]) if name in self.values else None

    def luck(self, purpose: int) -> np.random.Generator:
        """A generator for one purpose within the episode, the same again for the same draw."""
        return np.random.default_rng([int(self.number(LUCK, 0.0)), purpose])

    def floats(self) -> dict[str, float]:
        """Plain numbers by name for an episode's log: `sim.backlash`, `sim.joint_damping.0`, ..."""
        return dict(self._named())

    def _named(self) -> Iterator[tuple[str, float]]:
        for name, numbers in self.values.items():
            if len(numbers) == 1:
                yield f"{PREFIX}{name}", numbers[0]
            else:
                yield from ((f"{PREFIX}{name}.{i}", number) for i, number in enumerate(numbers))

    @classmethod
    def of(cls, parameters: Mapping[str, float]) -> Self:
        """The draw among an episode's logged parameters; an empty one where nothing was drawn."""
        values: dict[str, tuple[float, ...]] = {}
        for key, number in parameters.items():
            if key.startswith(PREFIX):
                name = key.removeprefix(PREFIX).partition(".")[0]
                values[name] = (*values.get(name, ()), float(number))
        return cls(values)

    def pose(self, nominal: CameraPose) -> CameraPose:
        """Where the camera stands."""
        shift = self.values.get("camera_shift", (0.0, 0.0, 0.0))
        angles = ("distance", "azimuth", "elevation", "fovy")
        moved = {name: getattr(nominal, name) + self.number(f"camera_{name}", 0.0) for name in angles}
        lookat = tuple(float(a + b) for a, b in zip(nominal.lookat, shift, strict=True))
        return nominal.model_copy(update={**moved, "lookat": lookat})

    def sensor(self) -> Sensor | None:
        """What the camera makes of a picture, None where it shows it as it is."""
        exposure, balance = self.number("exposure", 1.0), self.numbers("white_balance")
        gain = exposure * (np.ones(3) if balance is None else balance)
        noise = self.number("colour_noise", 0.0)
        return (
            Sensor(gain.astype(np.float32), noise, self.luck(PIXELS)) if noise or (gain != 1).any() else None
        )


@dataclass(frozen=True)
class Sensor:
    """A camera's gains (3,) and its noise, levels of 255."""

    gain: NDArray[np.float32]
    noise: float
    luck: np.random.Generator

    def develop(self, image: Image) -> Image:
        """The picture (H, W, 3) uint8 as this sensor sees it; the noise is new in each."""
        seen = image * self.gain
        if self.noise:
            seen += np.float32(self.noise) * self.luck.standard_normal(image.shape, np.float32)
        return np.asarray(np.clip(np.rint(seen), 0, 255), dtype=np.uint8)


def blurred(snapshot: Snapshot, share: float, luck: np.random.Generator) -> Snapshot:
    """A snapshot in which positions, and the joints' velocities, are off by ROBEL's observation noise."""
    joints, valve = snapshot.joints, snapshot.object
    ranges = np.resize(FINGER_RANGES, joints.position.shape)
    joints = replace(
        joints,
        position=joints.position + _noise(share * ranges, luck),
        velocity=joints.velocity + _noise(np.full(ranges.shape, share * VELOCITY_RANGE), luck),
    )
    spread = np.full(valve.position.shape, share * VALVE_RANGE)
    valve = replace(valve, position=valve.position + _noise(spread, luck))
    return replace(snapshot, joints=joints, object=valve)


def _noise(spread: Floats, luck: np.random.Generator) -> Floats:
    return np.asarray(spread * luck.uniform(-0.5, 0.5, spread.shape))


class Variation:
    """Writes draws into a compiled model, each over the nominal model and not over the draw before."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model = model
        self._arrays: tuple[NDArray[Any], ...] = (
            *(model.dof_damping, model.dof_frictionloss, model.geom_friction, model.body_pos),
            *(model.geom_rgba, model.site_rgba, model.light_diffuse, model.vis.headlight.ambient),
            model.tex_data,
        )
        self._nominal = [array.copy() for array in self._arrays]
        _, self._joints = addresses(model, JOINTS)
        self._valve = model.joint(VALVE_JOINT).dofadr
        self._pointer = pointer_geom(model)
        self._painted = self._parts()
        self._blotched = FLOOR_TEXTURE in [model.texture(i).name for i in range(model.ntex)]

    def apply(self, draw: Draw) -> None:
        """Makes the model that of a draw; a simulation of it goes on from where it is."""
        for array, nominal in zip(self._arrays, self._nominal, strict=True):
            array[...] = nominal
        self._move(draw)
        self._paint(draw)

    def _move(self, draw: Draw) -> None:
        model = self._model
        self._write(draw, "joint_damping", model.dof_damping, self._joints)
        self._write(draw, "friction_loss", model.dof_frictionloss, self._joints)
        self._write(draw, "valve_damping", model.dof_damping, self._valve)
        self._write(draw, "valve_friction_loss", model.dof_frictionloss, self._valve)
        for column, name in enumerate(("friction", "friction_torsional", "friction_rolling")):
            self._write(draw, name, model.geom_friction, (slice(None), column))
        if (offset := draw.numbers("mount_offset")) is not None:
            model.body_pos[model.body("mount").id] += offset

    def _paint(self, draw: Draw) -> None:
        model = self._model
        for name, geoms in self._painted.items():
            self._write(draw, name, model.geom_rgba, (geoms, slice(3)))
        shade = draw.number("pointer_shade", 1.0)
        model.geom_rgba[self._pointer, :3] *= shade
        model.site_rgba[model.site("valve_mark").id, :3] *= shade
        if (lamps := draw.numbers("light")) is not None:
            model.light_diffuse *= lamps[: model.nlight, None]
        model.vis.headlight.ambient *= draw.number("ambient", 1.0)
        if self._blotched and "floor_texture" in draw.values:
            blotch(model, draw.number("floor_texture", 0.0), draw.luck(TEXTURE))

    def _write(self, draw: Draw, name: str, array: NDArray[Any], index: Any) -> None:
        if (numbers := draw.numbers(name)) is not None:
            array[index] = numbers

    def _parts(self) -> dict[str, NDArray[np.intp]]:
        """The geoms that each colour is for."""
        model = self._model
        mount, valve = model.body("mount").id, model.body("valve").id
        arms = model.geom_bodyid == valve
        arms[self._pointer] = False
        hand = model.body_rootid[model.geom_bodyid] == mount
        hand[model.geom("mount").id] = False
        return {
            "floor_colour": np.array([model.geom("floor").id]),
            "mount_colour": np.array([model.geom("mount").id]),
            "finger_colour": np.flatnonzero(hand),
            "valve_colour": np.flatnonzero(arms),
        }
