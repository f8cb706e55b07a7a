"""The application: which request is answered by what."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from prlhf.dataset import GENERIC, Text
from prlhf.serve.faults import ApiError, handle_faults
from prlhf.serve.guard import Guard
from prlhf.serve.keys import Caller, is_loopback
from prlhf.serve.pages import add_page
from prlhf.serve.planning import Plans
from prlhf.serve.protocol import Ask, ChatAsk, CompletionAsk, FeedbackAsk
from prlhf.serve.service import Service
from prlhf.serve.shapes import ApiShape, ChatShape, TextShape
from prlhf.serve.users import add_users
from prlhf.serve.who import Calling, about, allowed, named_user, served_as
from prlhf.serve.writing import Writing

LISTED = 100  # users in the list of models, at most


def build_app(service: Service) -> Any:
    """The ASGI application of `service`."""
    config, metrics, plans = service.config, service.metrics, Plans(service.policy, service.config)
    metrics.watch("prlhf_waiting", "Responses that wait for their turn.", lambda: service.engine.waiting)
    metrics.watch("prlhf_writing", "Responses that are being written.", lambda: service.engine.writing)

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.close)

    service.keeper.watch(metrics)
    if service.log:
        log = service.log
        metrics.watch("prlhf_conversations_kept", "Requests that were kept with responses.", lambda: log.kept)
        metrics.watch("prlhf_conversations_lost", "Requests that could not be kept.", lambda: log.lost)
    app = FastAPI(title="prlhf", docs_url=None, redoc_url=None, lifespan=life)
    app.state.keys = service.keys
    handle_faults(app)
    add_page(app)
    add_users(app, service)

    async def answer(ask: ChatAsk | CompletionAsk, shape: type[ApiShape], request: Request, caller: Caller) -> Response:
        user = allowed(named_user(ask, request.headers, config, service.name), caller)
        person = await served_as(user, service.roster, config, ask.prlhf_version)
        planned = await asyncio.to_thread(plans.jobs, ask, person)
        keep = partial(service.log.add, user, ask.prompts) if service.log else None
        writing = Writing(service.engine, planned, config.timeout, metrics, keep)
        shaped = shape(ask.model or service.name, service.policy.tokenizer, ask.top)
        if ask.stream:
            events = writing.stream(shaped, ask.with_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers=about(person))
        try:
            found = await unless_gone(writing.whole(shaped), request)
            if found is None:
                metrics.hung_up.inc()
                return Response(status_code=499)
            return JSONResponse(found, headers=about(person))
        finally:
            writing.close()

    @app.post("/v1/chat/completions")
    async def chat(ask: ChatAsk, request: Request, caller: Calling) -> Response:
        return await answer(ask, ChatShape, request, caller)

    @app.post("/v1/completions")
    async def complete(ask: CompletionAsk, request: Request, caller: Calling) -> Response:
        return await answer(ask, TextShape, request, caller)

    @app.post("/v1/feedback")
    async def choose(ask: FeedbackAsk, request: Request, caller: Calling) -> dict[str, Any]:
        user = allowed(named_user(ask, request.headers, config, service.name), caller)
        if user == GENERIC:
            raise ApiError(400, "say whose choice it is with user", param="user")
        if config.unknown == "refuse":
            await served_as(user, service.roster, config)
        return await asyncio.to_thread(keep, service, user, plans.prompt(ask.text), ask)

    @app.get("/v1/models")
    async def models(caller: Calling) -> dict[str, Any]:
        names = await asyncio.to_thread(model_names, service, caller)
        more = {"prlhf_plain": plans.plain, "prlhf_logged": service.log is not None}
        return {"object": "list", "data": [model(name) | more for name in names]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str, caller: Calling) -> dict[str, Any]:
        user = allowed(named_user(Ask(model=name), {}, config, service.name), caller)
        await served_as(user, service.roster, config)
        return model(name)

    @app.get("/healthz")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "waiting": service.engine.waiting, "writing": service.engine.writing}

    @app.get("/metrics")
    async def numbers() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    local = service.keys is None and is_loopback(config.host)
    return Guard(app, config.max_body * 1024, local, metrics)


def keep(service: Service, user: str, prompt: Text, ask: FeedbackAsk) -> dict[str, Any]:
    """Keep a choice; the answer says how many there are of this user, and of how many the user was learned."""
    number = service.keeper.add(user, prompt, ask.chosen, ask.rejected)
    service.metrics.choices.inc()
    kept = service.keeper.kept_of(user)
    return {"id": number, "object": "feedback", "user": user, "choices": kept.choices, "learned": kept.learned}


def model(name: str) -> dict[str, Any]:
    """A model as OpenAI's clients read it."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "prlhf"}


def model_names(service: Service, caller: Caller) -> list[str]:
    """The names of models: the run's own, and with each user that the caller may speak as, if these are not many."""
    known = service.roster.names(LISTED) if caller.users is None else sorted(caller.users)
    return [service.name, *(f"{service.name}:{user}" for user in known or [])]


async def unless_gone(work: Any, request: Request) -> Any:
    """The result of `work`, or None if the client hangs up first."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()
