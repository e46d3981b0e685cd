"""Which class a model has, by its name and by the word of the servers that serve it."""

from apps.orchestration.fleet import Server, class_of
from apps.orchestration.models import ModelClass

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
