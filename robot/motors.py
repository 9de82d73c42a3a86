"""Servos as they are found on a bus, whatever their id and baud rate; and how new ones get theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from robot import registers as reg
from robot.bus import BusConfig, SerialBus
from robot.clock import SystemClock
from robot.registers import servo_name
from robot.rig import RigConfig, emulate
from robot.types import BusFault, ServoSilent

Tell = Callable[[str], object]

# What two servos with one id hardly have in common: then their answers garble each other. Of a ping, which
# says the same of both, they need not.
UNLIKE = (reg.REALTIME_TICK, reg.PRESENT_POSITION, reg.PRESENT_INPUT_VOLTAGE, reg.PRESENT_TEMPERATURE)
CONNECT = "servo power on? adapter and cable whole, and of one kind (TTL or RS-485)? Protocol 2.0?"


@dataclass(frozen=True, slots=True)
class Range:
    """Where servos are looked for."""

    # The speed of new servos first, then the most usual ones; 9600 takes longest to ask at.
    bauds: tuple[int, ...] = (57_600, 1_000_000, 2_000_000, 3_000_000, 4_000_000, 115_200, 9_600)
    highest: int = 252  # the last id

    def first_at(self, baud: int) -> Range:
        """The same, the configured speed first."""
        return Range((baud, *(other for other in self.bauds if other != baud)), self.highest)


EVERYWHERE = Range()


class Motor(NamedTuple):
    """A servo that answers."""

    id: int
    model: int
    firmware: int
    baud: int

    @property
    def name(self) -> str:
        """The model as its maker calls it."""
        return reg.MODEL_NAMES.get(self.model, f"model {self.model}")

    @property
    def kind(self) -> str:
        """Model and firmware: 'XH430-W210, firmware 45'."""
        return f"{self.name}, firmware {self.firmware}"


@dataclass(frozen=True, slots=True)
class Found:
    """Who answered, and at which speeds answers were garbled."""

    motors: tuple[Motor, ...]
    garbled: tuple[int, ...]  # baud

    def ids(self, baud: int) -> set[int]:
        """Those who answered at that speed."""
        return {motor.id for motor in self.motors if motor.baud == baud}


def search(bus: BusConfig, where: Range, tell: Tell) -> Found:
    """Asks every id at each speed: all at once, 1 s a speed, but 4 s at 9600 baud. Raises PortLost."""
    motors: list[Motor] = []
    garbled = []
    for baud in where.bauds:
        tell(f"asking all ids at {baud} baud")
        with closing(open_at(bus, baud)) as line:
            answers = line.broadcast_ping(where.highest)
            garbled += [baud] * (line.statistics()["crc_errors"] > 0)
        motors += [Motor(id, *answers[id], baud) for id in sorted(answers)]
    return Found(tuple(motors), tuple(garbled))


def listed(ids: Sequence[int], everybody: Sequence[int]) -> str:
    """The names of servos, or that it is all of them."""
    return f"all {len(ids)} servos" if set(ids) == set(everybody) else ", ".join(map(servo_name, ids))


def ask_each(line: SerialBus, ids: Sequence[int], baud: int) -> tuple[list[Motor], list[int]]:
    """One by one, as patiently as a run: who answers after all, and of whom only noise comes.

    Raises PortLost.
    """
    motors, garbled = [], []
    for id in ids:
        before = line.statistics()["crc_errors"]
        try:
            motors += [
                Motor(id, model, line.read(reg.FIRMWARE_VERSION, id), baud)
                for model in line.ping((id,)).values()
            ]
        except ServoSilent:
            continue
        if line.statistics()["crc_errors"] > before and id not in {motor.id for motor in motors}:
            garbled.append(id)
    return motors, garbled


def open_at(bus: BusConfig, baud: int) -> SerialBus:
    """The bus at another speed. Raises PortLost."""
    return SerialBus(bus.model_copy(update={"baud": baud}), SystemClock())


# --- Listing -----------------------------------------------------------------------------------------------


def show(config: RigConfig, console: Console, where: Range = EVERYWHERE) -> bool:
    """Prints a table of all servos on the bus; True when every configured one is there. Nothing moves.

    Raises PortLost.
    """
    with ExitStack() as resources:
        if config.kind == "emulated":
            config = emulate(config, resources, cameras=False)
        with console.status("asking all ids, nothing will move") as status:
            found = search(config.bus, where.first_at(config.bus.baud), status.update)
            found, garbled = _ask_again(config, found)
            table = _table(config, found.motors)
    if found.motors:
        console.print(table)
    return _sum_up(config, found, garbled, console)


def _ask_again(config: RigConfig, found: Found) -> tuple[Found, list[int]]:
    """With those that were only unlucky, and the ids of whom only noise comes."""
    missing = [id for id in config.dclaw.ids if id not in found.ids(config.bus.baud)]
    with closing(open_at(config.bus, config.bus.baud)) as line:
        more, garbled = ask_each(line, missing, config.bus.baud)
    return Found((*found.motors, *more), found.garbled), garbled


def _table(config: RigConfig, motors: Sequence[Motor]) -> Table:
    table = Table("servo", "model", "fw", "baud", "supply", "deg C", "", box=None, pad_edge=False)
    for motor in motors:
        volts, degrees = _condition(config.bus, motor)
        numbers = (motor.name, str(motor.firmware), str(motor.baud), volts, degrees)
        table.add_row(servo_name(motor.id), *numbers, ", ".join(_strange(config, motor)))
    return table


def _condition(bus: BusConfig, motor: Motor) -> tuple[str, str]:
    """Voltage and temperature in words."""
    try:
        with closing(open_at(bus, motor.baud)) as line:
            values = line.sync_read((reg.PRESENT_INPUT_VOLTAGE, reg.PRESENT_TEMPERATURE), (motor.id,)).values
    except ServoSilent:
        return "?", "?"
    volts, degrees = values[0].tolist()
    return f"{volts * reg.VOLT_PER_UNIT:.1f} V", str(degrees)


def _strange(config: RigConfig, motor: Motor) -> list[str]:
    strange = {"unexpected": motor.id not in config.dclaw.ids, "other baud": motor.baud != config.bus.baud}
    return [note for note, applies in strange.items() if applies]


def _sum_up(config: RigConfig, found: Found, garbled: Sequence[int], console: Console) -> bool:
    wanted = config.dclaw.ids
    missing = [servo for servo in wanted if servo not in found.ids(config.bus.baud)]
    say = _speaker(console)
    say(f"{len(wanted) - len(missing)} of {len(wanted)} configured servos answer at {config.bus.baud} baud")
    if missing and found.motors:
        say(f"missing: {listed(missing, wanted)}")
    if not found.motors:
        say(CONNECT)
    elif missing:
        say("to give servos their ids, one at a time: the same command with --set-id")
    if found.garbled or garbled:
        who = f"of {', '.join(map(servo_name, garbled))}" if garbled else f"at {found.garbled[0]} baud"
        say(f"answers {who} are garbled: two servos have one id, or a cable is loose")
    return not missing


def _speaker(console: Console) -> Tell:
    return lambda text: console.print(text, soft_wrap=True, markup=False, highlight=False)


# --- Giving ids --------------------------------------------------------------------------------------------


class Stopped(Exception):
    """The person has had enough."""


class Naming:
    """Gives one connected servo after the other the id and baud rate that the configuration wants.

    All is kept in the servos. Stopped at any moment, even between id and baud rate, it goes on where it was:
    a servo that has its id already is recognised and left as it is.
    """

    def __init__(
        self, config: RigConfig, ask: Callable[[str], str], console: Console, where: Range = EVERYWHERE
    ) -> None:
        """ask: puts a question to the person and returns the answer, without the end of the line."""
        self._config, self._ask, self._console = config, ask, console
        self._say, self._where = _speaker(console), where.first_at(config.bus.baud)
        self.done: list[int] = []

    def run(self) -> bool:
        """Leads through all ids; True when every servo has got its own. Raises PortLost, at first."""
        ids = self._config.dclaw.ids
        open_at(self._config.bus, self._config.bus.baud).close()
        self._say(
            f"Each of {len(ids)} servos gets its id at {self._config.bus.baud} baud: connect one at a time, "
            "alone. Enter goes on, `s` skips a servo, `q` ends; Ctrl-C does no harm at any time."
        )
        try:
            for servo in ids:
                self._name(servo)
        except Stopped:
            self._say("stopped")
        finally:
            self._report(ids)
        return set(self.done) == set(ids)

    def _report(self, ids: Sequence[int]) -> None:
        rest = [servo for servo in ids if servo not in self.done]
        self._say(f"done: {', '.join(map(str, self.done)) or 'none'}")
        if rest:
            self._say(
                f"left: {', '.join(map(str, rest))}; go on with the same command, `s` skips what is done"
            )
        else:
            self._say("Connect them all and type: run_robot.py check --hw ... (as here)")

    def _name(self, servo: int) -> None:
        """Returns once the servo has its id, or is skipped. Raises Stopped."""
        count, ids = len(self.done), self._config.dclaw.ids
        self._say(f"\n{ids.index(servo) + 1} of {len(ids)}: {servo_name(servo)}; {count} done so far")
        question = "Connect this servo alone, power on, then Enter [s, q]: "
        while (answer := self._ask(question).strip().lower()) != "s":
            if answer == "q":
                raise Stopped
            try:
                if self._given(servo):
                    self.done.append(servo)
                    return
            except BusFault as fault:
                self._say(str(fault))

    def _given(self, servo: int) -> bool:
        """Finds the one servo and gives it its id; False when that was not to be. Raises BusFault."""
        motor = self._only_one()
        if motor is None or not self._may_become(servo, motor):
            return False
        baud = self._config.bus.baud
        if (motor.id, motor.baud) == (servo, baud):
            self._say(f"{motor.kind}: it is servo {servo} at {baud} baud already")
            return True
        self._write(motor, servo)
        with closing(open_at(self._config.bus, baud)) as line:
            answers = line.ping((servo,))
        if servo not in answers:
            self._say(f"servo {servo} does not answer at {baud} baud. Power off and on, and try again")
            return False
        self._say(f"{motor.kind}: servo {motor.id} at {motor.baud} baud is now servo {servo} at {baud}")
        return True

    def _only_one(self) -> Motor | None:
        """The one servo that is connected; None, and told why, when there is not one. Raises BusFault."""
        with self._console.status("searching") as status:
            found = search(self._config.bus, self._where, status.update)
        if len(found.motors) > 1:
            names = ", ".join(f"id {motor.id} at {motor.baud} baud" for motor in found.motors)
            self._say(f"{len(found.motors)} servos answer: {names}. Disconnect all but one")
        elif found.garbled or (found.motors and self._is_two(found.motors[0])):
            self._say("two servos with one id answer, or a cable is loose. Disconnect all but one")
        elif not found.motors:
            self._say(f"no servo answers: {CONNECT} Or are several with one id connected at once?")
        else:
            return found.motors[0]
        return None

    def _is_two(self, motor: Motor) -> bool:
        with closing(open_at(self._config.bus, motor.baud)) as line:
            try:
                line.sync_read(UNLIKE, (motor.id,))
            except ServoSilent:
                return True
        return False

    def _may_become(self, servo: int, motor: Motor) -> bool:
        """Asks before a servo that has another place on this robot loses it."""
        if motor.id == servo or motor.id not in self._config.dclaw.ids:
            return True
        told = "done before" if motor.id in self.done else "of this robot already"
        self._say(f"This one is {servo_name(motor.id)}, {told}.")
        return self._ask(f"Make it servo {servo} all the same? [yes, Enter: no] ").strip().lower() == "yes"

    def _write(self, motor: Motor, servo: int) -> None:
        """Id first, then baud rate: in between it is found again under the new id. Raises BusFault.

        Whether answers come from before or after a change, no manual says: what counts is the ping after.
        """
        with closing(open_at(self._config.bus, motor.baud)) as line:
            line.sync_write(reg.STATUS_RETURN_LEVEL, {motor.id: 2})  # else no write would be answered
            line.write(reg.TORQUE_ENABLE, motor.id, 0)  # which EEPROM needs
            if motor.id != servo:
                with suppress(ServoSilent):
                    line.write(reg.ID, motor.id, servo)
            if motor.baud != self._config.bus.baud:
                with suppress(ServoSilent):
                    line.write(reg.BAUD_RATE, servo, reg.BAUD_CODES[self._config.bus.baud])


def typed(question: str) -> str:
    """What the person types; when nobody is there, the word that ends the questions."""
    try:
        return input(question)
    except EOFError:
        return "q"


def name_servos(config: RigConfig, ask: Callable[[str], str], console: Console) -> bool:
    """Leads a person through giving every servo its id; True when all have it. Raises PortLost."""
    with ExitStack() as resources:
        if config.kind == "emulated":
            config = emulate(config, resources, cameras=False)
        return Naming(config, ask, console).run()
