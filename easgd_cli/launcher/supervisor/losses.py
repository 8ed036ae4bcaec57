"""Parties that have died: whether another one is started in their place, and what follows where none is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from easgd_cli.launcher.journal.journal import Journal
from easgd_cli.launcher.supervisor.checkpoints import Checkpoints
from easgd_cli.launcher.supervisor.commands import Command, GiveUpWorker, Kill, StartMaster, StartWorker
from easgd_cli.launcher.supervisor.course import Course, Plan
from easgd_cli.launcher.supervisor.evaluation import LIVES, Evaluation
from easgd_cli.launcher.supervisor.members import Member, Members
from easgd_cli.launcher.supervisor.parties import EVALUATOR, MASTER, Party, title_in_files
from easgd_cli.launcher.supervisor.shutdown import Shutdown
from easgd_cli.record.metrics import worker_name
from easgd_cli.transport.base import NEW


@dataclass
class Lives:
    """Counts a party's deaths: it is started again at most `limit` times in a row without getting further."""

    limit: int
    deaths: int = 0
    reached: float = -1.0  # how far it had got at its last death
    all: int = 0  # how often it has been started again

    def again(self, reached: float) -> bool:
        """Counts a death of the party, which had got as far as `reached`. Returns whether it is started again."""
        self.deaths = 1 if reached > self.reached else self.deaths + 1
        self.reached = reached
        alive = self.deaths <= self.limit
        self.all += alive
        return alive


class Losses:
    """Decides what follows when parties have ended before their time."""

    def __init__(
        self, plan: Plan, course: Course, journal: Journal, members: Members, evaluation: Evaluation,
        checkpoints: Checkpoints, shutdown: Shutdown, ask: Callable[[Command], None],
    ):  # fmt: skip
        self._plan, self._course, self._journal, self._members, self._ask = plan, course, journal, members, ask
        self._evaluation, self._checkpoints, self._shutdown = evaluation, checkpoints, shutdown
        self._lives: dict[Party, Lives] = {
            party: Lives(plan.max_restarts if plan.has_master else 0) for party in (MASTER, *members)
        }
        if not plan.master_returns:
            self._lives[MASTER].limit = 0
        self._rejoins = {worker: Lives(plan.rejoins) for worker in members}

    def _fail(self, reason: str) -> None:
        self._journal.fail(reason)
        self._course.over = True

    def rejoins(self, worker: int, t: int, why: str) -> None:
        """Lets a worker that cannot take its step `t` go back to the center, or ends the run as diverged where the
        worker has done so too often.
        """
        if self._rejoins[worker].again(t):
            self._journal.note(f"worker {worker} goes back to the center at its step {t}: {why}")
            self._checkpoints.lose(worker)
        else:
            self._journal.diverge(f"worker {worker}: {why} at step {t}, as often as max_restarts allows")
            self._shutdown.begin(self._course.now)

    def joined(self, worker: int, t: int) -> None:
        """Notes that a lost worker has the center, and trains again from its clock `t` on."""
        if self._members[worker].away:  # else it has been given up meanwhile
            comes = "has come" if self._members[worker].new else "is back"
            self._members.come_back(worker, t)
            self._journal.note(f"worker {worker} {comes}, at its step {t}")

    def give_up_homeless(self) -> None:
        """In a run that may begin without some workers: gives up those without a host once a worker has finished."""
        members = self._members
        if self._plan.least is not None and members.finals:
            for worker in members.homeless.intersection(members.away):
                members[worker].away = False
                self._ask(Kill(worker))
                self._give_up(worker)

    def returned(self, worker: int, t: int, lost: int, missed: int, master: int | None) -> None:
        """Records that the owner has given the center to a lost worker; see `Supervisor.returned`."""
        alive = self._members.alive + self._members[worker].away  # the worker may not yet have said so itself
        self._journal.system(
            self._course.told, workers_alive=alive, restarts=self.restarts, returned=worker, returned_at=t,
            steps_lost=lost, steps_missed=missed,
            **({} if master is None else {"master": master}),
        )  # fmt: skip

    def awaits(self, member: Member) -> bool:
        """Returns whether a worker still has something to say: its last state or, if it is the owner, the owner's."""
        owns = self._course.final is None and member.lost is None and not self._plan.has_master
        return member.live or owns

    def ended(self, party: Party, how: str, refused: bool, raised: bool, log_file: str, follows: bool) -> None:
        """Decides what follows from a party's death; see `Supervisor.ended`."""
        if refused and not self._journal.reached:  # such as an image that no process can decode
            self._fail(how)
        if party == EVALUATOR:
            self._evaluator(how, raised, log_file)
        elif party == MASTER:
            self._master(how, follows)
        elif self.awaits(self._members[party]) or self._members[party].away:
            self._worker(party, how, refused, log_file)
        else:  # the launcher has the worker's last state, but the master may still wait for the worker
            self._give_up(party)

    def _give_up(self, worker: int) -> None:
        course = self._course
        if self._plan.has_master and course.final is None and not course.over:
            self._ask(GiveUpWorker(worker))

    def _master(self, how: str, follows: bool) -> None:
        course = self._course
        if course.final is not None or course.over:
            return
        if self._journal.reached:
            self.without_master()
        elif course.began and follows and self._lives[MASTER].again(course.told.exchanges):
            if not self._shutdown.master_killed:  # else a note has said so already
                self._journal.note(f"the master died ({how}); another goes on with its center")
            self._journal.system(course.told, workers_alive=self._members.alive, restarts=self.restarts)
            self._checkpoints.give_up()
            self._evaluation.forget_asked()
            finished = any(m.final is not None for m in self._members.values())
            self._ask(StartMaster(stopped=self._shutdown.begun or finished))
        elif self._shutdown.master_killed:
            self.without_master()
        else:
            self._fail(f"the master died ({how}); {self._journal.how_to_go_on()}")

    def without_master(self) -> None:
        """Ends the run without the master's last state: with its result if it has reached its level, else without."""
        self._course.over = True
        self._journal.without_master()

    @property
    def restarts(self) -> int:
        """How often parties have been started again, in all."""
        return sum(lives.all for lives in self._lives.values())

    def _worker(self, worker: int, how: str, refused: bool, log_file: str) -> None:
        course = self._course
        member, members = self._members[worker], self._members
        members.lose(worker, how)
        ending = self._shutdown.begun or (self._plan.in_rounds and members.finals)  # no round comes any more
        member.away = course.began and not refused and not ending and self._lives[worker].again(member.t)
        if not course.began:
            self._fail(f"worker {worker} could not start: {how}; see {log_file}")
        elif member.away:
            self._journal.note(f"worker {worker} died ({how}); it is started again")
            self._journal.system(course.told, workers_alive=members.alive, lost=worker)
            self._checkpoints.lose(worker)
            self._ask(StartWorker(worker, NEW if member.new else member.t))
        elif not members.alive and not members.away and not self._shutdown.begun:
            self._fail(
                f"every worker has died ({'; '.join(sorted(set(members.lost.values())))}); see {log_file}. "
                f"{self._journal.how_to_go_on()}"
            )
        elif not self._plan.has_master and not self._shutdown.begun and not refused:
            self._fail(
                f"worker {worker} died ({how}), and the others cannot go on without it; see {log_file}. "
                f"{self._journal.how_to_go_on()}"
            )
        else:
            if not self._shutdown.begun and not refused:
                goes_on = f"the run goes on with {members.alive} of {len(members)}"
                self._journal.note(
                    f"worker {worker} died ({how}); {goes_on if members.live else 'the others are done'}"
                )
            elif not member.silent and not refused:
                self._journal.note(f"worker {worker} died ({how}) while the run was ending")
            course.over = course.over or not self._plan.has_master  # the owner's last state is lost with this worker
            self._journal.system(course.told, workers_alive=self._members.alive, lost=worker)
            self._checkpoints.lose(worker)
            self._give_up(worker)

    def _evaluator(self, how: str, raised: bool, log_file: str) -> None:
        course = self._course
        follows = self._evaluation.ended()
        if course.over or follows == "unwanted":
            return
        often = f"the evaluator died {LIVES} times in a row ({how}); see {log_file}"
        if not course.began and raised:
            self._fail(f"the evaluator could not start: {how}; see {log_file}")
        elif follows == "too often" and not course.began:
            self._fail(often)
        elif follows == "too often":
            self._journal.fail(often)
            self._journal.note(f"{self._journal.reason}; the workers stop, and a checkpoint is written")
            self._shutdown.begin(course.now)
        else:
            self._journal.note(f"the evaluator died ({how}); starting it again")
            self._evaluation.start()

    # ---------------------------------------------------------------- what is told and kept

    def facts(self) -> dict[str, Any]:
        """Returns what the summary says of losses and restarts."""
        restarts = {title_in_files(party): lives.all for party, lives in self._lives.items() if lives.all}
        rejoins = {worker_name(worker): lives.all for worker, lives in self._rejoins.items() if lives.all}
        lost = {worker_name(i): how for i, how in self._members.lost.items()}
        return {"lost": lost, "restarts": restarts, **({"rejoins": rejoins} if rejoins else {})}

    def state(self) -> dict[str, Any]:
        """Returns how often each party died and came back, as plain numbers."""
        return {
            "lives": {party: vars(lives) | {} for party, lives in self._lives.items()},
            "rejoins": {worker: vars(lives) | {} for worker, lives in self._rejoins.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` has returned."""
        self._lives = {party: Lives(**lives) for party, lives in state["lives"].items()}
        self._rejoins = {worker: Lives(**lives) for worker, lives in state["rejoins"].items()}
