"""What a task measures of a vector, and how that is spoken of. Above the problems metrics are known by this alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

LOWER, HIGHER = "lower", "higher"  # is better


@dataclass(frozen=True)
class Metric:
    """A figure of merit, by its `name` in the record's rows.

    `title`: what it is called; `short`: the same where there is little room. `unit`: of a value, such as %; `format`:
    its digits, as format() takes them. `direction`: which values are better. `primary`: that runs are judged by it.
    Raises ValueError for a format or a direction that is none.
    """

    name: str
    title: str = ""
    short: str = ""
    unit: str = ""
    format: str = ".4g"
    direction: str = LOWER
    primary: bool = False
    description: str = "What the problem's own evaluation says under this name."

    def __post_init__(self) -> None:
        if self.direction not in (LOWER, HIGHER):
            raise ValueError(f"the direction of {self.name} is {self.direction}; it is {LOWER} or {HIGHER}")
        format(1.0, self.format)
        object.__setattr__(self, "title", self.title or self.name.replace("_", " "))
        object.__setattr__(self, "short", self.short or self.title)

    @property
    def sign(self) -> int:
        """1 or -1: a value times this is the lower the better."""
        return 1 if self.direction == LOWER else -1

    @property
    def lowest(self) -> str:
        """The word for the best of several."""
        return "lowest" if self.direction == LOWER else "highest"

    @property
    def best(self) -> Metric:
        """The best value so far."""
        said = f"The {self.lowest} {self.title} of the center so far."
        return replace(
            self, name=f"best_{self.name}", title=f"best {self.title}", short="best", primary=False, description=said
        )

    @property
    def held_out(self) -> str:
        """The name of the same metric of what is held out of training, for one of the test set."""
        return self.name.replace("test_", "validation_", 1)

    @property
    def labelled(self) -> str:
        """Its title with its unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def shown(self, value: float | None, without: str = "-") -> str:
        """A value with its unit; `without` stands for none that is finite."""
        return without if value is None else self.with_unit(format(value, self.format))

    def with_unit(self, text: str) -> str:
        return f"{text} {self.unit}" if self.unit else text

    def reached(self, value: float | None, level: float) -> bool:
        """Whether the value is as good as `level`."""
        return value is not None and self.sign * value <= self.sign * level


TRAIN_LOSS = Metric(
    "train_loss", title="training loss", short="train loss", format=".4f",
    description="The objective at the center without the l2 term: on a data set the mean loss of a fixed subset of the "
    "training samples.",
)  # fmt: skip
SECONDS_TO_BEST = Metric(
    "seconds_to_best",
    format=".1f",
    unit="s",
    description="Training seconds after which the best value so far was first reached.",
)


class Metrics:
    """Those that a task declares, and train_loss, which every problem measures. Others are called by their name."""

    def __init__(self, declared: Iterable[Metric]):
        self.declared = tuple(declared)
        self.primary = next((metric for metric in self.declared if metric.primary), None)
        derived = [self.primary.best, SECONDS_TO_BEST] if self.primary is not None else []
        self._named = {metric.name: metric for metric in (TRAIN_LOSS, *self.declared, *derived)}

    @classmethod
    def read(cls, said: Sequence[dict[str, Any]]) -> Metrics:
        """From what `told` gives. Raises ValueError or TypeError for anything else."""
        known = {field.name for field in fields(Metric)}
        return cls(Metric(**{key: value for key, value in one.items() if key in known}) for one in said)

    def told(self) -> list[dict[str, Any]]:
        """As plain values, for summary.json."""
        return [asdict(metric) for metric in self.declared]

    def __getitem__(self, name: str) -> Metric:
        return self._named.get(name) or Metric(name)

    @property
    def declared_names(self) -> set[str]:
        return {metric.name for metric in self.declared}

    def named(self, name: str) -> str:
        """The name in the rows: of `rmse` test_rmse, where that is declared."""
        return f"test_{name}" if name not in self._named and f"test_{name}" in self._named else name

    def known(self) -> list[Metric]:
        """All that have a description: train_loss, the declared, and what follows from the primary one."""
        return list(self._named.values())

    def together_with(self, other: Metrics) -> Metrics:
        """Those of both."""
        if other.declared == self.declared:
            return self
        return Metrics({metric.name: metric for metric in (*other.declared, *self.declared)}.values())

    def errors(self, measured: Iterable[str]) -> list[Metric]:
        """The declared ones that were measured and are no losses, in their order."""
        names = set(measured)
        return [metric for metric in self.declared if metric.name in names and not metric.name.endswith("_loss")]
