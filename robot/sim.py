"""The simulated rig beneath the driver: one MuJoCo world that is bus, camera and clock at once.

The driver, its calibration and its fault paths run on it unchanged, because it speaks registers and ticks.
Physics advances only when someone sleeps on the clock (or calls `advance_to`), exactly as fast as the CPU
allows, in whole steps counted as an integer.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any

import mujoco
import numpy as np

from robot import registers as reg
from robot.events import EventLog
from robot.faults import FaultSchedule
from robot.protocol import describe_refusal
from robot.randomise import EYES, Draw, Variation, blurred
from robot.registers import Register, servo_name
from robot.servo import Servo
from robot.sim_camera import SimCamera
from robot.sim_config import FINGER_SERVOS, RESET_POSE, VALVE_SERVO, ZERO_TICKS, SimConfig
from robot.sim_faults import SimFaults
from robot.sim_motors import Motors, Physics
from robot.types import BusFault, Floats, Frame, Image, Reading, ServoSilent, Snapshot
from robot.world import JOINTS, dclaw_model

__all__ = ["FINGER_SERVOS", "RESET_POSE", "VALVE_SERVO", "ZERO_TICKS", "SimConfig", "SimPlant"]

# m by which a hand that was moved may reach into the valve. Random actions press it 2.4 mm deep in one step
# of 100, 3.3 at most (n = 2000; with the presets 4.4 and 6.8).
JOLT = 0.005


class SimPlant:
    """A whole D'Claw rig in one object: pass it as bus, camera and clock.

    Bus: the registers of nine finger servos, the valve's and, if there is one, the guide's, byte-exact
    (`read_memory`, `write_memory`, as a wire emulator needs) and vectorised (`sync_read`, `sync_write`); both
    agree.
    Camera: renders the present when asked. Clock: `sleep_until` steps the physics.
    Bus and clock may be used from several threads; pictures must all be asked for from one thread.
    """

    def __init__(
        self,
        config: SimConfig,
        servos: Sequence[int] = FINGER_SERVOS,
        object_servo: int = VALVE_SERVO,
        image_size: tuple[int, int] = (64, 64),  # width, height
        guide_servo: int | None = None,  # id of the servo that points at a goal; None: there is none
    ) -> None:
        guides = () if guide_servo is None else (guide_servo,)
        ids = (*servos, object_servo, *guides)
        if len(servos) != len(JOINTS) or len({*ids}) != len(ids):
            raise ValueError(
                f"a D'Claw has {len(JOINTS)} finger servos and a valve, got ids {servos}, "
                + ", ".join(map(str, (object_servo, *guides)))
            )
        self.config = config
        model = dclaw_model(
            config, floor_texture=config.randomise.floor_texture is not None, guide=bool(guides)
        )
        self._physics = Physics(model)
        self._lock = self._physics.lock
        self._motors = Motors(self._physics, config, ids)
        self._camera = SimCamera(self._physics, config, image_size)
        self._image_size = image_size
        self.events = EventLog(self)  # what faults begin and end
        self._faults = SimFaults(self._physics, self._motors, self.events)
        self._variation = Variation(model)
        self._blur, self._eyes = 0.0, Draw().luck(EYES)
        self.teleport(RESET_POSE, 0.0)

    # --- Clock ---------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Physics time, s: whole steps since the start."""
        return self._physics.now()

    def sleep_until(self, time: float) -> None:
        """Steps the physics to the first step at or after `time` (a millionth of a step is forgiven)."""
        self.advance_to(time)

    def advance_to(self, t: float) -> None:
        """`sleep_until` under the name that a real-time driver of the plant means."""
        physics, end = self._physics, self._physics.steps_at(t)
        with self._lock:
            while physics.step < end:
                self._faults.meet()
                self._motors.settle()
                watch = self._camera.watch if self._camera.lags else None
                self._motors.run(min(end, self._motors.next_event(self._faults.next_time)), watch)
            self._faults.meet()
            self._motors.trip_watchdogs()

    # --- Bus -----------------------------------------------------------------------------------------------

    @property
    def servos(self) -> Mapping[int, Servo]:
        """The firmware of each servo by id, for emulators and faults; call `refresh` after changing it."""
        return self._motors.by_id

    def refresh(self) -> None:
        """Makes the motors follow registers that were changed past the bus."""
        with self._lock:
            self._motors.index_servos()
            for row in range(len(self._motors.servos)):
                self._faults.suffer(row)

    def ping(self, ids: Sequence[int]) -> dict[int, int]:
        """The model number of each id that answers. Raises PortLost."""
        with self._lock:
            answering = [id for id in ids if self._answers(id)]
            _, silent = self._hear(answering)
            return {
                id: self._motors.by_id[id].value(reg.MODEL_NUMBER) for id in answering if id not in silent
            }

    def read(self, register: Register, servo: int) -> int:
        """One register, in register units. Raises ServoSilent, PortLost."""
        raw = self.read_memory(servo, register.address, register.size)
        return register.decode(raw)

    def write(self, register: Register, servo: int, value: int) -> None:
        """Writes one register. Raises ServoSilent, PortLost, or BusFault when the servo refuses."""
        data = register.encode(value)
        if number := self.write_memory(servo, register.address, data):
            raise BusFault(
                f"{servo_name(servo)} refused {register.name} = {value}: {describe_refusal(number)}. "
                "EEPROM needs torque off; goals need to lie within the limits and the watchdog not tripped."
            )

    def sync_read(self, registers: Sequence[Register], ids: Sequence[int]) -> Reading:
        """The same registers of several servos at this instant.

        Raises ServoSilent naming who is missing, with what the others answered; PortLost.
        """
        with self._lock:
            rows, silent = self._hear(ids)
            values = np.empty((len(rows), len(registers)), np.int64)
            if rows:
                self._motors.fill(values, registers, rows)
            alerts = [self._motors.servos[row].alert << 7 for row in rows]
            reading = Reading(self.now(), values, np.array(alerts, np.uint8))
            if silent:
                raise self._silence(silent, [id for id in ids if id not in silent], reading)
            return reading

    def gather(self, registers: Sequence[Register], ids: Sequence[int]) -> None:
        """Sets the servos' indirect addresses as a driver on a wire does; reading here needs none of it.

        Raises BusFault.
        """
        first, _, most = reg.INDIRECT_BLOCKS[0]
        targets = [entry.address + byte for entry in registers for byte in range(entry.size)]
        if len(targets) > most:
            raise ValueError(f"{len(targets)} bytes do not fit into the {most} of the first indirect block")
        for id in ids:
            if number := self.write_memory(id, first, struct.pack(f"<{len(targets)}H", *targets)):
                raise BusFault(f"{servo_name(id)} refused indirect addresses: {describe_refusal(number)}.")

    def sync_write(self, register: Register, values: Mapping[int, int]) -> None:
        """One register of several servos; like the wire, it does not tell who refused or was absent.

        Raises PortLost.
        """
        with self._lock:
            self._motors.trip_watchdogs()
            self._faults.require_port()
            heard = [id for id in values if self._answers(id)]
            self._motors.feed([self._motors.row[id] for id in heard])
            for id in heard:
                if register.address == reg.GOAL_POSITION.address:
                    self._motors.write_goal(self._motors.row[id], values[id])
                else:
                    data = register.encode(values[id])
                    self._motors.write(self._motors.row[id], register.address, data)

    def read_memory(self, servo: int, address: int, size: int) -> bytes:
        """Bytes of a control table. Raises ServoSilent, PortLost, or AccessError with the error number."""
        with self._lock:
            row = self._hear_one(servo)
            self._motors.measure(row)
            return self._motors.servos[row].read(address, size)

    def write_memory(self, servo: int, address: int, data: bytes) -> int:
        """Writes bytes into a control table; returns the error number. Raises ServoSilent, PortLost."""
        with self._lock:
            return self._motors.write(self._hear_one(servo), address, data)

    def reboot(self, servo: int) -> None:
        """Restarts one servo: torque off, RAM forgotten, silent for a while. Raises ServoSilent, PortLost."""
        with self._lock:
            self._faults.restart(self._hear_one(servo))

    def power(self, servo: int, on: bool) -> None:
        """Cuts or restores one servo's supply; restored, it boots as from factory RAM."""
        with self._lock:
            row = self._motors.row[servo]
            self._motors.servos[row].powered = on
            self._faults.restart(row)

    def close(self) -> None:
        """Frees the graphics; the plant itself needs no release. Never raises."""
        self._camera.close()

    # --- Camera --------------------------------------------------------------------------------------------

    @property
    def projection(self) -> Floats:
        """(3, 4): base-frame metres to homogeneous pixels of the delivered image, for this draw's camera."""
        return self.projection_at(self._image_size)

    def projection_at(self, size: tuple[int, int]) -> Floats:
        """(3, 4): `projection` for pictures of another size (width, height) px."""
        return self._camera.projection(size)

    def latest(self, max_age: float) -> Frame:
        """The newest picture: of the present less `frame_delay`, or of before if frames were dropped.

        Raises StaleFrame, or MissingPart without OpenGL.
        """
        return self._camera.latest(max_age)

    def view(self, size: tuple[int, int], max_age: float) -> Frame:
        """The newest picture in another size (width, height) px; it changes nothing about those to come.

        Raises StaleFrame, or MissingPart without OpenGL.
        """
        return self._camera.view(size, max_age)

    def render(self, width: int, height: int) -> Image:
        """The camera's present view in any size, (height, width, 3) uint8 RGB."""
        return self._camera.render(width, height)

    # --- Randomisation -------------------------------------------------------------------------------------

    def vary(self, draw: Draw) -> None:
        """Becomes the plant of a draw; what it does not name is as configured.

        Time, pose and the servos' registers stay. If the hand would be set down into the valve, its fingers
        are opened, as whoever moves it would.
        """
        with self._lock:
            self._variation.apply(draw)
            self._motors.vary(draw)
            self._camera.vary(draw)
            self._blur, self._eyes = draw.number("observation_noise", 0.0), draw.luck(EYES)
            self._camera.forget()
            self.refresh()  # sends every goal anew, with the draw's delay
            self._physics.forward()
            if "mount_offset" in draw.values and (self._physics.data.contact.dist < -JOLT).any():
                self.teleport(RESET_POSE, self._motors.valve_angle())

    def perceived(self, snapshot: Snapshot) -> Snapshot:
        """What the agent sees of a reading: all of it, or through the draw's observation noise."""
        return blurred(snapshot, self._blur, self._eyes) if self._blur else snapshot

    # --- Faults --------------------------------------------------------------------------------------------

    def inject(self, schedule: FaultSchedule) -> None:
        """Lets happen what a schedule holds, counted from now, besides what was injected before.

        Without a wire its faults show as a driver of three tries sees them: what spoils all three is a
        servo's silence, an unplugged port is PortLost. Raises ValueError for servos that are not there.
        """
        self._faults.inject(schedule)

    def heal(self) -> None:
        """Ends all faults; what they have done to tables and turns stays done."""
        self._faults.heal()

    @property
    def faults(self) -> list[tuple[str, list[int]]]:
        """What is wrong at present: kinds, and the servos that suffer from them."""
        return self._faults.present

    # --- For tests and benchmarks --------------------------------------------------------------------------

    @property
    def truth(self) -> dict[str, Any]:
        """What no robot knows: exact angles (rad), velocities, ticks, torques (Nm), contacts, time."""
        data, motors = self._physics.data, self._motors
        return {
            "time": self.now(),
            "qpos": data.qpos[motors.qpos].copy(),
            "qvel": data.qvel[motors.qvel].copy(),
            "encoders": motors.encoders(data.qpos[motors.qpos]),
            "torque": data.actuator_force.copy(),
            "setpoint": data.ctrl.copy(),
            "valve": motors.valve_angle(),
            "contacts": int(data.ncon),
        }

    def twin(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """A copy of the physics as it is now, to try things out on: the plant does not notice."""
        with self._lock:
            return copy(self._physics.model), copy(self._physics.data)

    def teleport(self, joints: Sequence[float] | Floats, valve: float) -> None:
        """Puts joints (9,) and valve at angles (rad), all at rest, goals there; no robot can do this."""
        with self._lock:
            self._motors.teleport(joints, valve)
            self._camera.forget()
            self.refresh()
            self._motors.arrive()  # else goals came late, and motors were pulled to the old ones meanwhile
            self._physics.forward()

    def hold_by_hand(self, angles: Mapping[int, float]) -> None:
        """Somebody's hands turn these joints (servo id: rad) and hold them there; all others they let go.

        At a stop they get no further. Raises ValueError for a servo that is not there or under torque.
        """
        with self._lock:
            self._motors.hold(angles)
            self._physics.forward()

    # --- Who hears and answers ----------------------------------------------------------------------------

    def _answers(self, id: int) -> bool:
        return id in self._motors.by_id and self._motors.by_id[id].answers(self.now())

    def _hear(self, ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """The rows of servos whose answer to a packet arrives, and the ids of the others.

        Whoever hears the packet has its watchdog fed, if its answer arrives or not. Raises PortLost.
        """
        self._motors.trip_watchdogs()
        self._faults.require_port()
        heard = self._motors.answering(ids)
        self._motors.feed(heard)
        rows = self._faults.heard(heard)
        if len(rows) == len(ids):
            return rows, []
        answered = {self._motors.servos[row].id for row in rows}
        return rows, [id for id in ids if id not in answered]

    def _hear_one(self, id: int) -> int:
        rows, silent = self._hear((id,))
        if silent:
            raise self._silence(silent)
        return rows[0]

    def _silence(
        self, silent: Sequence[int], answered: Sequence[int] = (), reading: Reading | None = None
    ) -> ServoSilent:
        return ServoSilent(
            f"{', '.join(map(servo_name, silent))} did not answer; on the simulated bus are "
            f"{', '.join(map(str, sorted(self._motors.by_id)))}, silent without power and while booting.",
            silent,
            answered,
            reading,
        )
