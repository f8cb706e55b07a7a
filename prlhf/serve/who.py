"""Who asks: by the field `user` or `safety_identifier`, a header, or the model's name, in this order."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated
from urllib.parse import quote

from fastapi import Depends, Request

from prlhf.config import ServeConfig
from prlhf.dataset import GENERIC
from prlhf.serve.faults import ApiError
from prlhf.serve.keys import Caller, caller_of
from prlhf.serve.protocol import Ask, FeedbackAsk, RollbackAsk
from prlhf.serve.roster import Roster, ServedUser, generic


def caller_from(request: Request) -> Caller:
    """The caller of a request. Raises ApiError without a valid key, where keys are needed."""
    found = caller_of(request.headers.get("authorization"), request.app.state.keys)
    if found is None:
        raise ApiError(401, "no valid API key was given", "invalid_api_key")
    return found


Calling = Annotated[Caller, Depends(caller_from)]


def named_in_model(model: str | None, name: str) -> str | None:
    """The user in a model's name, `NAME:ann`; None for `NAME` alone. Raises ApiError for another model."""
    if model is None or model == name:
        return None
    if model.startswith(f"{name}:"):
        return model.removeprefix(f"{name}:")
    raise ApiError(404, f"the model '{model}' does not exist; this server has '{name}'", "model_not_found", "model")


def named_user(
    ask: Ask | FeedbackAsk | RollbackAsk, headers: Mapping[str, str], config: ServeConfig, name: str
) -> str | None:
    """The user that a request names; None if it names nobody."""
    in_model = named_in_model(ask.model, name)
    return ask.user or ask.safety_identifier or headers.get(config.user_header) or in_model or None


def allowed(user: str | None, caller: Caller) -> str:
    """The user as whom a caller is answered: who is named, a caller's only one, or the generic user.

    Raises:
        ApiError: the caller may not speak as this user.
    """
    user = user or caller.only or GENERIC
    if user != GENERIC and not caller.may_speak_as(user):
        raise ApiError(403, f"this key may not speak as '{user}'", "user_not_allowed", "user")
    return user


async def served_as(user: str, roster: Roster, config: ServeConfig, former: int | None = None) -> ServedUser:
    """Whose vectors answer `user`: theirs as they are now, or those of a former version.

    Raises:
        ApiError: the user is unknown, and the server refuses them, or the version is.
    """
    found = generic() if user == GENERIC and former is None else await asyncio.to_thread(roster.find, user, former)
    if found is None and former is not None:
        raise ApiError(404, f"no version {former} of '{user}' is kept", "version_not_found", "prlhf_version")
    if found is None and config.unknown == "refuse":
        raise ApiError(404, f"the user '{user}' is not known", "user_not_found", "user")
    return found or generic(user)


def about(person: ServedUser) -> dict[str, str]:
    """Headers of an answer: who is answered, percent-encoded, and whether as the generic user."""
    kind = "user" if person.reader.user_index else "generic"
    return {"X-PRLHF-User": quote(person.reader.id), "X-PRLHF-Served-As": kind}
