"""Which class a model has, by its name and by the word of the servers that serve it."""

from collections import Counter

from apps.orchestration.fleet import Model, Server, class_of, reserved
from apps.orchestration.health.passive import Standings
from apps.orchestration.models import ModelClass
from apps.orchestration.routing.plan import Sight, make_plan
from apps.orchestration.routing.strategies import Cursors

BUSINESS = ModelClass(name="specialized", capability="business_models", fallback=False)
LIGHT = ModelClass(name="lightweight", patterns=["phi3*"], capability="lightweight")


def server(name: str, *capabilities: str, state: str = "active") -> Server:
    return Server(name, f"http://{name}", "openai", state=state, capabilities=frozenset(capabilities))


def test_a_model_that_only_such_servers_serve_is_of_their_class() -> None:
    found = class_of("m", [server("a", "business_models"), server("b", state="draining")], [BUSINESS])
    assert found is not None
    assert (found.name, found.own) == ("specialized", {"a"})


def test_a_server_takes_no_model_from_another_by_its_word() -> None:
    for state in ("active", "draining", "disabled", "pending"):
        newcomer = server("b", "business_models", state=state)
        assert class_of("m", [server("a"), newcomer], [BUSINESS]) is None
    assert class_of("m", [server("a", "business_models", state="disabled")], [BUSINESS]) is None


def test_of_a_class_by_name_the_active_servers_that_say_so_are_its_own() -> None:
    for state, own in (("active", {"b"}), ("disabled", set[str]())):
        found = class_of("phi3:7b", [server("a"), server("b", "lightweight", state=state)], [LIGHT])
        assert found is not None
        assert (found.own, found.fallback) == (own, True)


def test_a_class_keeps_its_own_servers_for_itself() -> None:
    servers = [server("a"), server("b", "business_models"), server("c")]
    assert reserved(servers, [BUSINESS]) == {"b"}
    assert reserved(servers, [BUSINESS, ModelClass(name="heavyweight", servers=["c"])]) == {"b", "c"}
    assert reserved(servers, [LIGHT]) == frozenset()


def test_a_specialised_server_gets_half_as_much_of_what_others_can_do() -> None:
    servers = (server("a"), server("b", "business_models"))
    sight = Sight(Standings(eject_after=5, max_backoff=30.0, trial_limit=300.0), 0.0)
    for own, wanted in ((frozenset({"b"}), {"a": 200, "b": 100}), (frozenset(), {"a": 150, "b": 150})):
        cursors: Cursors = {}
        counted = Counter[str]()
        for _ in range(300):
            plan, cursors = make_plan(Model("m", servers, reserved=own), sight, cursors)
            counted[plan.order[0].server_id] += 1
        assert counted == wanted
