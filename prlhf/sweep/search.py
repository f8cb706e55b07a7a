"""The search for points: all points of a grid, independent random ones, or Optuna's choice from the trials so far.

The same seed draws the same points, whatever was drawn or finished before: point n of a random search depends only on
the seed and n, and Optuna's sampler is seeded with (seed, n) for each point and gets the history of the trials.
"""

from __future__ import annotations

import random
import warnings
from typing import Any

from typing_extensions import override

from prlhf.config import SweepConfig
from prlhf.errors import PrlhfError
from prlhf.recipes import Sections
from prlhf.sweep.settings import Settings, all_settings, settings_at
from prlhf.sweep.space import Point, Range, Space, contains, corners, draw, grid, size
from prlhf.sweep.trials import Trial, metrics_of, new_trial, next_number, planned_trials

ATTEMPTS = 1000  # to draw a new point, before the space counts as used up
STARTUP = 10  # random trials before Optuna models the space; a third of all if there are fewer than 30


def search_kind(space: Space, sweep: SweepConfig) -> str:
    """`grid`, `random` or `optuna`, by `search` and `trials`. Raises PrlhfError if the two contradict each other."""
    search = sweep.search or ("random" if sweep.trials else "grid")
    if search == "grid" and sweep.trials:
        raise PrlhfError(f"trials = {sweep.trials} of a grid", "leave --trials out, or add --search random")
    if search == "grid":
        grid(space)  # raises for ranges
    elif not sweep.trials:
        raise PrlhfError(f"search = {search} without a number of trials", "add --trials N")
    return search


def search_for(space: Space, sections: Sections, sweep: SweepConfig, known: list[Trial], concurrent: bool) -> Search:
    """The search of the sweep, with the trials of its earlier runs."""
    name = search_kind(space, sweep)
    if name == "optuna":
        return OptunaSearch(space, sections, sweep, known, concurrent)
    return ListedSearch(name, space, sections, sweep, known)


def _points(space: Space, sections: Sections, sweep: SweepConfig) -> list[Point]:
    if not sweep.trials or sweep.trials >= size(space):
        return grid(_listed(space))
    found: dict[str, Point] = {}  # by settings, so that no point is run twice
    for number in range(sweep.trials):
        for attempt in range(ATTEMPTS):
            point = draw(space, sweep.seed, number, attempt)
            key = settings_at(point, sections, sweep).model_dump_json()
            if key not in found:
                found[key] = point
                break
    return list(found.values())


def _listed(space: Space) -> Space:
    """Ranges of whole numbers as lists, so that a space of which all points are run has a grid."""

    def values(axis: Range) -> list[float]:
        return list(range(int(axis.low), int(axis.high) + 1)) if axis.whole else [axis.low]

    return {key: values(axis) if isinstance(axis, Range) else axis for key, axis in space.items()}


class Search:
    """The trials in the order in which they are run: `next` returns one, and `ended` receives its result."""

    trials: list[Trial]  # of this search: known ones and new ones
    total: int

    def __init__(self, name: str, space: Space, sections: Sections, sweep: SweepConfig) -> None:
        self.name, self.space, self.sections, self.sweep = name, space, sections, sweep
        self._waiting: list[Trial] = []

    def settings_of(self, trial: Trial) -> Settings:
        """All settings of `trial`."""
        return settings_at(trial.point, self.sections, self.sweep)

    def next(self) -> Trial | None:
        """The next trial; None where there is none left."""
        return self._waiting.pop(0) if self._waiting else None

    def ended(self, trial: Trial) -> None:
        """Use the result of a trial that ended to choose the next ones."""

    def upcoming(self) -> list[Settings]:
        """The settings of the trials to run; if they are not known yet, settings that represent them."""
        return [self.settings_of(trial) for trial in self._waiting]


class ListedSearch(Search):
    """A search whose points are all known before the first one is run."""

    def __init__(self, name: str, space: Space, sections: Sections, sweep: SweepConfig, known: list[Trial]) -> None:
        super().__init__(name, space, sections, sweep)
        points = _points(space, sections, sweep)
        self.trials = planned_trials(all_settings(points, sections, sweep), points, known)
        self._waiting = [trial for trial in self.trials if not trial.finished]
        self.total = len(self.trials)


class OptunaSearch(Search):
    """Optuna's search: after the first few, each point is drawn where the trials so far promise a better metric."""

    def __init__(
        self, space: Space, sections: Sections, sweep: SweepConfig, known: list[Trial], concurrent: bool
    ) -> None:
        super().__init__("optuna", space, sections, sweep)
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._concurrent = optuna, concurrent
        self._distributions = {key: _distribution(optuna, axis) for key, axis in space.items()}
        self._study = optuna.create_study(direction="maximize" if sweep.mode == "max" else "minimize")
        self._of_optuna: dict[str, Any] = {}  # name of a trial -> Optuna's trial
        self.trials = [trial for trial in known if self._is_ours(trial)]
        self.total = max(len(self.trials), int(min(sweep.trials or 0, size(space))))
        self._number = next_number(known)
        for trial in self.trials:
            self._of_optuna[trial.name] = self._fixed(trial.point)
            if trial.finished:
                self.ended(trial)
            else:
                self._waiting.append(trial)

    def _is_ours(self, trial: Trial) -> bool:
        """Whether the trial has these settings and is in this space; the folder may hold trials of others."""
        if trial.point.keys() != self.space.keys():
            return False
        inside = all(contains(self.space[key], value) for key, value in trial.point.items())
        return inside and trial.config == new_trial(0, trial.point, self.settings_of(trial)).config

    @override
    def next(self) -> Trial | None:
        if self._waiting or len(self.trials) >= self.total:
            return super().next()
        asked, point = self._new_point()
        trial = new_trial(self._number, point, settings_at(point, self.sections, self.sweep))
        self._number += 1
        self._of_optuna[trial.name] = asked
        self.trials.append(trial)
        return trial

    def _new_point(self) -> tuple[Any, Point]:
        """Optuna's next point, or a random one if Optuna repeats a point."""
        number = len(self.trials)
        seed = random.Random(f"{self.sweep.seed} {number}").getrandbits(32)
        startup = min(STARTUP, max(2, self.total // 3))
        if number >= startup:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Optuna warns that constant_liar is experimental
                sampler = self._optuna.samplers.TPESampler(
                    seed=seed, n_startup_trials=startup, constant_liar=self._concurrent
                )
            self._study.sampler = sampler
            asked = self._study.ask(self._distributions)
            point = dict(asked.params)
            if not self._is_known(point):
                return asked, point
            self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
        for attempt in range(ATTEMPTS):
            point = draw(self.space, self.sweep.seed, number, attempt)
            if not self._is_known(point):
                break
        return self._fixed(point), point

    def _is_known(self, point: Point) -> bool:
        return any(trial.point == point for trial in self.trials)

    def _fixed(self, point: Point) -> Any:
        """Optuna's trial at a given point."""
        self._study.enqueue_trial(point)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return self._study.ask(self._distributions)

    @override
    def ended(self, trial: Trial) -> None:
        """Report the trial to Optuna: with its value if done, as pruned at its last step if stopped, else as failed."""
        asked, states = self._of_optuna.pop(trial.name), self._optuna.trial.TrialState
        value = metrics_of(trial.result).get(self.sweep.metric)
        if trial.status == "done" and value is not None:
            self._study.tell(asked, value)
            return
        for step, seen in trial.history:
            asked.report(seen, step)
        self._study.tell(asked, state=states.PRUNED if trial.status == "stopped" else states.FAIL)

    @override
    def upcoming(self) -> list[Settings]:
        if len(self.trials) >= self.total:
            return super().upcoming()
        return [settings_at(point, self.sections, self.sweep) for point in corners(self.space)]


def _distribution(optuna: Any, axis: list[Any] | Range) -> Any:
    kinds = optuna.distributions
    if isinstance(axis, list):
        return kinds.CategoricalDistribution(axis)
    if axis.whole:
        return kinds.IntDistribution(int(axis.low), int(axis.high), log=axis.log)
    return kinds.FloatDistribution(axis.low, axis.high, log=axis.log)
