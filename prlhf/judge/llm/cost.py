"""The cost of judging: prices from a file that users can edit, estimates, and the limits of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from prlhf.dataset import Message
from prlhf.errors import PrlhfError, one_line
from prlhf.judge.llm.cache import Answer
from prlhf.parse import yaml_value

CHARACTERS = 4  # of English text per token, roughly
OVERHEAD = 8  # tokens of a message besides its text
MILLION = 1_000_000


class Price(BaseModel):
    """US dollars per million tokens."""

    model_config = ConfigDict(extra="forbid")
    input: float = Field(ge=0)
    output: float = Field(ge=0)

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """The cost in US dollars of this many tokens."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / MILLION

    def times(self, factor: float) -> Price:
        """This price times `factor`."""
        return Price(input=self.input * factor, output=self.output * factor)


class Prices(BaseModel):
    """A price file; prices.yaml is the one that comes with prlhf."""

    model_config = ConfigDict(extra="forbid")
    batch: float = Field(0.5, ge=0)
    models: dict[str, Price]


def price_of(model: str, file: Path | None, batch: bool) -> Price | None:
    """The model's price in `file` (default: prices.yaml); None if the model is not in it.

    Raises PrlhfError if the file cannot be read.
    """
    packed = resources.files("prlhf.judge").joinpath("prices.yaml")
    try:
        source = file.read_text(encoding="utf-8") if file else packed.read_text(encoding="utf-8")
        prices = Prices.model_validate(yaml_value(source))
    except (OSError, ValueError) as error:
        raise PrlhfError(
            f"cannot read the prices in {file}: {one_line(error)}", "write `models: {NAME: {input: …, output: …}}`"
        ) from error
    price = prices.models.get(model)
    return price.times(prices.batch) if price and batch else price


def no_price(model: str, file: Path | None) -> PrlhfError:
    """The error for --max-cost with a model whose price is not known."""
    return PrlhfError(
        f"--max-cost needs the price of '{model}', which {file or 'the shipped price file'} does not have",
        "copy prlhf/judge/prices.yaml, add the model, and give --prices FILE",
    )


def tokens_in(messages: Iterable[Message]) -> int:
    """An estimate of the number of tokens of a prompt; the server's count is known only after the call."""
    return sum(len(message["content"]) // CHARACTERS + OVERHEAD for message in messages)


@dataclass
class Budget:
    """The limits of a run, and what it has spent. Call `take` before a request and `settle` after it."""

    price: Price | None
    max_cost: float | None  # US dollars
    max_calls: int | None
    calls: int = 0
    spent: float = 0.0  # US dollars
    reserved: float = 0.0  # estimates of the requests under way, US dollars

    def take(self, estimate: float) -> bool:
        """Count a request of `estimate` dollars; False, and not counted, if it would exceed a limit."""
        if self.max_calls is not None and self.calls >= self.max_calls:
            return False
        if self.max_cost is not None and self.spent + self.reserved + estimate > self.max_cost:
            return False
        self.calls += 1
        self.reserved += estimate
        return True

    def settle(self, estimate: float, answer: Answer | None) -> None:
        """Replace the reserved `estimate` by the cost of the answer (None: no answer, no cost)."""
        self.reserved -= estimate
        if answer is not None and self.price is not None:
            self.spent += self.price.of(answer.prompt_tokens, answer.completion_tokens)

    @property
    def limit(self) -> str:
        """The limit that was reached, as an option of the command."""
        reached = self.max_calls is not None and self.calls >= self.max_calls
        return f"--max-calls {self.max_calls}" if reached else f"--max-cost {self.max_cost}"
