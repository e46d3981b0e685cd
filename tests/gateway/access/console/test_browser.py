"""The console in a real browser, under its own content security policy: an authenticator app, a key, a passkey."""

from collections.abc import AsyncIterator

import pytest

from tests.gateway.access.console.browser import CHROMIUM, PHONE, Page, page
from tests.gateway.access.console.visitor import CODE, FACTORS, LOGIN, PASSWORD, code
from tests.instance import Instance

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium here")

ASKED_BEFORE_LEAVING = "beforeunload"
"""The page that shows codes once asks before it is left; not those who haven't touched it, as no program does."""
ADD = f"{FACTORS}webauthn/add/"


@pytest.fixture
async def tab(guarded: Instance) -> AsyncIterator[Page]:
    async with page() as opened:
        yield opened
        assert not [one for one in opened.complaints if ASKED_BEFORE_LEAVING not in one]


@pytest.fixture
def url(guarded: Instance) -> str:
    """By a name: browsers take passkeys for no address."""
    return guarded.url.replace("127.0.0.1", "localhost")


async def sign_in(tab: Page, url: str, name: str) -> None:
    await tab.go(f"{url}{LOGIN}")
    await tab.fill("[name=username]", name)
    await tab.fill("[name=password]", PASSWORD)
    await tab.click("#login-form [type=submit]")


async def sign_out(tab: Page, url: str) -> None:
    await tab.go(f"{url}/admin/")
    await tab.click("#logout-form button")
    assert await tab.path() == LOGIN


async def confirm(tab: Page) -> None:
    """The password once more, before a second factor is set up."""
    await tab.fill("[name=password]", PASSWORD)
    await tab.click("main form [type=submit]")


async def test_an_authenticator_app(tab: Page, url: str, name: str) -> None:
    await sign_in(tab, url, name)
    assert await tab.path() == FACTORS
    await tab.go(f"{url}{FACTORS}totp/activate/")
    await confirm(tab)
    secret = await tab.run("document.querySelector('#authenticator_secret, input[disabled]').value")
    assert await tab.run("document.querySelector('main img').naturalWidth > 0"), "the picture is shown"
    await tab.fill("[name=code]", code(secret))
    await tab.click("main form [type=submit]")
    assert await tab.path() == f"{FACTORS}recovery-codes/"
    await sign_out(tab, url)
    await sign_in(tab, url, name)
    assert await tab.path() == CODE
    await tab.fill("[name=code]", code(secret, 1))
    await tab.click("main form [type=submit]")
    assert await tab.path() == "/admin/"


async def test_a_security_key_as_second_factor(tab: Page, url: str, name: str) -> None:
    await tab.call("WebAuthn.addVirtualAuthenticator", options=PHONE)
    await sign_in(tab, url, name)
    await tab.go(f"{url}{ADD}")
    await confirm(tab)
    await tab.click("#mfa_webauthn_add")
    assert await tab.path() == f"{FACTORS}recovery-codes/"
    await sign_out(tab, url)
    await sign_in(tab, url, name)
    assert await tab.path() == CODE
    await tab.click("#mfa_webauthn_authenticate")
    assert await tab.path() == "/admin/"


async def test_a_passkey_alone(tab: Page, url: str, name: str) -> None:
    await tab.call("WebAuthn.addVirtualAuthenticator", options=PHONE)
    await sign_in(tab, url, name)
    await tab.go(f"{url}{ADD}")
    await confirm(tab)
    await tab.run("document.querySelector('[name=passwordless]').checked = true")
    await tab.click("#mfa_webauthn_add")
    await sign_out(tab, url)
    await tab.click("#passkey_login")
    assert await tab.path() == "/admin/"
    await tab.go(f"{url}/admin/gateway/team/add/")
    await tab.fill("#id_name", "Research")
    assert await tab.run("document.querySelector('#id_name').dispatchEvent(new Event('keyup')), true")


async def test_the_provider_by_its_button(tab: Page, url: str, name: str, provider: object) -> None:
    provider.say({"sub": "b", "preferred_username": "by-the-button", "groups": ["it-audit"]})  # type: ignore[attr-defined]
    await tab.go(f"{url}{LOGIN}")
    await tab.click("form.provider[action*=main] [type=submit]")
    assert await tab.path() == "/admin/"
