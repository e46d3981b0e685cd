"""Assembles the data plane's API: routers, authentication and error handlers, nothing else."""

import gzip
from functools import cache
from typing import cast

import psycopg
import structlog
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from ninja import NinjaAPI
from ninja.errors import AuthenticationError, HttpError, ValidationError
from ninja.operation import Operation

from apps.gateway.access import refusals
from apps.gateway.access.authentication import guarded
from apps.gateway.access.oauth.metadata import WELL_KNOWN
from apps.gateway.access.visitors import anybody, sender, visitor
from apps.gateway.budgets_api import router as budgets_router
from apps.gateway.keys_api import router as keys_router
from apps.gateway.management_api import router as management_router
from apps.gateway.members_api import router as members_router
from apps.gateway.metrics_api import router as metrics_router
from apps.gateway.oauth_api import router as oauth_router
from apps.gateway.oauth_api import well_known as oauth_metadata
from apps.gateway.openai.api import router as openai_router
from apps.gateway.prices_api import router as prices_router
from apps.gateway.requests import GatewayRequest
from apps.gateway.routing_api import router as routing_router
from apps.gateway.teams_api import router as teams_router
from apps.gateway.tokens_api import router as tokens_router
from apps.gateway.usage_api import router as usage_router
from apps.gateway.workloads_api import router as workloads_router
from apps.orchestration.consumers import router as console_router
from apps.orchestration.events_api import router as events_router
from apps.orchestration.failover_api import router as failover_router
from apps.orchestration.health_api import router as health_router
from apps.orchestration.servers_api import older_router as older_servers_router
from apps.orchestration.servers_api import router as servers_router
from apps.orchestration.subscriptions_api import router as subscriptions_router
from apps.orchestration.webhooks_api import router as webhooks_router
from citadel import __version__
from citadel.answer import JSON, Answer, error_answer
from citadel.errors import BadRequest, CitadelError, Unauthenticated, Unavailable
from citadel.openapi import describe

log = structlog.get_logger("citadel.api")


class Api(NinjaAPI):
    """Ninja's, with operations named after their views alone."""

    def get_openapi_operation_id(self, operation: Operation) -> str:
        """The view's name, which generated clients call their functions by."""
        return operation.view_func.__name__


api = Api(
    title="Citadel",
    version=__version__,
    description="One OpenAI-compatible endpoint in front of an organisation's own AI servers.",
    docs_url=None,
    openapi_url=None,
    auth=guarded,
)
api.add_router("/v1", openai_router)
api.add_router("/v1", older_servers_router)
api.add_router("/orchestration/servers", servers_router)
api.add_router("", health_router, auth=visitor)
api.add_router("/metrics", metrics_router)
api.add_router("/orchestration/events", events_router)
api.add_router("/ws/console", console_router)
api.add_router("/orchestration/failover", failover_router)
api.add_router("/orchestration/route", routing_router)
api.add_router("/orchestration/workload", workloads_router)
api.add_router("/orchestration/webhooks", subscriptions_router)
api.add_router("/management", management_router)
api.add_router("/api/v1/auth", tokens_router)
api.add_router("/api/v1/oauth", oauth_router)
api.add_router(WELL_KNOWN, oauth_metadata)
api.add_router("/api/v1/keys", keys_router)
api.add_router("/api/v1/teams", teams_router)
api.add_router("/api/v1/teams", members_router)
api.add_router("/api/v1/budgets", budgets_router)
api.add_router("/api/v1/prices", prices_router)
api.add_router("/api/v1/usage", usage_router)
api.add_router("/webhooks", webhooks_router, auth=sender)


@api.get("/api/v1/openapi.json", auth=anybody, include_in_schema=False)
async def openapi(request: HttpRequest) -> Answer:
    """The API's description of itself."""
    answer = Answer(openapi_document(), headers=[JSON])
    answer.packed = _packed_document()
    return answer


@cache
def openapi_document() -> bytes:
    """That description: the same until the program changes."""
    return describe(api)


@cache
def _packed_document() -> bytes:
    return gzip.compress(openapi_document(), mtime=0)


@api.exception_handler(CitadelError)
def _own(request: HttpRequest, error: CitadelError) -> HttpResponseBase:
    asked = cast(GatewayRequest, request)
    refusals.tell(asked.runtime, asked.scope, asked.raw_headers, error, getattr(request, "auth", None))
    return error_answer(error)


@api.exception_handler(OperationalError)
@api.exception_handler(InterfaceError)
@api.exception_handler(psycopg.OperationalError)
@api.exception_handler(psycopg.InterfaceError)
def _database_away(request: HttpRequest, error: Exception) -> HttpResponseBase:
    """What Django's connections and the pool's say while PostgreSQL is away, or undoes what is in another's way."""
    log.warning("database_away", path=request.path, reason=type(error.__cause__ or error).__name__)
    return error_answer(Unavailable("The database is out of reach for the moment.", retry_after=1))


@api.exception_handler(AuthenticationError)
def _unauthenticated(_request: HttpRequest, _error: AuthenticationError) -> HttpResponseBase:
    return error_answer(Unauthenticated("An API key is needed: Authorization: Bearer KEY."))


@api.exception_handler(ValidationError)
def _invalid(_request: HttpRequest, error: ValidationError) -> HttpResponseBase:
    first = error.errors[0]
    param = ".".join(str(part) for part in first["loc"][1:])
    return error_answer(BadRequest(f"Invalid value for '{param}': {first['msg']}.", param=param))


@api.exception_handler(HttpError)
def _bad(_request: HttpRequest, error: HttpError) -> HttpResponseBase:
    return error_answer(BadRequest(str(error)))
