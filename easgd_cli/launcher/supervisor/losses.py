"""Who of a run has been lost, whether another comes in its place, and what follows where none does."""

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
    """How often a party may be started again, `limit` times in a row without getting further between two deaths."""

    limit: int
    deaths: int = 0
    reached: float = -1.0  # at its last death
    all: int = 0  # how often it has been started again

    def again(self, reached: float) -> bool:
        """It has died, having `reached` so much; whether it is started again."""
        self.deaths = 1 if reached > self.reached else self.deaths + 1
        self.reached = reached
        alive = self.deaths <= self.limit
        self.all += alive
        return alive


class Losses:
    """What a supervisor decides of parties that have ended before their time."""

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
        """A worker whose step is not to happen goes back to the center, or the run has diverged."""
        if self._rejoins[worker].again(t):
            self._journal.note(f"worker {worker} goes back to the center at its step {t}: {why}")
            self._checkpoints.lose(worker)
        else:
            self._journal.diverge(f"worker {worker}: {why} at step {t}, as often as max_restarts allows")
            self._shutdown.begin(self._course.now)

    def joined(self, worker: int, t: int) -> None:
        """A worker that was lost has the center, and trains again from its clock `t` on."""
        if self._members[worker].away:  # else it has been given up meanwhile
            comes = "has come" if self._members[worker].new else "is back"
            self._members.come_back(worker, t)
            self._journal.note(f"worker {worker} {comes}, at its step {t}")

    def give_up_homeless(self) -> None:
        """Where training begins without some, nobody without a host is waited for once somebody is done."""
        members = self._members
        if self._plan.least is not None and members.finals:
            for worker in members.homeless.intersection(members.away):
                members[worker].away = False
                self._ask(Kill(worker))
                self._give_up(worker)

    def returned(self, worker: int, t: int, lost: int, missed: int, master: int | None) -> None:
        """The owner has given it the center; see the supervisor's event."""
        alive = self._members.alive + self._members[worker].away  # it may not yet have said so itself
        self._journal.system(
            self._course.told, workers_alive=alive, restarts=self.restarts, returned=worker, returned_at=t,
            steps_lost=lost, steps_missed=missed,
            **({} if master is None else {"master": master}),
        )  # fmt: skip

    def awaits(self, member: Member) -> bool:
        """Whether a worker has something to say yet: its last state or, where it owns what is kept, that."""
        owns = self._course.final is None and member.lost is None and not self._plan.has_master
        return member.live or owns

    def ended(self, party: Party, how: str, refused: bool, raised: bool, log_file: str, follows: bool) -> None:
        """A party has ended before its time; see the supervisor's event."""
        if refused and not self._journal.reached:  # an image that cannot be decoded is missing for all of them
            self._fail(how)
        if party == EVALUATOR:
            self._evaluator(how, raised, log_file)
        elif party == MASTER:
            self._master(how, follows)
        elif self.awaits(self._members[party]) or self._members[party].away:
            self._worker(party, how, refused, log_file)
        else:  # it has said its last, and perhaps not to its master
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
            if not self._shutdown.master_killed:  # else it has been told
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
        """The run has its result, or none."""
        self._course.over = True
        self._journal.without_master()

    @property
    def restarts(self) -> int:
        """How often somebody has been started again."""
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
            course.over = course.over or not self._plan.has_master  # with it went the owner of what is kept at an end
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
        """For the summary."""
        restarts = {title_in_files(party): lives.all for party, lives in self._lives.items() if lives.all}
        rejoins = {worker_name(worker): lives.all for worker, lives in self._rejoins.items() if lives.all}
        lost = {worker_name(i): how for i, how in self._members.lost.items()}
        return {"lost": lost, "restarts": restarts, **({"rejoins": rejoins} if rejoins else {})}

    def state(self) -> dict[str, Any]:
        """How often somebody came back, as plain numbers."""
        return {
            "lives": {party: vars(lives) | {} for party, lives in self._lives.items()},
            "rejoins": {worker: vars(lives) | {} for worker, lives in self._rejoins.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Puts it where it was."""
        self._lives = {party: Lives(**lives) for party, lives in state["lives"].items()}
        self._rejoins = {worker: Lives(**lives) for worker, lives in state["rejoins"].items()}
