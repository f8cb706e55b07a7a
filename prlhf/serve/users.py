"""What the server knows of a user, and how that becomes again what it was before."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request

from prlhf.dataset import GENERIC
from prlhf.serve.faults import ApiError
from prlhf.serve.protocol import RollbackAsk
from prlhf.serve.service import Service
from prlhf.serve.who import Calling, allowed, named_user, served_as


def add_users(app: FastAPI, service: Service) -> None:
    """Let `app` answer what `service` knows of users."""

    @app.post("/v1/users/rollback")
    async def undo(ask: RollbackAsk, request: Request, caller: Calling) -> dict[str, Any]:
        user = allowed(named_user(ask, request.headers, service.config, service.name), caller)
        if user == GENERIC:
            raise ApiError(400, "say who is to be as before with user", param="user")
        if await asyncio.to_thread(service.roster.find, user) is None:
            raise ApiError(404, f"the user '{user}' is not known", "user_not_found", "user")
        await asyncio.to_thread(service.keeper.undo, user, ask.version)
        return await asyncio.to_thread(known_of, service, user)

    @app.get("/v1/users/{user:path}")
    async def one(user: str, caller: Calling) -> dict[str, Any]:
        user = allowed(user, caller)
        await served_as(user, service.roster, service.config)
        return await asyncio.to_thread(known_of, service, user)


def known_of(service: Service, user: str) -> dict[str, Any]:
    """What is known of `user`: the choices that are kept, of how many they are learned, and the versions.

    `learning`: whether they are being learned, or about to be.
    """
    person = None if user == GENERIC else service.roster.find(user)
    versions = service.roster.versions(person) if person else []
    kept = service.keeper.kept_of(user)
    return {
        "id": user,
        "object": "user",
        "known": person is not None,
        "choices": kept.choices,
        "learned": kept.learned,
        "learning": kept.learning,
        "version": versions[-1].number if versions else 0,
        "versions": [version.summary() for version in versions],
    }
