"""`prlhf adapt --ask` as a function: ask a user which of two responses is better, and learn from the answers.

Each question is the pair of the pool that is expected to tell most (questions.py). The model reads the pool once,
before the first question; from then on the margins are linear, and a new posterior takes no pass. At the end the user
is learned from the file of answers as `prlhf adapt --choices` does.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from prlhf.adapt.answers import Answers, open_answers
from prlhf.adapt.apart import uncertainty
from prlhf.adapt.learn import Posterior
from prlhf.adapt.material import Material, read_material
from prlhf.adapt.pool import pair_of
from prlhf.adapt.questions import best_question, posterior_from
from prlhf.adapt.run import adapt_run, check_new
from prlhf.config import AdaptConfig
from prlhf.dataset import Text
from prlhf.errors import Interrupted, PrlhfError, nearest
from prlhf.model.rewards import mean
from prlhf.progress import SILENT, Progress

Answer = Literal["left", "right", "tie", "skip", "undo", "stop"]
Ended = Literal["sure", "no questions left", "stopped"]


@dataclass(frozen=True)
class PairQuestion:
    """Two responses to a prompt, of which the user says which is better.

    `number`: from 1; `information`: what the answer is expected to tell, in nats; `uncertainty`: what is left to learn
    of the user, from 1 to 0; `undo`: whether there is something to take back.
    """

    number: int
    prompt: Text
    left: Text
    right: Text
    information: float
    uncertainty: float
    undo: bool


Answerer = Callable[[PairQuestion], Answer]


def ask_user(run: Path, config: AdaptConfig, answer: Answerer, progress: Progress = SILENT) -> dict[str, Any]:
    """Ask `config.user` until `answer` stops, no question is worth it, or none is left; then adapt `run`.

    Each answer is in `config.answers` before the next question; a tie is a choice each way. What is skipped comes no
    more in this session.

    Returns:
        The summary of `adapt_run`, which has no users if nothing is known of the user, and what the session was like.

    Raises:
        PrlhfError: a setting is missing, the run or a file cannot be used, or a pair does not fit.
        Interrupted: Ctrl-C; the answers are kept.
    """
    if config.user is None:
        raise PrlhfError("nobody is named to be asked", "add --user")
    if config.out is not None:
        check_new(config.out, run)
    with open_answers(config.answers, progress) as answers:
        material = read_material(run, config, config.user, answers, progress)
        session = _Session(material, config.user, config, answers)
        try:
            said = session.hold(answer)
        except KeyboardInterrupt:
            raise Interrupted(f"the answers are kept in {config.answers}; the same command continues") from None
        anything = session.known_choices()
    if not anything:
        return {"run": str(run), "users": [], "choices": 0, "passes": 0, "seconds": {}} | said
    learned = config.model_copy(update={"ask": False, "choices": config.answers, "columns": {}})
    return adapt_run(run, learned, progress) | said


def simulated(chance: Callable[[Text, Text, Text], float], seed: int = 0) -> Answerer:
    """Somebody made up. `chance(prompt, left, right)`: the probability that the left response is better."""
    drawn = random.Random(seed)

    def answer(question: PairQuestion) -> Answer:
        return "left" if drawn.random() < chance(question.prompt, question.left, question.right) else "right"

    return answer


@dataclass(frozen=True)
class _Given:
    """What was said to a question. `signs`: 1 if its first response is better, -1 if the second is; none if skipped."""

    number: int
    signs: tuple[int, ...]


@dataclass
class _Session:
    """Questions and answers, in memory and on disk."""

    material: Material
    user: str
    config: AdaptConfig
    answers: Answers
    given: list[_Given] = field(default_factory=list)

    def hold(self, answer: Answerer) -> dict[str, Any]:
        """Ask until it ends; returns what the session was like."""
        of = self.material
        while True:
            closed = {one.number for one in self.given}
            left = [number for number in range(len(of.rows)) if number not in closed]
            known = posterior_from(of.margins, of.slopes, self.known_choices())
            best = best_question(of.margins, of.slopes, known, left)
            if best is None or best[1] < self.config.sure:
                return self._summary(known, best, "sure" if best else "no questions left")
            question, first = self._question(best, known)
            reply = answer(question)
            if reply not in get_args(Answer):
                raise PrlhfError(f"the answer '{reply}' is not known", nearest(reply, get_args(Answer)))
            if reply == "stop":
                return self._summary(known, best, "stopped")
            if reply == "undo":
                self._undo()
            else:
                self._keep(best[0], reply, first)

    def known_choices(self) -> list[tuple[int, int]]:
        """The numbers of all pairs that were chosen from, each with its sign."""
        return [*self.material.choices, *((one.number, sign) for one in self.given for sign in one.signs)]

    def _question(self, best: tuple[int, float], known: Posterior) -> tuple[PairQuestion, Answer]:
        """The question, and where its first response stands, by seed and pair."""
        number, told = best
        row = self.material.rows[number]
        on_left = random.Random(f"{self.config.seed}-{pair_of(row).hex()}").random() < 0.5
        left, right = (row.chosen, row.rejected) if on_left else (row.rejected, row.chosen)
        asked = sum(1 for one in self.given if one.signs)
        question = PairQuestion(asked + 1, row.prompt, left, right, told, uncertainty(known).item(), bool(self.given))
        return question, "left" if on_left else "right"

    def _keep(self, number: int, reply: Answer, first: Answer) -> None:
        row = self.material.rows[number]
        row = replace(row, user_id=self.user, user_text=self.material.user_text)
        swapped = replace(row, chosen=row.rejected, rejected=row.chosen)
        signs = {"tie": (1, -1), "skip": (), first: (1,)}.get(reply, (-1,))
        if signs:
            self.answers.add([row if sign > 0 else swapped for sign in signs])
        self.given.append(_Given(number, signs))

    def _undo(self) -> None:
        if self.given and self.given.pop().signs:
            self.answers.undo()

    def _summary(self, known: Posterior, best: tuple[int, float] | None, ended: Ended) -> dict[str, Any]:
        of, choices = self.material, self.known_choices()
        now = of.margins + of.slopes @ known.modes[0]
        clear = [(number, sign) for number, sign in choices if (number, -sign) not in choices]
        right = [[float(margins[number] * sign > 0) for number, sign in clear] for margins in (now, of.margins)]
        pairs = len(of.rows)
        return {
            "answers": str(self.config.answers),
            "asked": sum(1 for one in self.given if one.signs),
            "ended": ended,
            "information": best[1] if best else None,
            "pairs": pairs,
            "agrees": mean(right[0]),
            "agreed_before": mean(right[1]),
            "changed": mean((now[:pairs] * of.margins[:pairs] < 0).double().tolist()),
        }
