"""`/metrics`, for a scraper with a key that may see them, or from a network that may."""

from ninja import Router

from apps.gateway import metrics
from apps.gateway.access.visitors import scraper
from apps.gateway.requests import GatewayRequest
from citadel.answer import Answer
from citadel.permissions import SEE_METRICS, require

router = Router(tags=["Metrics"], auth=scraper)


@router.get("", openapi_extra={"responses": {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}})
async def scrape(request: GatewayRequest) -> Answer:
    """All workers' metrics in Prometheus's text format."""
    require(request.auth, SEE_METRICS)
    request.runtime.count()
    body, content_type = metrics.exposition()
    return Answer(body, headers=[(b"content-type", content_type.encode())])
