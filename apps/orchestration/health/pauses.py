"""Servers that are in the rotation and asked after all others for a while. Pure."""


class Pauses:
    """Of servers, for one model each or (`""`) all of theirs, by one endpoint or all. False while there are none."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, str, str], float] = {}

    def __bool__(self) -> bool:
        return bool(self._until)

    def begin(self, server_id: str, model: str, now: float, seconds: float, *, endpoint: str = "") -> bool:
        """Has a server asked last; whether that is news. A shorter pause takes nothing from a longer one."""
        known = self._until.get((server_id, model, endpoint), now)
        self._until[server_id, model, endpoint] = max(known, now + seconds)
        return known <= now

    def is_paused(self, server_id: str, model: str, now: float, *, endpoint: str = "") -> bool:
        """Whether others are to be asked before it."""
        paused = False
        keys = ((server_id, "", ""), (server_id, model, ""), (server_id, model, endpoint))
        for key in keys if self._until else ():
            if (until := self._until.get(key)) is None:
                continue
            if now < until:
                paused = True
            else:
                del self._until[key]
        return paused

    def forget_all_but(self, server_ids: frozenset[str]) -> None:
        """Drops servers that are no longer in the fleet."""
        self._until = {key: until for key, until in self._until.items() if key[0] in server_ids}
