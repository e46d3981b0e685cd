"""Words that no password holds, since whoever guesses passwords of this organisation begins with them."""

import unicodedata
from collections.abc import Iterator
from urllib.parse import urlsplit

from django.contrib.auth.models import AbstractBaseUser
from django.core.exceptions import ValidationError

from citadel import config
from citadel.sections import Config

OWN = "citadel"
LEAST = 4
"""Characters of a host's part that is one of the words."""
ALIKE = str.maketrans("01l!3457@$", "oiiieastas")
"""What is written instead of letters, and letters that are taken for each other then."""


class WithoutKnownWords:
    """Django's way to judge a password."""

    def validate(self, password: str, user: AbstractBaseUser | None = None) -> None:
        """ValidationError where it holds one of the words, however it is written."""
        written = plain(password)
        for word in known(config.load()):
            if plain(word) in written:
                raise ValidationError(
                    f"The password holds the word {word!r}, which is guessed first here.", "known_word"
                )

    def get_help_text(self) -> str:
        """What is told before."""
        return "Your password can’t hold a name by which people know this organisation and its systems."


def known(rules: Config) -> Iterator[str]:
    """Those of the settings, this program's name, and what its public host is called."""
    yield from rules.console.password_words
    yield OWN
    host = urlsplit(rules.server.public_url or "").hostname or ""
    yield from (part for part in host.split(".") if len(part) >= LEAST)


def plain(text: str) -> str:
    """Letters and digits alone, without the differences that people make to get round a rule."""
    folded = unicodedata.normalize("NFKC", text).casefold().translate(ALIKE)
    return "".join(filter(str.isalnum, folded))
