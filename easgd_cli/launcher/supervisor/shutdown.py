"""The end of training: workers are told to stop, and parties that do not answer are killed."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable

from easgd_cli.launcher.journal.journal import Journal
from easgd_cli.launcher.supervisor.commands import Command, GiveUpWorker, Kill, Stop, Wake
from easgd_cli.launcher.supervisor.course import Patience
from easgd_cli.launcher.supervisor.members import Member, Members
from easgd_cli.launcher.supervisor.parties import MASTER
from easgd_cli.launcher.supervisor.stalls import Stalls


class Shutdown:
    """Tells workers to stop, and kills parties that do not answer in time. `patience`: None where no party can be
    silent; `recovers`: whether another master goes on with the center of one that is killed.

    A silent master is killed early enough for another to end the run in its place. `hopeless`: whether that one is
    silent, too, or there can be none.
    """

    def __init__(
        self, journal: Journal, members: Members, stalls: Stalls, ask: Callable[[Command], None],
        patience: Patience | None, recovers: bool,
    ):  # fmt: skip
        self._journal, self._members, self._ask, self._patience = journal, members, ask, patience
        self._stalls, self._recovers = stalls, recovers
        self._since: float | None = None
        self._master_killed: float | None = None  # the second at which the master was killed
        self.hopeless = False

    @property
    def begun(self) -> bool:
        return self._since is not None

    @property
    def master_killed(self) -> bool:
        return self._master_killed is not None

    def begin(self, now: float) -> None:
        """Tells the workers that train to stop; only the first call does anything."""
        if self._since is None:
            self._since = now
            for worker in self._members.away:  # a worker that came back would only end
                self._members[worker].away = False
                self._ask(Kill(worker))
                self._ask(GiveUpWorker(worker))
            if live := self._members.live:
                self._ask(Stop(live))

    def interrupted(self, number: int, now: float, began: bool) -> bool:
        """Ends the run after a signal; `began`: whether training has begun. Returns whether the run is over at once."""
        name = signal.Signals(number).name
        if self._journal.signal is not None:
            again = number == signal.SIGINT  # a closing terminal or a scheduler may send others several times
            if again:
                self._journal.note(f"{name} again: ending at once, without a checkpoint of this moment")
            return again
        self._journal.interrupted(number)
        if not began:
            return True
        if self._patience is not None:
            more = "once more" if number == signal.SIGINT else "Ctrl-C"
            self._journal.note(f"{name}: workers finish their step, then a checkpoint is written; {more} ends at once")
            self._ask(Wake())
        self.begin(now)
        return False

    def keep_time(self, now: float, awaited: Callable[[Member], bool], master_awaited: bool) -> None:
        """Kills parties that have not answered within their time: the end of a run must not wait for ever."""
        if self._patience is None or self._since is None:
            return
        waited = now - self._since
        patience = self._patience.interrupted if self._journal.signal is not None else self._patience.usual
        if master_awaited:
            self._look_at_master(now, waited, patience)
        if self.hopeless or self._blames_master(now, patience):
            return
        for i, m in self._members.items():
            if waited > patience and awaited(m) and not m.silent:
                self._journal.note(
                    f"worker {i} has not finished its step within {patience:g} s; the run ends without it"
                )
                m.silent = True
                self._ask(Kill(i))

    def _look_at_master(self, now: float, waited: float, patience: float) -> None:
        """Kills a master that does not answer, or gives the run up. A master that is known to stand still gets less
        time than one that may be busy with the last worker.
        """
        silent, done = MASTER in self._stalls, not self._members.live
        if self._master_killed is None and self._recovers:
            due = patience / 2 if silent else patience * 7 / 6 if done else math.inf
            if waited > due:
                self._journal.note(
                    f"the master has said nothing for {due:g} s; it is ended, and another goes on with its center"
                )
                self._master_killed = now
                self._ask(Kill(MASTER))
            return
        since = now - self._master_killed if self._master_killed is not None else waited
        due = patience if silent and not self._recovers else patience * 4 / 3
        if waited > due and since > patience / 3 and (silent or done):
            self._journal.note(f"the master has said nothing for {due:g} s; the run ends without it")
            self.hopeless = True

    def _blames_master(self, now: float, patience: float) -> bool:
        """Returns whether the workers may be waiting for the master: it stands still, or has only just begun."""
        begins = self._master_killed is not None and now - self._master_killed <= patience / 3
        return begins or MASTER in self._stalls
