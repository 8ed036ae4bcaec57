"""What a task measures of a vector, and how users are told of it. The rooms above know metrics by this file alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

LOWER, HIGHER = "lower", "higher"  # which values of a metric are better


@dataclass(frozen=True)
class Metric:
    """A figure of merit; `name`: its name in the record's rows.

    `title`: its name for users; `short`: the title where there is little room. `unit`: of a value, such as %; `format`:
    how a value is written, as format() takes it. `direction`: which values are better. `primary`: whether runs are
    judged by it. Raises ValueError for an invalid format or direction.
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
        """1 or -1: of two values times this sign, the lower one is better."""
        return 1 if self.direction == LOWER else -1

    @property
    def lowest(self) -> str:
        """The word for the best of several values: lowest or highest."""
        return "lowest" if self.direction == LOWER else "highest"

    @property
    def best(self) -> Metric:
        """The metric that is the best value of this one so far."""
        said = f"The {self.lowest} {self.title} of the center so far."
        return replace(
            self, name=f"best_{self.name}", title=f"best {self.title}", short="best", primary=False, description=said
        )

    @property
    def held_out(self) -> str:
        """The name of the same metric on samples held out of training, for a metric of the test set."""
        return self.name.replace("test_", "validation_", 1)

    @property
    def labelled(self) -> str:
        """The title with the unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def shown(self, value: float | None, without: str = "-") -> str:
        """Returns a value with its unit, as text; `without`, where there is no value."""
        return without if value is None else self.with_unit(format(value, self.format))

    def with_unit(self, text: str) -> str:
        return f"{text} {self.unit}" if self.unit else text

    def reached(self, value: float | None, level: float) -> bool:
        """Returns whether the value is as good as `level`, or better."""
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
    """The metrics that a task declares, and train_loss, which every problem measures. Any other figure is shown under
    its own name.
    """

    def __init__(self, declared: Iterable[Metric]):
        self.declared = tuple(declared)
        self.primary = next((metric for metric in self.declared if metric.primary), None)
        derived = [self.primary.best, SECONDS_TO_BEST] if self.primary is not None else []
        self._named = {metric.name: metric for metric in (TRAIN_LOSS, *self.declared, *derived)}

    @classmethod
    def read(cls, said: Sequence[dict[str, Any]]) -> Metrics:
        """Returns metrics from what `told` returns. Raises ValueError or TypeError for anything else."""
        known = {field.name for field in fields(Metric)}
        return cls(Metric(**{key: value for key, value in one.items() if key in known}) for one in said)

    def told(self) -> list[dict[str, Any]]:
        """Returns the declared metrics as plain values, for summary.json."""
        return [asdict(metric) for metric in self.declared]

    def __getitem__(self, name: str) -> Metric:
        return self._named.get(name) or Metric(name)

    @property
    def declared_names(self) -> set[str]:
        return {metric.name for metric in self.declared}

    def named(self, name: str) -> str:
        """Returns the name in the record's rows: for `rmse` it is test_rmse, where that is declared."""
        return f"test_{name}" if name not in self._named and f"test_{name}" in self._named else name

    def known(self) -> list[Metric]:
        """Returns all metrics with a description: train_loss, the declared ones, and two that follow from the primary
        one: its best value, and the seconds to it.
        """
        return list(self._named.values())

    def together_with(self, other: Metrics) -> Metrics:
        """Returns the metrics of both; of two with one name, this object's."""
        if other.declared == self.declared:
            return self
        return Metrics({metric.name: metric for metric in (*other.declared, *self.declared)}.values())

    def errors(self, measured: Iterable[str]) -> list[Metric]:
        """Returns the declared metrics that were `measured` and are no losses, in their order."""
        names = set(measured)
        return [metric for metric in self.declared if metric.name in names and not metric.name.endswith("_loss")]
