"""A second worker of the Citadel under test that neither asks who comes nor counts: what that costs is the difference.

Everything else is as it is: `python -m bench.unguarded --port PORT`, with the addresses of the stores around it.
"""

import os
from typing import Any

from citadel import config, serve


def main() -> None:
    """Take both out, and serve."""
    folder = config.load().home / "run" / "metrics"
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)  # before the library of the metrics is there
    import citadel.asgi  # noqa: F401  # which sets Django up

    _take_out()
    serve.main()


def _take_out() -> None:
    from apps.gateway.access.authentication import recognize
    from apps.gateway.limits.admission import Admission
    from apps.gateway.limits.limiter import Limiter
    from apps.gateway.requests import GatewayRequest
    from citadel import handler
    from citadel.caller import Caller

    known: list[Caller] = []
    admitted: list[Admission] = []
    admit = Limiter.admit

    async def whoever(request: GatewayRequest) -> tuple[Caller, None]:
        """Who came first, whoever comes."""
        if not known:
            known.append((await recognize(request))[0])
        return known[0], None

    async def let_in(self: Limiter, *asked: Any, **more: Any) -> Admission:
        """As the first request was, uncounted."""
        if not admitted:
            admitted.append((await admit(self, *asked, **more))._replace(left=()))
        return admitted[0]

    def nothing(_self: Limiter, *_asked: Any) -> None:
        """Nothing was taken, so nothing is given back."""

    handler.recognize = whoever
    Limiter.admit = let_in  # type: ignore[method-assign]
    Limiter.release = Limiter.settle = nothing  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    main()
