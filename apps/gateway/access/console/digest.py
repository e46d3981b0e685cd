"""How people's passwords are kept."""

from django.contrib.auth.hashers import Argon2PasswordHasher


class Argon2id(Argon2PasswordHasher):
    """Argon2id (RFC 9106), with the least that OWASP's Password Storage Cheat Sheet asks for: 19 MiB, two passes.

    It takes a tenth of the CPU of PBKDF2 with as many rounds as are good for it, so that those who guess do not take
    the time of those who work; Django's own 100 MiB each would be memory that they could take instead.
    """

    time_cost = 2
    memory_cost = 19_456  # KiB
    parallelism = 1
