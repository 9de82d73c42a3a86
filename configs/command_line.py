"""The grammar of the command line: what each command takes, and what was meant when it is wrong.

Imports nothing but the standard library, so that help and a mistyped flag are answered at once.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

USAGE = """\
usage: run_robot.py [COMMAND] [options]                             (no COMMAND means train)

  train     learn a task              --task T --hw H [--agent A] [--steps N] [--seed S]
  collect   log episodes              --task T --hw H [--policy random|hold|expert] [--episodes N]
  evaluate  measure what was learned  --run DIR [--episodes N] [--hw H]
  replay    move as a logged episode  EPISODE --hw H
            or score it anew          EPISODE --rescore            (nothing moves)
  check     test rig and wiring       --hw H [--fix]               (nothing moves)
  identify  fit the simulated plant   --hw H                       (moves for 80 s)
            or fit a recording anew   --from FILE                  (nothing moves)
  calibrate camera: lens and place    --hw H                       (a board in your hand)
            or by earlier photographs --from DIR
            or print that board       --hw H --print-board F
            or its place, boardless   --hw H --from-fingers        (moves for a minute)
            joints: zeros and stops   --hw H                       (the fingers in your hands)
            valve: zero and sign      --hw H [--by-hand]           (turns the valve, or you do)
            scene: where is it?       --hw H                       (moves; later starts compare)
            overlay: model on picture --hw H                       (nothing moves; until Ctrl-C)
  motors    list servos at any baud   --hw H                       (nothing moves)
            or give them their ids    --hw H --set-id              (one at a time, by hand)
  emulate   serve an emulated D'Claw  [--link PATH] [--hw H]       (until Ctrl-C)
  list      show tasks, hw and agents

  --task NAME      what to learn: a file of configs/tasks
  --hw NAME        sim | emulated | dclaw: a file of configs/hw
  --agent NAME     slac | sac_pixels | sac_state: of configs/agent (default slac)
  --steps N        control steps in all, 10 per second on a robot
  --seed S         of starts, goals, actions and weights           (default 0)
  --run DIR        where everything lands                          (default runs/TASK-AGENT-HW-TIME)
  --resume         go on with the run in --run DIR
  --config FILE    values over those of task, hw and agent         (may be repeated)
  --set a.b=c      one value over all of them                      (may be repeated)
  --envs N         so many simulated robots side by side           (only in sim)
  --sync           learn in the actor's process, bit for bit: only in sim, its default; --no-sync
  --fix            write the servos' settings that differ from the configuration
  --from PATH      what an earlier identify recorded, plants/*.npz; photographs of a board
  --print-board F  the board to calibrate with, at true scale: a .pdf or .png
  --link PATH      a stable name for the emulated port
  --dry-run        build everything, take one step (on dclaw: none), exit
  --print-config   show the values in force

examples
  run_robot.py --task valve_random --hw sim --config configs/laptop.yaml    a first look, minutes
  run_robot.py check --hw dclaw                                             before the robot moves
  run_robot.py --task valve_random --hw dclaw                               the real thing
  run_robot.py evaluate --run runs/NAME --episodes 100
  run_robot.py replay runs/NAME/episodes/000042.mcap --hw sim
"""


def name(text: str) -> str:
    """A name or path, for argparse; nothing at all is what an unset shell variable leaves."""
    if not text.strip():
        raise argparse.ArgumentTypeError("expected a name, got nothing; is a shell variable empty?")
    return text


def count(text: str) -> int:
    """A whole number above zero, for argparse; 1e5 is one."""
    try:
        number = float(text)
    except ValueError:
        number = 0
    if not (1 <= number <= 1e9 and number.is_integer()):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0 and up to 1e9, got {text!r}")
    return int(number)


def seed(text: str) -> int:
    """A whole number of 32 bits, for argparse: every generator takes those."""
    if not (text.isdecimal() and int(text) < 2**32):
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to {2**32 - 1}, got {text!r}")
    return int(text)


# The commands with settings of a rig.
RIG = "train collect evaluate replay check identify calibrate motors emulate"
FLAGS: dict[str, tuple[str, dict[str, Any]]] = {  # flag -> the commands that take it, options of argparse
    "--task": ("train collect", {"type": name}),
    "--hw": (RIG, {"type": name}),
    "--agent": ("train", {"type": name, "default": "slac"}),
    "--steps": ("train", {"type": count}),
    "--seed": ("train collect evaluate", {"type": seed}),
    "--run": ("train collect evaluate", {"type": name}),
    "--resume": ("train collect", {"action": "store_true"}),
    "--config": (RIG, {"type": name, "action": "append"}),
    "--set": (RIG, {"dest": "overrides", "action": "append"}),
    "--envs": ("train collect", {"type": count}),
    "--sync": ("train", {"action": argparse.BooleanOptionalAction}),
    "--dry-run": ("train", {"action": "store_true"}),
    "--print-config": ("train collect", {"action": "store_true"}),
    "--episodes": ("collect evaluate", {"type": count}),
    "--policy": ("collect", {"choices": ("random", "hold", "expert"), "default": "random"}),
    "--rescore": ("replay", {"action": "store_true"}),
    "--fix": ("check", {"action": "store_true"}),
    "--from": ("identify calibrate", {"type": name}),
    "--print-board": ("calibrate", {"type": name}),
    "--from-fingers": ("calibrate", {"action": "store_true"}),
    "--by-hand": ("calibrate", {"action": "store_true"}),
    "--set-id": ("motors", {"action": "store_true"}),
    "--link": ("emulate", {"type": name}),
}
NEEDED: dict[str, tuple[str, ...]] = {  # command -> what it cannot do without
    "train": ("--task", "--hw"),
    "collect": ("--task", "--hw"),
    "evaluate": ("--run",),
    "replay": ("--hw",),  # unless it only scores
    "check": ("--hw",),
    "identify": ("--hw",),  # unless it only fits
    "calibrate": ("--hw",),  # unless its photographs say what they were taken with
    "motors": ("--hw",),
    "emulate": (),  # --hw emulated goes without saying
    "list": (),
}
SHOWN_BY = {"--run": "`ls runs` shows the runs"}  # of what is missing; all else by `list`


class Parser(argparse.ArgumentParser):
    """The flags of one command; a mistake is told in one line, with what was meant."""

    def __init__(self, command: str) -> None:
        super().__init__(prog="run_robot.py", add_help=False, allow_abbrev=False)
        self.command = command
        self.set_defaults(command=command, config=[], overrides=[])
        for flag, (commands, options) in FLAGS.items():
            if command in commands.split():
                self.add_argument(flag, **options)
        if command == "replay":
            self.add_argument("episode", type=name)
        if command == "calibrate":
            self.add_argument("what", choices=("camera", "joints", "scene", "valve", "overlay"))

    def error(self, message: str) -> NoReturn:
        """Leaves with code 2 and one line."""
        if message.endswith("required: episode"):
            message = "which EPISODE? `ls runs/*/episodes` shows what there is"
        if message.endswith("required: what"):
            message = (
                "calibrate what? run_robot.py calibrate camera --hw ..., or joints, valve, scene, overlay"
            )
        said = f"run_robot.py {self.command}: {message.removeprefix('argument ')}"
        print(f"{said}\n`run_robot.py --help` shows all options", file=sys.stderr)
        raise SystemExit(2)

    def refuse(self, word: str) -> NoReturn:
        """Tells what a word that does not belong to the command may have been meant for."""
        flag = word.split("=")[0]
        if flag in FLAGS:
            self.error(f"takes no {flag}; these do: {', '.join(FLAGS[flag][0].split())}")
        if word in NEEDED:
            self.error(f"the command comes first: run_robot.py {word} ...")
        mine = [known for known, (commands, _) in FLAGS.items() if self.command in commands.split()]
        self.error(f"unknown argument {word!r}{meant(flag, mine)}")


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; leaves with code 2 and one clear line when it is wrong, with 0 after the help."""
    if not argv or {"-h", "--help"} & set(argv):
        print(USAGE, end="")
        raise SystemExit(0 if argv else 2)
    named = not argv[0].startswith("-")
    parser = Parser(argv[0] if named else "train")
    if parser.command not in NEEDED:
        parser.error(f"no such command{meant(parser.command, NEEDED)}")
    args, unknown = parser.parse_known_args(argv[named:])
    if unknown:
        parser.refuse(unknown[0])
    present = {flag for flag in FLAGS if getattr(args, flag[2:].replace("-", "_"), None)}
    missing = [flag for flag in NEEDED[parser.command] if flag not in present]
    if missing and not present & {"--rescore", "--from"}:
        shown = SHOWN_BY.get(missing[0], "`run_robot.py list` shows the names")
        parser.error(f"needs {' and '.join(missing)}: {shown}")
    if "--resume" in present and "--run" not in present:
        parser.error("--resume needs --run DIR, the run to go on with; `ls runs` shows the runs")
    return args


def meant(word: str, known: Iterable[str]) -> str:
    """` - did you mean X?`, or nothing when no known word is near."""
    near = difflib.get_close_matches(word, list(known), 1)
    return f" - did you mean {near[0]}?" if near else ""
