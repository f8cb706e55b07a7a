"""What judging costs: prices from a file the user can edit, an estimate before, and a limit that holds on the way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from prlhf.errors import PrlhfError, one_line
from prlhf.judge.answers import Answer
from prlhf.judge.questions import Message
from prlhf.parse import yaml_value

CHARACTERS = 4  # a token, roughly, in English text
OVERHEAD = 8  # tokens a message takes beside its text
MILLION = 1_000_000


class Price(BaseModel):
    """US dollars for a million tokens."""

    model_config = ConfigDict(extra="forbid")
    input: float = Field(ge=0)
    output: float = Field(ge=0)

    def of(self, prompt_tokens: float, completion_tokens: float) -> float:
        """The price in dollars of so many tokens."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / MILLION

    def times(self, factor: float) -> Price:
        """This price times `factor`."""
        return Price(input=self.input * factor, output=self.output * factor)


class Prices(BaseModel):
    """A price file: see prices.yaml."""

    model_config = ConfigDict(extra="forbid")
    batch: float = Field(0.5, ge=0)
    models: dict[str, Price]


def price_of(model: str, file: Path | None, batch: bool) -> Price | None:
    """The model's price, or None where the file does not know the model."""
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
    """The error of a limit in dollars on a model whose price is not known."""
    return PrlhfError(
        f"--max-cost needs the price of '{model}', which {file or 'the shipped price file'} does not have",
        "copy prlhf/judge/prices.yaml, add it, and give --prices FILE",
    )


def tokens_in(messages: Iterable[Message]) -> int:
    """An estimate of a prompt's tokens; the server's own count is known only afterwards."""
    return sum(len(message["content"]) // CHARACTERS + OVERHEAD for message in messages)


@dataclass
class Budget:
    """What may still be asked. `take` before a call, `settle` after it; in between it counts at its estimate."""

    price: Price | None
    max_cost: float | None
    max_calls: int | None
    calls: int = 0
    spent: float = 0.0
    reserved: float = 0.0

    def take(self, estimate: float) -> bool:
        """Whether another call of `estimate` dollars stays within the limits; it is counted then."""
        if self.max_calls is not None and self.calls >= self.max_calls:
            return False
        if self.max_cost is not None and self.spent + self.reserved + estimate > self.max_cost:
            return False
        self.calls += 1
        self.reserved += estimate
        return True

    def settle(self, estimate: float, answer: Answer | None) -> None:
        """Replace a call's reserved `estimate` by what its answer cost (None: it cost nothing)."""
        self.reserved -= estimate
        if answer is not None and self.price is not None:
            self.spent += self.price.of(answer.prompt_tokens, answer.completion_tokens)

    @property
    def limit(self) -> str:
        """The limit that was reached, as the flag that raises it."""
        reached = self.max_calls is not None and self.calls >= self.max_calls
        return f"--max-calls {self.max_calls}" if reached else f"--max-cost {self.max_cost}"
