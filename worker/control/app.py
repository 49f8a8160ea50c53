"""The control API's routes. Every answer is JSON; errors too: ``{"error": code, "message": ..., "remedy":
...}``."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Annotated, Any
from uuid import UUID

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from worker.control import ofrep
from worker.errors import CrossfadeError, SchemaError, ServiceUnavailable
from worker.postgres.flags import Flags

Checks = Callable[[UUID], Awaitable[Any]]
"""Tells whether a tenant may be cut over, as something that JSON can say."""

_LARGEST_BODY = 64 * 1024
_MOST_TENANTS = 1000
_LAST_TRANSITIONS = 20
_OPEN = frozenset({"/healthz"})  # says nothing about anybody's data


def create(flags: Flags, token: str | None, checks: Checks | None = None) -> FastAPI:
    """Return the API. ``token``: what callers must bear; None: nothing, which only loopback may do."""
    app = FastAPI(title="Crossfade control", docs_url=None, redoc_url=None, openapi_url=None)
    _errors(app)
    _tenants(app, flags, checks)
    _flag(app, flags)

    @app.get("/healthz")
    async def healthz() -> dict[str, Any]:
        try:
            await flags.page(None, 1)
        except CrossfadeError as away:
            return {"status": "degraded", "postgres": False, "message": away.message}
        return {"status": "ok", "postgres": True}

    if token is not None:
        app.add_middleware(_Bearer, token=token)
    return app


def _tenants(app: FastAPI, flags: Flags, checks: Checks | None) -> None:
    @app.get("/v1/tenants")
    async def tenants(
        id: Annotated[list[UUID] | None, Query(max_length=_MOST_TENANTS)] = None,
        after: UUID | None = None,
        limit: Annotated[int, Query(ge=1, le=_MOST_TENANTS)] = 100,
    ) -> dict[str, Any]:
        """Those of the named tenants that are known, or a page of all; ``next`` begins the next page."""
        found = await (flags.of(id) if id is not None else flags.page(after, limit))
        more = id is None and len(found) == limit
        return {"tenants": [one._asdict() for one in found], "next": found[-1].tenant if more else None}

    @app.get("/v1/tenants/{tenant}")
    async def tenant(tenant: UUID) -> dict[str, Any]:
        found = await flags.of([tenant])
        if not found:
            raise HTTPException(404, "no such tenant")
        transitions = await flags.transitions(tenant, _LAST_TRANSITIONS)
        return {**found[0]._asdict(), "transitions": [one._asdict() for one in transitions]}

    if checks is not None:

        @app.get("/v1/tenants/{tenant}/checks")
        async def tenant_checks(tenant: UUID) -> Any:
            return await checks(tenant)


def _flag(app: FastAPI, flags: Flags) -> None:
    async def evaluated(request: Request) -> ofrep.Evaluated:
        tenant = ofrep.targeting_key(await _body(request))
        found = await flags.of([tenant])
        return ofrep.evaluate(found[0] if found else None)

    @app.post("/ofrep/v1/evaluate/flags/{key}")
    async def one(key: str, request: Request) -> JSONResponse:
        try:
            if key != ofrep.FLAG:
                raise ofrep.Refused("FLAG_NOT_FOUND", f"the only flag is {ofrep.FLAG}", 404)
            return JSONResponse((await evaluated(request)).body)
        except ofrep.Refused as refused:
            told = {"key": key, "errorCode": refused.code, "errorDetails": refused.details}
            return JSONResponse(told, refused.status)

    @app.post("/ofrep/v1/evaluate/flags")
    async def all_of_them(request: Request) -> Response:
        try:
            flag = await evaluated(request)
        except ofrep.Refused as refused:
            told = {"errorCode": refused.code, "errorDetails": refused.details}
            return JSONResponse(told, refused.status)
        headers = {"ETag": flag.etag}
        if ofrep.matches(request.headers.get("if-none-match"), flag.etag):
            return Response(status_code=304, headers=headers)
        return JSONResponse({"flags": [flag.body]}, headers=headers)


async def _body(request: Request) -> bytes:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > _LARGEST_BODY:
            raise ofrep.Refused("PARSE_ERROR", "the body is too large", 413)
    return body


def _errors(app: FastAPI) -> None:
    @app.exception_handler(CrossfadeError)
    async def ours(_request: Request, error: CrossfadeError) -> JSONResponse:
        away = isinstance(error, ServiceUnavailable | SchemaError)
        code = "unavailable" if away else "failed"
        told = {"error": code, "message": error.message, "remedy": error.remedy}
        # The last two are OFREP's.
        return JSONResponse(told | {"errorCode": "GENERAL", "errorDetails": str(error)}, 503 if away else 500)

    @app.exception_handler(HTTPException)
    async def http(_request: Request, error: HTTPException) -> JSONResponse:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "failed")
        return JSONResponse({"error": code, "message": error.detail}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        faults = "; ".join(f"{'.'.join(map(str, one['loc'][1:]))}: {one['msg']}" for one in error.errors())
        return JSONResponse({"error": "invalid", "message": faults}, 422)


class _Bearer:
    """Lets nothing through without the token, whatever the path, those that do not exist included."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _OPEN or self._knows(scope):
            await self._app(scope, receive, send)
            return
        told = {"error": "unauthorized", "message": "send Authorization: Bearer with the control token"}
        response = JSONResponse(told, 401, {"WWW-Authenticate": "Bearer"})
        await response(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, token = given.partition(b" ")
        return kind.lower() == b"bearer" and hmac.compare_digest(token.strip(), self._token)
