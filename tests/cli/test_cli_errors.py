"""Bad input: exit code 2, one line that names the value and what to do, and nothing touched."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import refused_inputs
from cli_files import snapshot

RANGE = "set alpha to a number that is at least 0 and at most 1"

# (command line, every fragment that its error line must hold). {prepared}, {run}, {base}: good ones, from fixtures.
REFUSED: list[tuple[str, list[str]]] = [
    # how the command is written
    ("trian", ["unknown command 'trian'", "did you mean 'train'?"]),
    ("--verison", ["unknown option --verison", "'--version'"]),
    ("train --usermodel cluster", ["unknown option --usermodel", "'--user-model'", "prlhf train --help"]),
    ("train --k", ["'--k' requires an argument"]),
    ("train --k ten", ["--k ten is refused", "valid integer", "prlhf train --help"]),
    ("train --alpha much", ["--alpha much is refused", "valid number"]),
    ("train --user-model clutser", ["user_model = 'clutser' is not known", "did you mean 'cluster'?"]),
    ("train --precision fp16", ["--precision fp16 is not known", "did you mean 'bf16'?"]),
    ("sweep --space alpha=0.5 --mode maximum", ["--mode maximum is not known", "did you mean 'max'?"]),
    ("prep", ["missing argument 'dataset'", "prlhf prep --help"]),
    ("prep demo twice", ["unexpected extra argument", "twice"]),
    ("sweep", ["the sweep has no --space", "--space alpha=0.2,0.5"]),
    # values
    ("train --k 0 --user-model cluster", ["k = 0 is refused: it is out of range", "set k to a whole number"]),
    ("train --alpha 1.7", ["alpha = 1.7 is refused: it is out of range", RANGE]),
    ("train --alpha -0.1", ["alpha = -0.1 is refused: it is out of range", RANGE]),
    ("train --alpha nan", ["alpha = nan is", RANGE]),
    ("train --beta 0", ["beta = 0.0 is refused: it is out of range", "set beta to a number that is above 0"]),
    ("train --beta inf", ["beta = inf is refused: it is of the wrong kind", "above 0"]),
    ("train --user-tokens -1", ["user_tokens = -1 is refused: it is out of range", "at least 0"]),
    ("train --user-tokens 0", ["user_tokens = 0 leaves user_model = individual without", "user_model to uniform"]),
    ("train --loss hinga", ["loss = 'hinga' is not known", "did you mean 'hinge'?"]),
    ("train --loss ipo --objective rm", ["loss = ipo is not used with objective = rm", "set objective to dpo"]),
    ("train --loss ipo --label-smoothing 0.1", ["label_smoothing = 0.1 is not used with loss = ipo", "loss to one of"]),
    ("train --objective rm --beta 9", ["beta = 9.0 is not used with objective = rm", "leave beta out"]),
    ("train --objective sft --alpha 0.5", ["alpha = 0.5 is not used with objective = sft"]),
    ("train --user-model uniform --k 10", ["k = 10 is not used with user_model = uniform", "user_model to cluster"]),
    ("train --user-model individual --set cluster_lr=0.1", ["cluster_lr = 0.1 is not used with user_model"]),
    ("train --full-finetune --set lora_r=4", ["lora_r = 4 is not used with full_finetune = true", "to false"]),
    ("train --objective sft --set user_tokens=4", ["user_tokens = 4 is not used with objective = sft"]),
    ("train --per-user --k 4 --user-model cluster", ["is not used with --per-user", "leave"]),
    ("train --per-user --alpha 0.3", ["alpha = 0.3 is not used with --per-user", "leave alpha out"]),
    ("train --parallel fsdp", ["parallel = fsdp is not used with workers = 0", "add --workers N"]),
    ("train --parallel fsdp --workers 1", ["parallel = fsdp is not used with workers = 1", "N 2 or more"]),
    ("train --max-failures 2", ["max_failures = 2 is not used with workers = 0", "add --workers N"]),
    ("generate {run} --examples 2", ["examples = 2 is not used with baseline = none", "set baseline to in-context"]),
    ("generate {run} --baseline base --users ann", ["users = ann is not used with baseline = base"]),
    ("generate {run} --temperature 0 --top-p 0.9", ["top_p = 0.9 is not used with temperature = 0"]),
    ("generate --baseline chosen --max-new-tokens 9", ["max_new_tokens = 9 is not used with baseline = chosen"]),
    ("generate {run} --ray-address auto", ["ray_address = auto is not used with workers = 0", "add --workers N"]),
    ("sweep --space alpha=0.5 --reduction 2", ["reduction = 2.0 is not used with asha = false", "set asha to true"]),
    ("sweep --space alpha=0.5 --grace 2", ["grace = 2 is not used with asha = false"]),
    ("sweep --space alpha=0.5 --against a.jsonl", ["against = a.jsonl is not used with metric = eval/accuracy_macro"]),
    ("sweep --space alpha=0.5 --seed 3", ["seed = 3 is not used with trials = none", "set trials to a number"]),
    ("sweep --space k=2,3 --set dataset={prepared}", ["k = 2 is not used with user_model = individual"]),
    ("generate {run} --top-p 1.5", ["top_p = 1.5 is refused: it is out of range", "above 0 and at most 1"]),
    ("generate {run} --temperature -1", ["temperature = -1.0 is refused: it is out of range", "at least 0"]),
    ("prep demo --minority 2", ["minority = 2.0 is refused: it is out of range"]),
    ("prep demo --comparisons 0", ["comparisons = 0 is refused: it is out of range", "at least 1"]),
    # --set, --space, --column
    ("train --set alpha", ["'alpha' is not key=value", "--set alpha=0.3"]),
    ("train --set alpha=", ["--set alpha= gives no value"]),
    ("train --set 'alpha=[1'", ["cannot read the value of 'alpha=[1'", "quote it"]),
    ("train --set aplha=0.3", ["unknown key 'aplha' for train", "did you mean 'alpha'?"]),
    ("train --set lora_r=1.5", ["lora_r = 1.5", "set lora_r to a whole number that is at least 1"]),
    ("train --set user_text=maybe", ["user_text = 'maybe'", "set user_text to true or false"]),
    ("train --set user_init=zreo", ["user_init = 'zreo' is not known", "did you mean 'zero'?"]),
    ("sweep --space aplha=0.2,0.5", ["unknown key 'aplha' in --space", "did you mean 'alpha'?"]),
    ("sweep --space alpha", ["'alpha' is not key=value,value", "--space alpha=0.2,0.5"]),
    ("sweep --space alpha=0.9:0.1 --trials 3", ["'alpha=0.9:0.1' is an empty range", "lower end first"]),
    ("sweep --space alpha=0.1:0.9", ["alpha = 0.1:0.9 has no grid", "--trials N"]),
    ("sweep --space alpha=0.5 --search optnua", ["--search optnua is not known", "did you mean 'optuna'?"]),
    ("sweep --resume", ["no recipe at sweep/recipe.yaml"]),
    ("sweep --space alpha=0.5 --set nll=-1 --set dataset={prepared}", ["nll = -1 is refused: it is out of range"]),
    ("sweep --space alpha=0.5,1.5 --set dataset={prepared}", ["alpha = 1.5 is refused: it is out of range", RANGE]),
    ("prep mine.jsonl --column user_id", ["--column user_id is not OURS=THEIRS", "user_id=annotator"]),
    ("prep mine.jsonl --column user=who", ["user"]),
    # recipes
    ("train --recipe dmeo", ["no recipe at dmeo", "did you mean 'demo'?"]),
    ("train --recipe broken.yaml", ["cannot read recipe broken.yaml", "fix the YAML"]),
    ("train --recipe sections.yaml", ["unknown section 'trian'", "did you mean 'train'?"]),
    ("train --recipe list.yaml", ["recipe list.yaml holds no sections"]),
    ("train --recipe empty-section.yaml", ["section 'train' of empty-section.yaml is not a mapping"]),
    ("train --recipe keys.yaml", ["unknown key 'aplha' for train", "did you mean 'alpha'?"]),
    ("train --recipe number.yaml", ["unknown key '3' for train"]),
    ("train --recipe full", ["cannot read recipe full", "directory"]),
    # what is not there, or is something else
    ("prep dmeo", ["unknown data set 'dmeo'", "did you mean 'demo'?"]),
    ("prep nothing/here.jsonl", ["no data at nothing/here.jsonl"]),
    ("prep tldr --source nowhere", ["--source nowhere does not exist", "train.jsonl"]),
    ("prep demo --out full", ["full exists and is not a prepared data set", "--out"]),
    ("prep demo --comparisons 1 --out a-file", ["a-file is a file, not a folder", "--out"]),
    ("prep demo --comparisons 1 --out a-file/below", ["cannot write", "a-file/below", "--out"]),
    ("train --dataset dmeo", ["dmeo is not a prepared data set", "did you mean 'demo'?"]),
    ("train --dataset full", ["full is not a prepared data set", "prlhf prep"]),
    ("train --dataset {prepared} --model {base} --out {run}", ["already holds a run", "--resume", "--out"]),
    ("train --dataset {prepared} --model {base} --out a-file", ["a-file", "--out"]),
    ("train --dataset {prepared} --model nobody/nothing", ["model nobody/nothing is not in the cache", "--model"]),
    ("train --dataset {prepared} --model full", ["full is not a model", "config.json"]),
    ("train --dataset {prepared} --model {base} --device tpu9", ["device 'tpu9' is not known", "auto, cpu or cuda"]),
    ("train --resume --out full", ["full holds no run to resume", "without --resume"]),
    ("train --resume --per-user --out {run}", ["holds no adapters per user", "drop --per-user"]),
    ("train --per-user --objective rm --dataset {prepared}", ["--per-user trains by dpo, not by objective = rm"]),
    ("train --per-user --dataset {prepared} --model full", ["full is not a model", "config.json"]),
    ("train --dataset tldr", ["openai/summarize_from_feedback", "prlhf prep tldr --source FOLDER --out data/tldr"]),
    ("generate nowhere", ["nowhere"]),
    ("generate full", ["full is not a checkpoint", "folder of a finished run"]),
    ("generate {prepared}", ["is not a checkpoint", "folder of a finished run"]),
    ("generate {run} --prompts nothing.jsonl", ["no prompts at nothing.jsonl"]),
    ("generate {run} --prompts broken.jsonl", ["broken.jsonl:1: it is not JSON"]),
    ("generate {run} --prompts empty.txt", ["empty.txt holds no prompt"]),
    ("generate {run} --users an", ["user 'an' is unknown", "did you mean 'ann'"]),
    ("generate {run} --out full", ["full exists and is not a folder of responses", "choose another --out"]),
    ("generate {run} --users unsen", ["user 'unsen' is unknown", "did you mean 'unseen'"]),
    ("generate {run} --prompts judging", ["prompts = judging", "no judging.jsonl", "--prompts own"]),
    ("generate {run} --baseline oracel", ["baseline = 'oracel' is not known", "did you mean 'oracle'?"]),
    ("generate {run} --baseline oracle", ["baseline = oracle", "no user's preference", "--baseline base"]),
    ("generate {run} --baseline in-context --examples 0", ["examples = 0 is refused", "out of range", "at least 1"]),
    ("generate --baseline base --dataset {prepared}", ["no run is named", "--model"]),
    ("generate --dataset {prepared} --model {base}", ["no run is named", "folder of a finished run"]),
    ("generate --baseline chosen", ["no data set is named", "--dataset"]),
    ("generate", ["no data set is named", "folder of a finished run"]),
    ("judge", ["0 response files given", "give two"]),
    ("judge a.jsonl", ["1 response files given", "give two"]),
    ("judge a.jsonl nothing.jsonl --judge rule:longer", ["nothing.jsonl"]),
    ("judge broken.jsonl broken.jsonl --judge rule:longer", ["broken.jsonl:1"]),
    ("judge a.jsonl a.jsonl --judge rule:shortr", ["rule:shortr", "did you mean 'rule:shorter'"]),
    ("judge a.jsonl a.jsonl --judge reward:nowhere", ["nowhere"]),
    ("judge a.jsonl a.jsonl --out full", ["full exists and is not a judgement", "--out"]),
    ("judge a.jsonl a.jsonl --judge llm", ["the judge llm lacks its model", "--judge-model NAME"]),
    ("judge a.jsonl a.jsonl --judge llm:m --base-url nowhere", ["'nowhere' is not an address", "http://HOST:PORT/v1"]),
    ("judge a.jsonl a.jsonl --judge llm:m --base-url http://127.0.0.1:9/v1", ["who the users are", "--dataset FOLDER"]),
    (
        "judge a.jsonl b.jsonl --judge llm:m --base-url http://127.0.0.1:9/v1 --protocol plain --retries 0",
        ["cannot reach http://127.0.0.1:9/v1", "0 of 2 answers are kept"],
    ),
    ("judge a.jsonl a.jsonl --judge llm:m --protocol plain --prompt x.jinja", ["cannot use the prompt x.jinja"]),
    ("judge a.jsonl a.jsonl --judge llm:m --protocol plan", ["protocol", "plan"]),
    ("judge a.jsonl a.jsonl --judge llm:m --base-url http://x/v1 --max-cost 1", ["the price of 'm'", "--prices FILE"]),
    ("judge a.jsonl a.jsonl --judge llm:m --base-url http://x/v1 --prices broken.jsonl", ["cannot read the prices"]),
    ("judge a.jsonl a.jsonl --judge rule:longer --show-prompt 1", ["rule:longer sends no messages", "--judge llm"]),
    ("judge --calibrate full --judge rule:longer", ["full is not a prepared data set", "prlhf prep"]),
    ("judge --set concurency=3 a.jsonl a.jsonl", ["concurency", "did you mean 'concurrency'"]),
    ("judge --checkpoint {run} a.jsonl b.jsonl", ["--checkpoint takes no response files", "leave out --checkpoint"]),
    ("judge --checkpoint {run} --dataset full", ["full is not a prepared data set", "prlhf prep"]),
    ("judge --checkpoint nowhere --dataset {prepared}", ["nowhere"]),
    ("demo --recipe nothing.yaml", ["no recipe at nothing.yaml"]),
    ("demo --out full", ["full exists and is not a demo", "--out"]),
    ("sweep --space alpha=0.5 --set dataset={prepared} --out full", ["full exists and is not a sweep", "--out"]),
    ("generate {run} --max-new-tokens 2 --max-prompts 1 --out a-file/below.jsonl", ["a-file/below", "--out"]),
    ("demo --out a-file", ["a-file", "--out"]),
]  # fmt: skip

FILES = {
    "broken.yaml": "train: [1\n",
    "sections.yaml": "trian:\n  alpha: 0.5\n",
    "list.yaml": "- train\n",
    "empty-section.yaml": "train:\n",
    "keys.yaml": "train:\n  aplha: 0.5\n",
    "number.yaml": "train:\n  3: 0.5\n",
    "a-file": "kept\n",
    "full/of-other-things.txt": "kept\n",
    "empty.txt": "\n",
    "broken.jsonl": "{\n",
    "mine.jsonl": '{"prompt": "p", "chosen": "a", "rejected": "b", "who": "u"}\n',
    "a.jsonl": '{"prompt_id": "0", "user_id": "u", "user_index": 1, "prompt": "p", "response": "r", "prompt_tokens": 1,'
    ' "response_tokens": 1, "finish_reason": "stop", "settings": {}}\n',
    "b.jsonl": '{"prompt_id": "0", "user_id": "u", "user_index": 1, "prompt": "p", "response": "s", "prompt_tokens": 1,'
    ' "response_tokens": 1, "finish_reason": "stop", "settings": {}}\n',
}


@pytest.fixture
def furnished(here: Path) -> Path:
    """A working folder that holds something of every bad kind."""
    for name, content in (FILES | refused_inputs.FILES).items():
        (here / name).parent.mkdir(exist_ok=True, parents=True)
        (here / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (here / "a-link").symlink_to("nowhere")
    return here


@pytest.mark.parametrize(
    ("line", "fragments"),
    [pytest.param(*case, id=case[0]) for case in [*REFUSED, *refused_inputs.REFUSED]],
)
def test_refused(
    line: str,
    fragments: list[str],
    furnished: Path,
    prlhf: Callable[..., Any],
    request: pytest.FixtureRequest,
    tiny_base: Path,
) -> None:
    good: dict[str, Any] = {"base": tiny_base}
    for name, fixture in (("prepared", "prepared"), ("run", "trained")):
        good[name] = request.getfixturevalue(fixture) if f"{{{name}}}" in line else ""
    others = [folder for folder in (good["prepared"], good["run"]) if folder]
    before = [snapshot(folder) for folder in (furnished, *others)]
    result = prlhf(*(part.format(**good) for part in shlex.split(line)))
    assert result.exit_code == 2, (result.output, result.exception)
    errors = [text for text in result.stderr.splitlines() if text.startswith("error:")]
    assert len(errors) == 1, result.stderr
    assert result.stderr.splitlines()[-1] == errors[0]
    assert [fragment for fragment in fragments if fragment not in errors[0]] == [], errors[0]
    assert "; " in errors[0], "the line says what to do"
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert [snapshot(folder) for folder in (furnished, *others)] == before
