"""Whose turn it is: one computation at a time, and the next one for the visitor who has waited longest since the last.

A drawing takes a turn for each of its frames, so that a long one does not hold up a short one, and a visitor with several
drawings gets no more of the machine than one with a single drawing.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from threading import Condition

AT_ONCE, IN_ALL = 2, 40
"""Drawings of one visitor, and of all, that are under way at the same time; more are refused."""


class Busy(ValueError):
    """There is no place for another drawing now."""


class Turns:
    """A lock that visitors hold in turn, and places for the drawings that take turns."""

    def __init__(self, at_once: int = AT_ONCE, in_all: int = IN_ALL) -> None:
        self.at_once, self.in_all = at_once, in_all
        self.condition, self.clock = Condition(), count(1)
        self.drawings: Counter[str] = Counter()
        """of each visitor, under way"""
        self.served: dict[str, int] = {}
        """when each visitor's last turn was, among those with a drawing under way"""
        self.waiting: list[tuple[int, str]] = []
        """since when, and who"""
        self.taken = False

    @contextmanager
    def place(self, visitor: str) -> Iterator[None]:
        """Within the block a visitor's drawing is under way; Busy where it would be one too many."""
        with self.condition:
            if self.drawings[visitor] >= self.at_once:
                raise Busy(f"{self.at_once} of your drawings are under way; wait for one of them, or stop it")
            if self.drawings.total() >= self.in_all:
                raise Busy(f"{self.in_all} drawings are under way here; try again in a moment")
            self.drawings[visitor] += 1
        try:
            yield
        finally:
            with self.condition:
                self.drawings[visitor] -= 1
                if not self.drawings[visitor]:
                    del self.drawings[visitor]
                    self.served.pop(visitor, None)

    @contextmanager
    def turn(self, visitor: str) -> Iterator[None]:
        """Wait for this visitor's turn, and hold it within the block."""
        with self.condition:
            me = next(self.clock), visitor
            self.waiting.append(me)
            self.condition.wait_for(lambda: not self.taken and self.first() == me)
            self.waiting.remove(me)
            self.taken, self.served[visitor] = True, next(self.clock)
        try:
            yield
        finally:
            with self.condition:
                self.taken = False
                self.condition.notify_all()

    def first(self) -> tuple[int, str]:
        """Whose turn it is among those who wait: whoever was served longest ago, or never; then who came first."""
        return min(self.waiting, key=lambda who: (self.served.get(who[1], 0), who[0]))
