"""A team, its owner, and an administrator."""

import pytest

from tests.gateway.client import Client
from tests.gateway.spending.holder import Holder, slug
from tests.instance import Instance


@pytest.fixture
def team() -> str:
    return slug()


@pytest.fixture
def admin(citadel: Instance, client: Client) -> Holder:
    return Holder(client, citadel.admin_key)


@pytest.fixture
def owner(citadel: Instance, client: Client, team: str) -> Holder:
    return Holder(client, citadel.key(team, role="owner"))
