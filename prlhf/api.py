"""What `import prlhf` offers. Each command of the terminal is one of these functions with its options.

Settings are the keys of a recipe's section (`prlhf recipes schema`), given as keyword arguments. An unknown key is
refused, with the nearest known name as a hint. Nothing is printed unless a `progress` is given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from prlhf.config import (
    AdaptConfig,
    ClusterConfig,
    GenerateConfig,
    JudgeConfig,
    ServeConfig,
    SweepConfig,
    TrainConfig,
)  # fmt: skip
from prlhf.errors import PrlhfError
from prlhf.progress import SILENT, Progress
from prlhf.recipes import Sections, cluster_of, load_recipe, over, resolve
from prlhf.results import (
    Adapted,
    Asked,
    Calibrations,
    CheckpointAccuracy,
    DataView,
    Exported,
    FewShotAccuracy,
    Forgotten,
    GeneralAbility,
    Judgement,
    JudgeMessages,
    JudgingPlan,
    KeptConversations,
    KeptFeedback,
    PreparedData,
    Pushed,
    Responses,
    RolledBack,
    Run,
    RunComparison,
    RunDetails,
    RunList,
    RunUsers,
    Served,
    Talker,
    TrainPlan,
    Trials,
)  # fmt: skip

if TYPE_CHECKING:
    from prlhf.adapt.ask import Answer, PairQuestion
    from prlhf.loaded import Loaded
    from prlhf.sweep.trials import TrialDisplay

__all__ = [
    "adapt", "ask", "calibrate", "compare_runs", "conversations", "export", "feedback", "forget", "generate", "judge",
    "judge_checkpoint", "judge_general", "judge_messages", "list_runs", "load", "plan_judging", "plan_training",
    "prepare", "push", "roll_back", "serve", "show_data", "show_run", "sweep", "train", "users",
]  # fmt: skip

Recipe = str | Path | Sections | None
Side = str | Path | Responses


def prepare(
    dataset: str | Path,
    *,
    recipe: Recipe = None,
    model: str | None = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> PreparedData:
    """Turn raw data into a prepared data set, as `prlhf prep` does.

    Args:
        dataset: a known name (`demo`, `tldr`, …), or the path or hub id of data with the columns `prompt`, `chosen`,
            `rejected` and `user_id`.
        recipe: a file, a shipped one's name or its sections; `prep` is used.
        model: a base model whose context the rows are to fit: `room` says how they do. Only its tokenizer is read.
        progress: receives the steps and the warnings.
        settings: keys of PrepConfig, such as `out` and `columns={"user_id": "annotator"}`.

    Raises:
        PrlhfError: a setting or a row is refused, the data cannot be read, or `out` cannot be written.
    """
    from prlhf.data import config_for
    from prlhf.data import prepare as run

    config = config_for(str(dataset), _sections(recipe).get("prep", {}), settings)
    if model is None:
        return PreparedData.model_validate({"folder": config.folder, **run(config, progress)})
    from prlhf.train.encode import base_for, rows_in_context

    base = base_for(model)  # before the data set is written
    return PreparedData.model_validate(
        {"folder": config.folder, **run(config, progress), "room": rows_in_context(config.folder, base)}
    )


def show_data(
    dataset: str | Path | PreparedData,
    *,
    recipe: Recipe = None,
    user: str | None = None,
    rows: int = 5,
    tokens: bool = False,
    html: str | Path | None = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> DataView:
    """Show rows of prepared data as training reads them, and how users agree, as `prlhf data show` does.

    Args:
        dataset: the result of `prepare`, its folder, or a known name.
        recipe: a file, a shipped one's name or its sections; `train` and `prep` are used.
        user: show only this user's rows.
        rows: how many rows to show.
        tokens: give the ids and texts of single tokens.
        html: write a page with tokens there.
        progress: receives the steps and the warnings.
        settings: keys of TrainConfig, such as `model` and `max_tokens`.

    Raises:
        PrlhfError: a setting is refused, the data or the base cannot be read, or `html` cannot be written.
    """
    from prlhf.data import locate
    from prlhf.html import claim_page
    from prlhf.view.page import GENERATOR, write_data_page
    from prlhf.view.run import view

    sections, page = _sections(recipe), None if html is None else Path(html).expanduser()
    config = resolve(TrainConfig, sections.get("train", {}), _with_data(dataset, settings))
    if page:
        claim_page(page, GENERATOR)
    with TemporaryDirectory(prefix="prlhf-") as scratch:
        folder = locate(config.dataset, sections, progress, Path(scratch), "")
        found = view(folder, config, user, rows, tokens or page is not None)
    found["dataset"] = config.dataset
    if page:
        write_data_page(page, found)
    return DataView.model_validate(found)


def train(
    dataset: str | Path | PreparedData | None = None,
    *,
    recipe: Recipe = None,
    resume: bool = False,
    per_user: bool = False,
    push_to_hub: str | None = None,
    cluster: Mapping[str, Any] | None = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> Run:
    """Train the user model and the adapter on a prepared data set, as `prlhf train` does.

    Args:
        dataset: the result of `prepare`, its folder, or a known name, which is prepared on first use. Default: `demo`.
        recipe: a file, a shipped one's name or its sections; `train`, `cluster` and `prep` are used.
        resume: continue the run in `out`.
        per_user: train one adapter per user, a baseline.
        push_to_hub: a repository of the hub, OWNER/NAME, to which the model goes at the end; private if it is new.
        cluster: keys of ClusterConfig, such as `{"workers": 2}`.
        progress: receives the steps and the warnings.
        settings: keys of TrainConfig, such as `user_model="cluster", k=10`.

    Raises:
        PrlhfError: a setting is refused, the data or the base cannot be read, or `out` cannot be written.
        Interrupted: Ctrl-C; a checkpoint was saved first.
    """
    from prlhf.start_training import run_training
    from prlhf.upload import then_pushed

    typed = _with_data(dataset, settings)
    if resume and not typed and recipe is None:
        raise PrlhfError("resume needs the folder of the run", "give it as out")
    work = partial(run_training, _sections(recipe), typed, cluster or {}, resume, per_user, progress)
    return Run.model_validate(then_pushed(work, push_to_hub, per_user))


def list_runs(*folders: str | Path) -> RunList:
    """List the training runs in `folders`, finished or not, as `prlhf runs list` does.

    A run that cannot be read is a line in `faults`. Raises PrlhfError if a folder does not exist.
    """
    from prlhf.runs.listing import runs_in

    return runs_in([Path(folder) for folder in folders])


def show_run(folder: str | Path | Run, *, html: str | Path | None = None) -> RunDetails:
    """Show one training run with its evaluations and settings, as `prlhf runs show` does.

    Args:
        folder: of the run, or its result.
        html: a file to write its page to; training writes report.html into the run itself.

    Raises:
        PrlhfError: there is no run, it cannot be read, or the page cannot be written.
    """
    from prlhf.runs.listing import details_of

    folder = folder.run if isinstance(folder, Run) else Path(folder)
    found = details_of(folder)
    if html is not None:
        from prlhf.runs.report import write_run_report

        write_run_report(folder, Path(html))
    return found


def compare_runs(*folders: str | Path | Run, html: str | Path | None = None) -> RunComparison:
    """Compare training runs, as `prlhf runs compare` does: the settings that differ, and the results.

    Args:
        folders: of runs, results of them, or folders that hold runs.
        html: a file to write the comparison to, as a page.

    Raises:
        PrlhfError: there are fewer than two runs, one cannot be read, or the page cannot be written.
    """
    from prlhf.runs.listing import comparison_of

    found = comparison_of([folder.run if isinstance(folder, Run) else Path(folder) for folder in folders])
    if html is not None:
        from prlhf.runs.report import write_comparison

        write_comparison(found, Path(html))
    return found


def plan_training(
    dataset: str | Path | PreparedData | None = None,
    *,
    recipe: Recipe = None,
    cluster: Mapping[str, Any] | None = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> TrainPlan:
    """Check everything and say what `train` would do and need, as `prlhf train --dry-run` does. Nothing is written.

    The arguments are those of `train`.

    Raises:
        PrlhfError: `train` would refuse to begin.
    """
    from prlhf.start_training import plan_training as plan

    return TrainPlan.model_validate(plan(_sections(recipe), _with_data(dataset, settings), cluster or {}, progress))


def load(
    run: str | Path,
    *,
    device: str = "auto",
    precision: str = "auto",
    base: str | None = None,
    trust_remote_code: bool = False,
) -> Loaded:
    """Load a finished run, a policy or a reward model.

    Args:
        run: the folder of the run, or its id on the hub, OWNER/NAME.
        device: `auto`, `cpu` or `cuda`.
        precision: `auto` (bf16 on GPUs), `fp32` or `bf16`.
        base: the path or hub id of the base model, if it has moved since training.
        trust_remote_code: run the code that comes with the base model.

    Raises:
        PrlhfError: `run` is not a finished run, or its files or its base cannot be read.
    """
    from prlhf.loaded import Loaded
    from prlhf.model.checkpoint import kind_of, load_policy, load_reward_model
    from prlhf.model.hub_run import found_run

    folder = found_run(Path(run).expanduser())
    kind = kind_of(folder)
    read: Any = load_policy if kind == "policy" else load_reward_model
    return Loaded(folder, kind, read(folder, device, precision, base, trust_remote_code))


def adapt(
    run: str | Path | Run,
    choices: str | Path | None = None,
    *,
    recipe: Recipe = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> Adapted:
    """Learn new users from a handful of choices each, as `prlhf adapt` does. The language model stays as it is.

    Args:
        run: a finished run, a policy or a reward model, which then knows these users; see `out`.
        choices: a file of choices with the columns `prompt`, `chosen`, `rejected` and `user_id`.
        recipe: a file, a shipped one's name or its sections; `adapt` is used.
        progress: receives the steps and the warnings.
        settings: keys of AdaptConfig, such as `user` and `out`.

    Raises:
        PrlhfError: a setting or a row is refused, the run cannot be read, or has nothing of each user's own.
    """
    from prlhf.adapt.run import adapt_run

    typed = settings if choices is None else settings | {"choices": str(choices)}
    config = resolve(AdaptConfig, _sections(recipe).get("adapt", {}), typed)
    if config.ask:
        raise PrlhfError("ask = true needs somebody who answers", "call prlhf.ask")
    return Adapted.model_validate(adapt_run(_folder(run), config, progress))


def ask(
    run: str | Path | Run,
    user: str,
    answer: Callable[[PairQuestion], Answer],
    *,
    recipe: Recipe = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> Asked:
    """Ask a user which of two responses is better, and learn the user from the answers, as `prlhf adapt --ask` does.

    Args:
        run: a finished run, which then knows this user; see `out`.
        user: an id, new or known.
        answer: gets a question (`prompt`, `left`, `right`); returns `left`, `right`, `tie`, `skip`, `undo` or `stop`.
        recipe: a file, a shipped one's name or its sections; `adapt` is used.
        progress: receives the steps and the warnings.
        settings: keys of AdaptConfig, such as `pool` and `answers`.

    Raises:
        PrlhfError: a setting or a row is refused, the run cannot be read, or has nothing of each user's own.
        Interrupted: Ctrl-C; the answers are kept.
    """
    from prlhf.adapt.ask import ask_user

    config = resolve(AdaptConfig, _sections(recipe).get("adapt", {}), settings | {"user": user, "ask": True})
    return Asked.model_validate(ask_user(_folder(run), config, answer, progress))


def forget(run: str | Path | Run, user: str, *, progress: Progress = SILENT) -> Forgotten:
    """Remove a user from a run, as `prlhf adapt --forget` does: row, id, text and choices, from every file of the run.

    What the shared weights took from a trained user's comparisons stays in them.

    Raises:
        PrlhfError: the run does not know the user, or cannot be read or written.
    """
    from prlhf.adapt.forget import forget_user

    return Forgotten.model_validate(forget_user(_folder(run), user, progress))


def roll_back(
    run: str | Path | Run, user: str, version: int | None = None, *, progress: Progress = SILENT
) -> RolledBack:
    """Make an adapted user of a run what a former version was, as `prlhf adapt --rollback` does.

    Args:
        run: the run, which may be served meanwhile.
        user: the user's id.
        version: a number of `users(run, user).versions`, 0 for the user before any choice; None: the one before.
        progress: receives the notes.

    Raises:
        PrlhfError: the run does not know the user, has no such version, or cannot be read or written.
    """
    from prlhf.adapt.rollback import undo_adaptation

    return RolledBack.model_validate(undo_adaptation(_folder(run), user, version, progress=progress))


def users(run: str | Path | Run, user: str | None = None) -> RunUsers:
    """List the users of a run, as `prlhf users` does: how many were trained, and what is known of adapted ones.

    Args:
        run: the run.
        user: this one alone, with the former versions that are kept.

    Raises:
        PrlhfError: the run cannot be read, or does not know the user.
    """
    from prlhf.adapt.listing import list_users

    return RunUsers.model_validate(list_users(_folder(run), user))


def generate(
    run: str | Path | Run | None,
    *,
    recipe: Recipe = None,
    cluster: Mapping[str, Any] | None = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> Responses:
    """Write responses for many (prompt, user) pairs to disk, as `prlhf generate` does.

    `load(run).generate` returns responses in memory.

    Args:
        run: a finished run, its id on the hub, or None for a baseline.
        recipe: a file, a shipped one's name or its sections; `generate` and `cluster` are used.
        cluster: keys of ClusterConfig, such as `{"workers": 2}`.
        progress: receives the steps and the warnings.
        settings: keys of GenerateConfig, such as `prompts`, `users` and `out`.

    Raises:
        PrlhfError: a setting is refused, a file cannot be read, or `out` cannot be written.
        Interrupted: Ctrl-C; the finished responses were saved first.
    """
    from prlhf.generate.run import generate as write

    sections = _sections(recipe)
    config, at = resolve(GenerateConfig, sections.get("generate", {}), settings), cluster_of(sections, cluster or {})
    return Responses.model_validate(write(None if run is None else _folder(run), config, progress, at))


def serve(
    run: str | Path | Run,
    *,
    recipe: Recipe = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> Served:
    """Serve a policy over HTTP until the process gets Ctrl-C or SIGTERM, as `prlhf serve` does.

    Args:
        run: a finished run, or its id on the hub: a policy with or without a user model.
        recipe: a file, a shipped one's name or its sections; `serve` is used.
        progress: receives the steps and the address.
        settings: keys of ServeConfig, such as `port` and `keys`.

    Raises:
        PrlhfError: a setting is refused, the run cannot be read, or the address cannot be had.
    """
    from importlib.util import find_spec

    config = resolve(ServeConfig, _sections(recipe).get("serve", {}), settings)
    needed = [("serving needs", "serve", ("fastapi", "uvicorn", "prometheus_client"))]
    if config.replicas:
        needed.append(("replicas need", "replicas", ("aiohttp", "grpc_reflection", "mmh3")))
    for what, extra, packages in needed:
        if missing := [name for name in packages if find_spec(name) is None]:
            raise PrlhfError(f"{what} {', '.join(missing)}", f"pip install 'prlhf[{extra}]'")
    if config.replicas:
        from prlhf.serve.replicas import serve_replicas as run_server
    else:
        from prlhf.serve.run import serve as run_server

    return Served.model_validate(run_server(_folder(run), config, progress))


def feedback(run: str | Path | Run, *, out: str | Path | None = None, user: str | None = None) -> KeptFeedback:
    """Write the choices that a server of `run` collected as custom data, as `prlhf feedback export` does.

    Args:
        run: the folder of a run that was served, or a file that `serve` was given as `feedback`.
        out: the JSONL file to write. None: remove what was collected of `user`, as `prlhf feedback forget` does.
        user: the choices of this user alone.

    Raises:
        PrlhfError: there are no choices, or the file cannot be read or written.
    """
    from prlhf.choice_store import FILE, ChoiceStore, export_choices

    place = _folder(run)
    kept = ChoiceStore(place if place.is_file() else place / FILE, make=False)
    if out is not None:
        target = Path(out).expanduser()
        return KeptFeedback(feedback=kept.path, choices=export_choices(kept, target, user), out=target)
    if user is None:
        raise PrlhfError("no user is named whose choices are to be removed", "give user, or out to write them")
    choices, talks = kept.forget(user)
    return KeptFeedback(feedback=kept.path, choices=choices, conversations=talks)


def conversations(
    run: str | Path | Run, *, out: str | Path | None = None, user: str | None = None
) -> KeptConversations:
    """List who has conversations that a server of `run` keeps, as `prlhf feedback conversations` does.

    Args:
        run: the folder of a run that was served with `log_conversations`, or a file that it was given as `feedback`.
        out: a JSONL file to write them to, with the columns `user_id`, `at`, `prompt` and `responses`.
        user: those of this user alone.

    Raises:
        PrlhfError: there are none, or the file cannot be read or written.
    """
    from prlhf.choice_store import FILE, ChoiceStore, export_conversations

    place = _folder(run)
    kept = ChoiceStore(place if place.is_file() else place / FILE, make=False)
    target = None if out is None else Path(out).expanduser()
    if target is not None:
        export_conversations(kept, target, user)
    users = [Talker(user_id=who, conversations=count, last=last) for who, count, last in kept.talkers(user)]
    return KeptConversations(feedback=kept.path, users=users, out=target)


def judge(
    a: Side,
    b: Side,
    *,
    recipe: Recipe = None,
    command: str = "",
    progress: Progress = SILENT,
    **settings: Any,
) -> Judgement:
    """Compute the win-rates of the responses `a` against the responses `b`, as `prlhf judge A B` does.

    Args:
        a: the result of `generate`, a file of responses, or a folder of shards.
        b: the same for the other side.
        recipe: a file, a shipped one's name or its sections; `judge` is used.
        command: what the report names as its origin.
        progress: receives the steps and the warnings.
        settings: keys of JudgeConfig, such as `judge="rule:shorter"` and `out`.

    Raises:
        PrlhfError: a setting is refused, the responses cannot be read or compared, or the judge gives no answer.
    """
    from prlhf.judge.run import judge_responses

    config = _judging(recipe, settings)
    return judge_responses(_responses(a), _responses(b), config, progress, command)


def calibrate(
    on: str | Path | PreparedData | None = None,
    /,
    *,
    recipe: Recipe = None,
    command: str = "",
    progress: Progress = SILENT,
    **settings: Any,
) -> Calibrations:
    """Measure how often judges choose as people did, as `prlhf judge --calibrate` without A and B does.

    Args:
        on: a prepared data set, whose held-out comparisons are judged. Default: that of the key `calibrate`.
        recipe: a file, a shipped one's name or its sections; `judge` is used.
        command: what the report names as its origin.
        progress: receives the steps and the warnings.
        settings: keys of JudgeConfig, such as `judge="rule:shorter"` and `out`.

    Raises:
        PrlhfError: a setting is refused, the data cannot be read, or the judge gives no answer.
    """
    from prlhf.judge.run import calibrate_judges

    config = _judging(recipe, settings if on is None else settings | {"calibrate": _prepared(on)})
    if config.calibrate is None:
        raise PrlhfError("calibrate names no data to calibrate on", "give a prepared data set")
    return calibrate_judges(config, progress, command)


def plan_judging(
    a: Side | None = None, b: Side | None = None, *, recipe: Recipe = None, **settings: Any
) -> JudgingPlan:
    """Count the calls, tokens and dollars of `judge` or `calibrate`, as `prlhf judge --dry-run` does. Nothing is sent.

    Without `a` and `b` those of the key `calibrate` are counted.

    Raises:
        PrlhfError: a setting is refused, a file cannot be read, or none of the judges asks a server.
    """
    from prlhf.judge.run import dry_run

    return JudgingPlan(plan=dry_run(_maybe(a), _maybe(b), _judging(recipe, settings)))


def judge_messages(
    number: int, a: Side | None = None, b: Side | None = None, *, recipe: Recipe = None, **settings: Any
) -> JudgeMessages:
    """What a judge is sent about comparison `number`, from 1, as `prlhf judge --show-prompt` shows. Nothing is sent.

    Raises:
        PrlhfError: a setting is refused, a file cannot be read, or none of the judges asks a server.
    """
    from prlhf.judge.run import shown_prompt

    return JudgeMessages(calls=shown_prompt(_maybe(a), _maybe(b), _judging(recipe, settings), number))


def judge_checkpoint(
    run: str | Path | Run,
    dataset: str | Path | PreparedData | None = None,
    *,
    recipe: Recipe = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> CheckpointAccuracy | FewShotAccuracy:
    """Measure how often `run` ranks held-out comparisons as their users did, as `prlhf judge --checkpoint` does.

    With `few_shot` unseen users are learned from a few of their choices first.

    Args:
        run: a finished run.
        dataset: a prepared data set, whose held-out comparisons are read. Default: what the run was trained on.
        recipe: a file, a shipped one's name or its sections; `judge` is used.
        progress: receives the steps and the warnings.
        settings: keys of JudgeConfig, such as `out`.

    Raises:
        PrlhfError: a setting is refused, or the run or the data cannot be read.
    """
    from prlhf.adapt.few_shot import judge_few_shot
    from prlhf.judge.accuracy import judge_checkpoint as check

    config = resolve(JudgeConfig, _sections(recipe).get("judge", {}), settings)
    where = config.dataset if dataset is None else _prepared(dataset)
    return (check if config.few_shot is None else judge_few_shot)(_folder(run), where, config, progress)


def judge_general(
    run: str | Path | Run,
    general: str | Path | None = None,
    *,
    recipe: Recipe = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> GeneralAbility:
    """Measure what personalization costs `run` in general ability, as `prlhf judge --checkpoint --general` does.

    Args:
        run: a finished run of a policy.
        general: questions of multiple choice and texts: see `prlhf.judge.general.items` for the columns. Default: the
            key `general`.
        recipe: a file, a shipped one's name or its sections; `judge` is used.
        progress: receives the steps and the warnings.
        settings: keys of JudgeConfig, such as `general_users` and `out`.

    Raises:
        PrlhfError: a setting is refused, or the run or the file cannot be read.
    """
    from prlhf.judge.general.run import judge_general as measure

    typed = settings if general is None else settings | {"general": str(general)}
    config = resolve(JudgeConfig, _sections(recipe).get("judge", {}), typed)
    if config.general is None:
        raise PrlhfError("no file of questions or texts is named", "give it as general")
    return measure(_folder(run), config, progress)


def sweep(
    space: Mapping[str, Any] | Sequence[str] | None = None,
    *,
    recipe: Recipe = None,
    sections: Sections | None = None,
    cluster: Mapping[str, Any] | None = None,
    resume: bool = False,
    command: str = "",
    display: TrialDisplay | None = None,
    progress: Progress = SILENT,
    **settings: Any,
) -> Trials:
    """Train once per point of a space of settings, as `prlhf sweep` does.

    Args:
        space: for each key its values or a range, such as `{"alpha": [0.2, 0.5], "lr": "1e-5:1e-3:log"}`, or texts as
            in `["alpha=0.2,0.5"]`; over that of the recipe.
        recipe: a file, a shipped one's name or its sections, which the trials share.
        sections: settings over those of the recipe, `{"train": {…}, "generate": {…}}`.
        cluster: keys of ClusterConfig, such as `{"workers": 2}`.
        resume: continue the sweep in `out`; what is given changes it.
        command: what the report names as its origin.
        display: shows the trials while they run.
        progress: receives the steps and the warnings.
        settings: keys of SweepConfig, such as `trials`, `metric` and `out`.

    Raises:
        PrlhfError: a setting is refused, the data or the base cannot be read, or `out` cannot be written.
        Interrupted: Ctrl-C; finished trials are kept.
    """
    from prlhf.sweep.run import sweep as run
    from prlhf.sweep.space import merged_space
    from prlhf.sweep.trials import NO_DISPLAY

    before = load_recipe(Path(settings.get("out") or "sweep") / "recipe.yaml") if resume else {}
    known = over(before | _sections(recipe), sections or {})
    own = known.get("sweep", {})
    config = resolve(SweepConfig, own, settings | {"space": merged_space(own.get("space", {}), space or {})})
    at = resolve(ClusterConfig, known.get("cluster", {}), cluster or {})
    return Trials.model_validate(run(config, known, at, resume, progress, display or NO_DISPLAY, command))


def export(
    run: str | Path | Run,
    users: str | Sequence[str],
    out: str | Path,
    *,
    format: str = "peft",
    precision: str = "fp32",
    model: str | None = None,
    trust_remote_code: bool = False,
    progress: Progress = SILENT,
) -> Exported:
    """Write users of `run` for other programs, as `prlhf export` does, and compare what was written with the run.

    Args:
        run: a finished run of a policy.
        users: an id that the run knows, or `generic`; or a list of them.
        out: the folder to write; several users who act in the adapter get a folder each in it.
        format: for users in the adapter, or without users, `peft`, `gguf`, `hf` or `ollama`; for users in front of the
            prompt `hf-users`, `vllm`, `peft` or `ollama`.
        precision: `fp32` or `bf16`, in which whole models are written.
        model: the path or hub id of the base model, if it has moved since training.
        trust_remote_code: run the code that comes with the base model.
        progress: receives the steps.

    Raises:
        PrlhfError: a user is unknown, the run does not fit the format, what was written differs from the run, or a
            file cannot be read or written.
    """
    from prlhf.export.run import export as write

    named = [users] if isinstance(users, str) else users
    return Exported.model_validate(
        write(_folder(run), named, format, Path(out).expanduser(), model, trust_remote_code, progress, precision)
    )


def push(folder: str | Path | Run, repo: str, *, public: bool = False) -> Pushed:
    """Upload the model of a run, or an export, to a repository of the hub, as `prlhf push` does.

    Args:
        folder: a finished run, or what `export` wrote.
        repo: OWNER/NAME on the hub; made if it is missing, and then private unless `public`.
        public: let everyone read a new repository.

    Raises:
        PrlhfError: `folder` is neither, or the hub cannot be reached or refuses.
    """
    from prlhf.upload import push_folder

    return Pushed.model_validate(push_folder(_folder(folder), repo, public))


# ---- arguments ----


def _sections(recipe: Recipe) -> dict[str, Mapping[str, Any]]:
    return dict(recipe) if isinstance(recipe, Mapping) else dict(load_recipe(recipe))


def _with_data(dataset: str | Path | PreparedData | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    if dataset is None:
        return dict(settings)
    return {**settings, "dataset": str(dataset.folder if isinstance(dataset, PreparedData) else dataset)}


def _judging(recipe: Recipe, settings: Mapping[str, Any]) -> JudgeConfig:
    config = resolve(JudgeConfig, _sections(recipe).get("judge", {}), settings)
    if config.skip_long:
        raise PrlhfError("skip_long is for the comparisons of a checkpoint", "leave out skip_long")
    if config.general is not None:
        raise PrlhfError("general needs a run", "name it with prlhf judge --checkpoint, or call judge_general")
    return config


def _folder(run: str | Path | Run) -> Path:
    return Path(run.run if isinstance(run, Run) else run).expanduser()


def _prepared(dataset: str | Path | PreparedData) -> Path:
    return Path(dataset.folder if isinstance(dataset, PreparedData) else dataset).expanduser()


def _responses(side: Side) -> Path:
    return Path(side.out if isinstance(side, Responses) else side).expanduser()


def _maybe(side: Side | None) -> Path | None:
    return None if side is None else _responses(side)
