"""A person who calibrates joints: reads what is asked, moves limp joints by hand, presses keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Self

from calibration.terminal import Terminal

STRAIGHT = 0.0
FAR = 9.0  # rad
REACH = 2.1  # rad, beyond every stop
PATIENCE = 30.0  # s after which a person who is not understood gives up
HASTE = 0.12  # rad between two looks, so 2.4 rad/s
REST = 0.7  # s to hold still before Enter
OUTWARDS = {0: 0.35, 1: -0.35, 2: -0.35}  # rad, by segment, where the text asks for

Hold = Callable[[Mapping[int, float]], None]
Deed = Iterator[str]  # keys one by one; nothing while the hands are busy


class Hands:
    """What a diligent person does at each question; tests replace what a clumsy one does."""

    def __init__(self, hold: Hold, now: Callable[[], float]) -> None:
        self._hold, self.now = hold, now
        self._at: dict[int, float] = {}

    def answer(self, asked: str) -> Deed:
        """The deed that a question asks for."""
        finger = re.search(r"Finger \d \(servos (\d+), (\d+), (\d+)\)", asked)
        joint = re.search(r"servo (\d+) \(finger", asked)
        if "let go of it" in asked and finger:
            yield from self.let_go()
        if finger:
            yield from self.bring(dict.fromkeys(map(int, finger.groups()), STRAIGHT))
            yield from self.wait(REST)
        elif joint and "stop" in asked:
            for end in (-FAR, FAR):
                yield from self.bring({int(joint[1]): end})
        elif joint:
            yield from self.bring({int(joint[1]): OUTWARDS[int(joint[1]) % 10]})
            yield from self.wait(REST)
        yield "enter"

    def bring(self, angles: Mapping[int, float]) -> Deed:
        """Moves joints to angles (rad), not faster than hands do, and the finger's others straight."""
        first = next(iter(angles)) // 10 * 10
        finger = range(first, first + 3)
        wanted = {servo: max(-REACH, min(REACH, angles.get(servo, STRAIGHT))) for servo in finger}
        self._at = {servo: self._at.get(servo, STRAIGHT) for servo in finger}
        while self._at != wanted:
            for servo, goal in wanted.items():
                self._at[servo] += max(-HASTE, min(HASTE, goal - self._at[servo]))
            self._hold(self._at)
            yield ""
        self._hold(self._at)

    def let_go(self) -> Deed:
        """Takes the hands away, for as long as a finger swings."""
        self._hold({})
        self._at = {}
        yield from self.wait(1.0)

    def wait(self, seconds: float) -> Deed:
        """Does nothing for a while."""
        until = self.now() + seconds
        while self.now() < until:
            yield ""


class Person(Terminal):
    """Somebody at a terminal, with hands: keys come from deeds, one deed for each question."""

    def __init__(self, hands: Hands, deeds: Mapping[str, Callable[[], Deed]] | None = None) -> None:
        """deeds: what to do, once, when a question holds these words, in place of what is asked."""
        self._hands, self._deeds = hands, dict(deeds or {})
        self._asked_at, self.patience = 0.0, PATIENCE
        self._deed: Deed = iter(())
        self.said: list[str] = []
        self.seen: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def pressed(self) -> list[str]:
        """The next key, if the hands are done; several at once where spaces are between them."""
        key = next(self._deed, "")
        assert self._hands.now() < self._asked_at + self.patience, "\n".join(self.said)
        return key.split()

    def print(self, text: str, style: str = "") -> None:
        """Hears; what stands in brackets is a question."""
        self.said.append(text)
        if text.startswith("["):
            self._asked_at = self._hands.now()
            words = next((words for words in self._deeds if words in text), None)
            self._deed = self._deeds.pop(words)() if words else self._hands.answer(text)

    def show(self, lines: object) -> None:
        """Sees what is up to date."""
        assert isinstance(lines, list)
        self.seen.append(lines[0][0])
