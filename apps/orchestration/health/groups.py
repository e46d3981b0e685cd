"""The rule against mass ejection: traffic alone never takes out more than half of a model's servers, and one at least.

As far as this worker knows; the board sees to it over all workers.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

from apps.orchestration.fleet import Fleet, Model
from apps.orchestration.health.evidence import Company, Group


class Groups:
    """The servers of each model, by what is known of who is in the rotation and who is gone."""

    def __init__(self, in_rotation: Callable[[str], bool], is_gone: Callable[[str], bool]):
        self._in_rotation = in_rotation
        self._is_gone = is_gone
        self._models: dict[str, list[Model]] = {}
        """Of each server."""

    def follow(self, fleet: Fleet) -> None:
        """Takes a new snapshot of the fleet."""
        models = defaultdict(list)
        for model in fleet.models.values():
            for server in model.servers:
                models[server.server_id].append(model)
        self._models = dict(models)

    def company(self, server_id: str) -> Company:
        """The servers beside one, and what they let become of it."""
        groups = [self._group(server_id, model) for model in self._models.get(server_id, ())]
        return Company(groups, self._may_eject(server_id, groups), any(len(group.servers) == 1 for group in groups))

    def _group(self, server_id: str, model: Model) -> Group:
        """Those that are gone are none of them: a dead one must not keep in another that hangs."""
        living = [
            server.server_id
            for server in model.servers
            if server.server_id == server_id or (server.state == "active" and not self._is_gone(server.server_id))
        ]
        return Group(max(1, len(living) // 2), living)

    def _may_eject(self, server_id: str, groups: Sequence[Group]) -> bool:
        """Whether traffic has not taken out as many of each group as it may."""
        for group in groups:
            out = sum(not self._in_rotation(server) for server in group.servers if server != server_id)
            if out + 1 > group.may_be_out:
                return False
        return True
