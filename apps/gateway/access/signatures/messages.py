"""HTTP Message Signatures (RFC 9421), as far as they are taken here: what is signed, rebuilt from the request. Pure.

One signature, of components without parameters. It must cover the method, where the request goes to and, where there is
a body, its Content-Digest (RFC 9530), and say `created`, `nonce` and `keyid`.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from apps.gateway.access.signatures.digests import claimed
from apps.gateway.access.signatures.signed import ED25519, HMAC, Message, Signed, invalid
from apps.gateway.access.structured import LABEL, byte_sequences

INPUT, SIGNATURE, DIGEST = b"signature-input", b"signature", b"content-digest"
LONGEST = 4096
"""Bytes of a Signature-Input."""
MOST_COMPONENTS = 50
NONCE_LENGTHS = range(16, 129)
TARGETS = (frozenset({b"@target-uri"}), frozenset({b"@request-target"}), frozenset({b"@path", b"@query"}))
"""Each says where a request goes to."""
UNREADABLE = (
    'signature-input must be one signature like sig1=("@method" "@target-uri" "content-digest");created=1700000000;'
    'keyid="…";nonce="…", of components without parameters'
)
_COMPONENT = rb'"@?[a-z0-9!#$%&\'*+.^_`|~-]+"'
_TEXT = rb'"(?:[ !#-\[\]-~]|\\["\\])*"'
_PARAMETER = rb"; *(" + LABEL + rb")=(" + _TEXT + rb"|-?[0-9]{1,15})"
_PARAMETERS = re.compile(_PARAMETER)
_INPUT = re.compile(
    rb"(" + LABEL + rb")=\( *(?:(" + _COMPONENT + rb"(?: +" + _COMPONENT + rb")*) *)?\)((?:" + _PARAMETER + rb")*)"
)
_NUMBERS = frozenset({b"created", b"expires"})
_TEXTS = frozenset({b"keyid", b"nonce", b"alg", b"tag"})
_REQUIRED = (b"created", b"keyid", b"nonce")
_DERIVED: Mapping[bytes, Callable[[Message], bytes]] = {
    b"@method": lambda message: message.method,
    b"@target-uri": lambda message: message.scheme + b"://" + message.authority + message.target,
    b"@authority": lambda message: message.authority,
    b"@scheme": lambda message: message.scheme,
    b"@request-target": lambda message: message.target,
    b"@path": lambda message: message.path,
    b"@query": lambda message: b"?" + message.query,
}
"""Components that are no headers (RFC 9421, 2.2)."""


def read(message: Message) -> Signed:
    """What the headers say; Unauthenticated says what is wrong with them."""
    label, components, parameters = _input(message.headers.get(INPUT, b"").strip(b" \t"))
    _check_cover(components, has_body=bool(message.body))
    said = _said(parameters)
    nonce = said[b"nonce"]
    if len(nonce) not in NONCE_LENGTHS:
        raise invalid("its 'nonce' must have 16 to 128 characters")
    algorithm = said[b"alg"].decode() if b"alg" in said else HMAC
    if algorithm not in (HMAC, ED25519):
        raise invalid(f"its 'alg' must be {HMAC} or {ED25519}")
    return Signed(
        said[b"keyid"].decode(),
        int(said[b"created"]),
        int(said[b"expires"]) if b"expires" in said else None,
        nonce,
        algorithm,
        _signature(message.headers.get(SIGNATURE, b""), label),
        signature_base(message, components, parameters),
        claimed(message.headers[DIGEST]) if DIGEST in components else {},
    )


def _input(field: bytes) -> tuple[bytes, list[bytes], list[tuple[bytes, bytes]]]:
    """Label, components and parameters, in their order."""
    if not field:
        raise invalid("the header signature-input is missing")
    found = _INPUT.fullmatch(field) if len(field) <= LONGEST else None
    if found is None:
        raise invalid(UNREADABLE)
    components = [quoted[1:-1] for quoted in (found[2] or b"").split()]
    return found[1], components, _PARAMETERS.findall(found[3])


def _check_cover(components: Sequence[bytes], *, has_body: bool) -> None:
    covered = frozenset(components)
    if len(covered) < len(components) or len(components) > MOST_COMPONENTS:
        raise invalid(f"it covers a component twice, or more than {MOST_COMPONENTS}")
    if b"@method" not in covered:
        raise invalid("it must cover '@method'")
    if not any(target <= covered for target in TARGETS):
        raise invalid("it must cover '@target-uri', '@request-target', or '@path' and '@query'")
    if has_body and DIGEST not in covered:
        raise invalid("there is a body: it must cover 'content-digest'")


def _said(parameters: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The parameters by name, texts without their quotes."""
    said: dict[bytes, bytes] = {}
    for name, value in parameters:
        is_number = name in _NUMBERS
        if not is_number and name not in _TEXTS:
            raise invalid(f"its parameter '{name[:64].decode()}' is not known here")
        if name in said:
            raise invalid(f"it says '{name.decode()}' twice")
        if value.startswith(b'"') is is_number:
            raise invalid(f"its '{name.decode()}' must be {'a whole number' if is_number else 'a text in quotes'}")
        said[name] = value if is_number else value[1:-1]
    for name in _REQUIRED:
        if name not in said:
            raise invalid(f"it must say '{name.decode()}'")
    return said


def _signature(field: bytes, label: bytes) -> bytes:
    if not field:
        raise invalid("the header signature is missing")
    members = byte_sequences(field)
    if members is None or members.keys() != {label}:
        raise invalid(
            "the header signature must hold one signature like sig1=:BASE64:, by the label of signature-input"
        )
    return members[label]


def signature_base(message: Message, components: Sequence[bytes], parameters: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The signature base (RFC 9421, 2.5), its last line serialized anew (RFC 9651, 4.1)."""
    lines = [b'"%b": %b' % (name, _value(message, name)) for name in components]
    covered = b" ".join([b'"%b"' % name for name in components])
    said = b"".join(
        [b";%b=%b" % (name, value if value.startswith(b'"') else b"%d" % int(value)) for name, value in parameters]
    )
    return b"\n".join((*lines, b'"@signature-params": (%b)%b' % (covered, said)))


def _value(message: Message, component: bytes) -> bytes:
    if component.startswith(b"@"):
        derive = _DERIVED.get(component)
        if derive is None:
            raise invalid(f"it covers '{component[:64].decode()}', which is no component that is known here")
        return derive(message)
    value = message.headers.get(component)
    if value is None:
        raise invalid(f"it covers the header '{component[:64].decode()}', which is missing")
    return value.strip(b" \t")
