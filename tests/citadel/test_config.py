"""The configuration: which layer wins, and what each mistake is told."""

import json
import os
from pathlib import Path

import pytest
import yaml

from citadel import config
from citadel.config import read, shown
from citadel.sections import Config, ConfigError, QuotaLimit, ServerSection

GLOBAL, SERVICE = config.YAML_FILES
LONG = "k" * 40


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for folder in (Path(GLOBAL).parent, Path(SERVICE).parent, Path("config/secrets"), Path("run")):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def write(home: Path, name: str, values: object, mode: int = 0o600) -> Path:
    path = home / name
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    path.chmod(mode)
    return path


def load(home: Path, **environ: str) -> Config:
    return read({"CITADEL_HOME": str(home), **environ})[0]


def refused(home: Path, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(home, **environ)
    return str(caught.value)


def test_without_any_layer_the_defaults_are_in_force(home: Path) -> None:
    tree = load(home)
    assert tree == Config(home=home)
    assert (tree.server.port, tree.limits.global_.burst, tree.limits.client.concurrent) == (8002, 100, 5)


def test_an_issuer_of_tokens_makes_something_of_somebody(home: Path) -> None:
    entry = {"issuer": "https://i.example", "audience": "a", "team": "t"}
    for nothing in ({}, {"roles": {"it": "operator"}}, {"roles_claim": "groups"}):
        write(home, GLOBAL, {"tokens": {"issuers": [{**entry, **nothing}]}})
        assert "https://i.example needs a roles_claim and roles, or a role for all" in refused(home)
    for something in ({"role": "developer"}, {"roles_claim": "groups", "roles": {"it": "operator"}}):
        write(home, GLOBAL, {"tokens": {"issuers": [{**entry, **something}]}})
        assert len(load(home).tokens.issuers) == 1


def test_entries_of_one_issuer_are_told_apart_by_audience(home: Path) -> None:
    entry = {"issuer": "https://i.example", "team": "t", "role": "developer"}
    write(home, GLOBAL, {"tokens": {"issuers": [{**entry, "audience": "a"}, {**entry, "audience": "b"}]}})
    assert [one.audience for one in load(home).tokens.issuers] == ["a", "b"]
    write(home, GLOBAL, {"tokens": {"issuers": [{**entry, "audience": "a"}, {**entry, "audience": "a", "team": "u"}]}})
    assert "tokens.issuers: the issuer https://i.example has 2 entries for the audience a: leave one" in refused(home)


def test_later_layers_win_value_by_value(home: Path) -> None:
    def limits(per_minute: int, **more: int) -> dict[str, object]:
        return {"limits": {"client": {"requests_per_minute": per_minute, **more}}}

    write(home, GLOBAL, {**limits(1, concurrent=11), "server": {"port": 1001}})
    write(home, SERVICE, {**limits(2), "routing": {"attempts": 2}})
    write(home, "config/secrets/a.yaml", limits(3))
    assert load(home).limits.client.requests_per_minute == 3
    (home / "config/secrets/a.yaml").unlink()
    assert load(home).limits.client.requests_per_minute == 2
    tree, origins = read({"CITADEL_HOME": str(home), "CITADEL_LIMITS__CLIENT__REQUESTS_PER_MINUTE": "4"})
    assert tree.limits.client.requests_per_minute == 4
    assert tree.limits.client.concurrent == 11
    assert tree.server.port == 1001
    assert tree.routing.attempts == 2
    assert origins["limits.client.requests_per_minute"] == "environment CITADEL_LIMITS__CLIENT__REQUESTS_PER_MINUTE"
    assert origins["limits.client.concurrent"] == str(home / GLOBAL)
    assert origins["routing.attempts"] == str(home / SERVICE)
    assert "server.host" not in origins


def test_names_in_a_mapping_are_whoevers_who_sets_it(home: Path) -> None:
    """Each number under them goes over what came before, as any setting does."""
    classes: dict[str, object] = {"heavyweight": {"requests_per_minute": 20}, "mine": {"concurrent": 1}, "none": {}}
    write(home, GLOBAL, {"limits": {"models": {"llama3.2:1b": {"concurrent": 3}}, "classes": classes}})
    tree = load(home)
    assert tree.limits.models == {"llama3.2:1b": QuotaLimit(concurrent=3)}
    usual = QuotaLimit(requests_per_minute=30, concurrent=5)
    heavy = QuotaLimit(requests_per_minute=20, concurrent=2)
    assert tree.limits.classes == {"heavyweight": heavy, "lightweight": usual, "mine": QuotaLimit(concurrent=1)}
    tree = load(
        home,
        CITADEL_LIMITS__MODELS="{llama3.2:1b: {requests_per_minute: 5}}",
        CITADEL_LIMITS__CLASSES__HEAVYWEIGHT__CONCURRENT="0",
        CITADEL_LIMITS__CLASSES__MINE="{concurrent: 4}",
    )
    assert tree.limits.models == {"llama3.2:1b": QuotaLimit(requests_per_minute=5, concurrent=3)}
    assert tree.limits.classes["heavyweight"] == QuotaLimit(requests_per_minute=20)
    assert tree.limits.classes["mine"] == QuotaLimit(concurrent=4)


def test_what_stands_under_a_name_is_known(home: Path) -> None:
    write(home, GLOBAL, {"limits": {"classes": {"heavyweight": {"request_per_minute": 20}}}})
    told = refused(home)
    assert str(home / GLOBAL) in told
    assert "did you mean 'limits.classes.heavyweight.requests_per_minute'?" in told
    write(home, GLOBAL, {"limits": {"classes": {"heavyweight": {"requests_per_minute": "many"}}}})
    assert f"{home / GLOBAL}: limits.classes.heavyweight.requests_per_minute:" in refused(home)
    write(home, GLOBAL, {"limits": {"classes": {"heavyweight": 20}, "models": None}})
    assert "limits.classes.heavyweight must hold keys and values" in refused(home)
    write(home, GLOBAL, {"limits": {"models": None}})
    assert load(home).limits.models == {}


def test_addresses_of_the_running_services_count_less_than_what_an_operator_says(home: Path) -> None:
    (home / "run/services.json").write_text(json.dumps({"DATABASE_URL": "postgresql://one", "REDIS_URL": "redis://r"}))
    assert load(home).database_url == "postgresql://one"
    assert load(home, DATABASE_URL="postgresql://two").database_url == "postgresql://two"
    assert load(home, DATABASE_URL="postgresql://two").redis_url == "redis://r"


def test_commands_know_what_the_running_citadel_was_started_with(home: Path) -> None:
    """Their own environment comes first, files after; a secret never gets into the file."""
    started_with = {
        "CITADEL_SERVER__PORT": "9000",
        "CITADEL_CACHE__CHAT_TTL": "7",
        "CITADEL_SECURITY__SECRET_KEY": LONG,
        "CITADEL_SECURITY__SECRET_KEY_FILE": "/nowhere",
        "DATABASE_URL": "postgresql://u:password@h/d",
        "CITADEL_REDIS_URL": "redis://:password@h",
        "CITADEL_HOME": "/elsewhere",
        "CITADEL_API_KEY": "ctd_secret",
        "PATH": "/bin",
    }
    left = config.outspoken(started_with)
    assert left == {"CITADEL_SERVER__PORT": "9000", "CITADEL_CACHE__CHAT_TTL": "7"}
    write(home, "run/environment.json", json.dumps(left))
    write(home, GLOBAL, {"server": {"port": 1001}, "cache": {"chat_ttl": 1}})
    tree, origins = read({"CITADEL_HOME": str(home), "CITADEL_CACHE__CHAT_TTL": "5"})
    assert (tree.server.port, tree.cache.chat_ttl) == (9000, 5)
    assert origins["server.port"] == "environment of the running Citadel"
    assert origins["cache.chat_ttl"] == "environment CITADEL_CACHE__CHAT_TTL"


def test_an_unknown_key_names_its_place_and_the_nearest_known_one(home: Path) -> None:
    path = write(home, GLOBAL, {"limits": {"client": {"request_per_minute": 5}}})
    message = refused(home)
    assert str(path) in message
    assert "unknown key 'limits.client.request_per_minute'" in message
    assert "did you mean 'limits.client.requests_per_minute'?" in message


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        (
            "limits:\nrequests_per_minute: 600\n",
            "did you mean 'limits.global.requests_per_minute' or 'limits.client.requests_per_minute'?",
        ),
        ("limits:\nclient:\n  concurrent: 6\n", "did you mean 'limits.client.concurrent'?"),
        ("limits:\nclient:\nconcurrent: 6\n", "did you mean 'timeouts.client' or 'limits.client'?"),
        ("server.port: 8080\n", "'server.port' is written as 'server: {port: …}'"),
        (
            "limits:\n  client.concurrent: 1\n",
            "'limits.client.concurrent' is written as 'limits: {client: {concurrent: …}}'",
        ),
        ("server:\n\tport: 8080\n", "line 2, column 1: this is not YAML; a tab, where YAML wants spaces"),
    ],
)
def test_what_is_often_mistaken_in_yaml_is_told_with_its_remedy(home: Path, text: str, hint: str) -> None:
    write(home, GLOBAL, text)
    assert refused(home).endswith(hint)


def test_files_that_nobody_reads_are_known(home: Path) -> None:
    for name in (GLOBAL, SERVICE, "config/secrets/a.yaml"):
        write(home, name, {})
    assert config.unread(home) == []
    strays = [write(home, name, {}) for name in ("config/citadel.yaml", "config/global/citadel.yml")]
    assert config.unread(home) == sorted(strays)


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("CITADEL_PORT", "CITADEL_SERVER__PORT"),
        ("CITADEL_CACHE__CHAT_TTTL", "CITADEL_CACHE__CHAT_TTL"),
        ("CITADEL_DATABASE_URI", "DATABASE_URL"),
    ],
)
def test_an_unknown_variable_is_told_the_nearest_variable(home: Path, variable: str, meant: str) -> None:
    message = refused(home, **{variable: "9000"})
    assert message.startswith(f"environment {variable}: unknown key ")
    assert message.endswith(f"; did you mean {meant}?")
    path = write(home, "value", "9000")
    assert refused(home, **{f"{variable}_FILE": str(path)}).endswith(f"; did you mean {meant}_FILE?")


@pytest.mark.parametrize(
    ("name", "value", "path"),
    [
        ("CITADEL_SERVER__PORT", "http", "server.port"),
        ("CITADEL_SERVER__PORT", "70000", "server.port"),
        ("CITADEL_LIMITS__CLIENT__CONCURRENT", "-1", "limits.client.concurrent"),
        ("CITADEL_LIMITS__GLOBAL__BURST", "1.5", "limits.global.burst"),
        ("CITADEL_TIMEOUTS__CLIENT", "0", "timeouts.client"),
        ("CITADEL_ENV", "staging", "env"),
        ("CITADEL_SECURITY__CORS_ORIGINS", "https://a.example", "security.cors_origins"),
    ],
)
def test_a_wrong_value_names_its_path_and_its_place(home: Path, name: str, value: str, path: str) -> None:
    message = refused(home, **{name: value})
    assert f"environment {name}: {path}: " in message


def test_every_wrong_value_is_told_at_once(home: Path) -> None:
    message = refused(home, CITADEL_SERVER__PORT="x", CITADEL_CACHE__CHAT_TTL="0")
    assert len(message.splitlines()) == 2


def test_a_section_where_a_value_belongs_and_the_reverse_are_refused(home: Path) -> None:
    path = write(home, GLOBAL, {"server": 5})
    assert str(path) in refused(home)
    write(home, GLOBAL, {"server": {"port": {"number": 5}}})
    assert "server.port" in refused(home)


@pytest.mark.parametrize("text", ["a: [", "- one\n- two\n", "\x00", "just text"])
def test_a_file_that_is_no_tree_is_refused_by_name(home: Path, text: str) -> None:
    path = write(home, GLOBAL, text)
    assert str(path) in refused(home)


def test_a_file_that_is_no_utf8_is_refused_by_name(home: Path) -> None:
    path = home / GLOBAL
    path.write_bytes(b"server: {host: \xff}")
    assert str(path) in refused(home)


@pytest.mark.parametrize(
    "text",
    [
        f"security:\n  secret_key: '{LONG}\n",
        f"security:\n  secret_key: *{LONG}\n",
        f"security:\n  secret_key: !{LONG} x\n",
        f"security:\n  secret_key: x: {LONG}\n",
        f"security:\n\tsecret_key: {LONG}\n",
        f"{LONG}",
        f"security: {LONG}",
        "security:\n  secret_key: 2024-99-99\n",
    ],
)
def test_what_is_wrong_in_a_file_of_secrets_is_told_without_them(home: Path, text: str) -> None:
    path = write(home, "config/secrets/citadel.yaml", text)
    message = refused(home)
    assert str(path) in message
    assert "kkkk" not in message


def test_a_mistake_in_yaml_is_told_by_line_and_column(home: Path) -> None:
    path = write(home, GLOBAL, "server:\n  port: 1\n  host: a: b\n")
    assert f"{path}, line 3, column 10: " in refused(home)


def test_a_section_without_settings_changes_nothing(home: Path) -> None:
    """As it is left when all of its lines become comments."""
    write(home, GLOBAL, {"server": {"port": 5}, "limits": {"client": {"concurrent": 7}}})
    write(home, SERVICE, "limits:\n  # client: {concurrent: 8}\nserver: {}\nrouting:\nlog: {level: debug}\n")
    tree = load(home, CITADEL_LIMITS__CLIENT__REQUESTS_PER_MINUTE="4")
    assert tree.limits.client.requests_per_minute == 4
    assert (tree.limits.client.concurrent, tree.server.port, tree.log.level) == (7, 5, "debug")
    write(home, SERVICE, "limits: {client: }")
    assert load(home, CITADEL_LIMITS__CLIENT__REQUESTS_PER_MINUTE="4").limits.client.requests_per_minute == 4


@pytest.mark.parametrize("value", ["5", "none of it", "[client, global]"])
def test_a_value_in_the_place_of_a_section_is_told_with_its_place(home: Path, value: str) -> None:
    path = write(home, SERVICE, f"limits: {value}\n")
    message = refused(home, CITADEL_LIMITS__CLIENT__REQUESTS_PER_MINUTE="4")
    assert message.startswith(f"{path}: limits ")
    path.unlink()
    assert refused(home, CITADEL_LIMITS=value).startswith("environment CITADEL_LIMITS: limits ")


def test_text_that_looks_like_a_date_is_text(home: Path) -> None:
    assert load(home, CITADEL_SERVER__HOST="2024-99-99").server.host == "2024-99-99"


def test_an_empty_file_changes_nothing(home: Path) -> None:
    write(home, GLOBAL, "# nothing yet\n")
    assert load(home) == Config(home=home)


def test_the_environment_takes_lists_numbers_and_switches(home: Path) -> None:
    tree = load(
        home,
        CITADEL_SECURITY__CORS_ORIGINS="[https://a.example, https://b.example]",
        CITADEL_TIMEOUTS__STREAM_IDLE="2.5",
        CITADEL_DEMO_FLEET="0",
        CITADEL_SECURITY__SECRET_KEY="0" * 32,
    )
    assert tree.security.cors_origins == ("https://a.example", "https://b.example")
    assert tree.timeouts.stream_idle == 2.5
    assert tree.demo_fleet is False
    assert tree.secret == "0" * 32


def test_a_secret_may_come_from_a_file(home: Path) -> None:
    path = write(home, "key", f"{LONG}\n")
    tree, origins = read({"CITADEL_HOME": str(home), "CITADEL_SECURITY__SECRET_KEY_FILE": str(path)})
    assert tree.secret == LONG
    assert origins["security.secret_key"] == "environment CITADEL_SECURITY__SECRET_KEY_FILE"
    url = write(home, "url", "postgresql://from-a-file\n")
    assert load(home, DATABASE_URL_FILE=str(url)).database_url == "postgresql://from-a-file"


def test_a_file_of_a_secret_that_is_no_text_is_told(home: Path) -> None:
    (home / "key").write_bytes(b"\xff" * 40)
    assert str(home / "key") in refused(home, CITADEL_SECURITY__SECRET_KEY_FILE=str(home / "key"))


def test_a_file_that_is_not_there_is_told(home: Path) -> None:
    message = refused(home, CITADEL_SECURITY__SECRET_KEY_FILE=str(home / "missing"))
    assert "CITADEL_SECURITY__SECRET_KEY_FILE" in message
    assert str(home / "missing") in message


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_home_of_another_user_is_told(home: Path) -> None:
    home.chmod(0o700)
    os.seteuid(65534)
    try:
        with pytest.raises(ConfigError, match=f"{home}.*: can't be read .Permission denied.*who started Citadel"):
            read({"CITADEL_HOME": str(home)})
    finally:
        os.seteuid(0)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o601])
def test_secrets_that_others_can_reach_are_refused(home: Path, mode: int) -> None:
    path = write(home, "config/secrets/citadel.yaml", {"security": {"secret_key": LONG}}, mode)
    message = refused(home)
    assert f"chmod 600 {path}" in message
    path.chmod(0o600)
    assert load(home).secret == LONG


@pytest.mark.parametrize("key", [None, "short"])
def test_no_secret_or_a_short_one_is_an_error_that_says_how_to_set_one(home: Path, key: str | None) -> None:
    tree = load(home, **({"CITADEL_SECURITY__SECRET_KEY": key} if key else {}))
    with pytest.raises(ConfigError, match="CITADEL_SECURITY__SECRET_KEY"):
        _ = tree.secret


def test_a_made_secret_is_good_private_and_made_once(tmp_path: Path) -> None:
    config.make_secret(tmp_path)
    path = tmp_path / "config/secrets/citadel.yaml"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    first = load(tmp_path).secret
    config.make_secret(tmp_path)
    assert load(tmp_path).secret == first


def test_what_is_shown_has_every_setting_its_place_and_no_secret(home: Path) -> None:
    secret, url = LONG, "postgresql://user:password@host/db"
    rows = {
        name: (value, origin)
        for name, value, origin in shown(
            *read(
                {
                    "CITADEL_HOME": str(home),
                    "CITADEL_SECURITY__SECRET_KEY": secret,
                    "DATABASE_URL": url,
                    "CITADEL_SERVER__PORT": "9",
                }
            )
        )
    }
    assert rows["server.port"] == ("9", "environment CITADEL_SERVER__PORT")
    assert rows["limits.global.burst"] == ("100", "default")
    assert rows["security.secret_key"] == ("(hidden)", "environment CITADEL_SECURITY__SECRET_KEY")
    assert rows["database_url"] == ("(hidden)", "environment DATABASE_URL")
    assert not any(secret in value or "password" in value for value, _ in rows.values())


def test_home_is_absolute_and_has_a_default() -> None:
    assert config.home_folder({}) == config.ROOT / "var"
    assert config.home_folder({"CITADEL_HOME": "relative"}).is_absolute()


@pytest.mark.parametrize(
    ("name", "given", "list_of_it"),
    [
        ("SERVER__ALLOWED_HOSTS", "a.example, b.example", '["a.example", "b.example"]'),
        ("SERVER__ALLOWED_HOSTS", "*", '["*"]'),
        ("WEBHOOKS__RETRY_DELAYS", "5", "[5]"),
    ],
)
def test_how_a_list_is_written_is_told(home: Path, name: str, given: str, list_of_it: str) -> None:
    said = refused(home, **{f"CITADEL_{name}": given})
    assert said.endswith(f": it must be a list, such as {list_of_it}")
    load(home, **{f"CITADEL_{name}": list_of_it})


@pytest.mark.parametrize("given", [".inf", "-.inf", ".nan", "0"])
@pytest.mark.parametrize("name", ["TIMEOUTS__DRAIN", "TIMEOUTS__KEEP_ALIVE", "HEALTH__INTERVAL"])
def test_a_time_that_never_ends_is_refused(home: Path, name: str, given: str) -> None:
    assert f"CITADEL_{name}" in refused(home, **{f"CITADEL_{name}": given})


def test_where_the_home_comes_from_is_shown(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def origin(**environ: str) -> str:
        return next(origin for name, _, origin in shown(*read(environ)) if name == "home")

    assert origin(CITADEL_HOME=str(home)) == "environment CITADEL_HOME"
    monkeypatch.setattr(config, "ROOT", home)
    assert origin() == origin(CITADEL_HOME=str(home / "var")) == "default"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:8002"),
        ("::", "http://[::1]:8002"),
        ("", "http://127.0.0.1:8002"),
        ("10.0.0.7", "http://10.0.0.7:8002"),
        ("fd00::7", "http://[fd00::7]:8002"),
    ],
)
def test_where_clients_on_this_machine_reach_it(host: str, url: str) -> None:
    assert ServerSection(host=host).url == url


def test_certificates_need_a_header_and_a_proxy_to_take_them_from(home: Path) -> None:
    trusted = {"CITADEL_SERVER__TRUSTED_PROXIES": "[loopback]"}
    header = {"CITADEL_CERTIFICATES__HEADER": "Client-Cert"}
    assert "name it in server.trusted_proxies" in refused(home, **header)
    assert load(home, **trusted, **header).certificates.header == "client-cert"
    assert "certificates.header: it must be a header's name" in refused(
        home, **trusted, CITADEL_CERTIFICATES__HEADER="client cert"
    )
    assert load(home, CITADEL_CERTIFICATES__HEADER="").certificates.header is None
