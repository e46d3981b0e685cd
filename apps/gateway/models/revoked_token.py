"""A token of ours that was revoked before its end."""

from django.db import models


class RevokedToken(models.Model):
    """One such token, until some time after its end. The higher the id, the later it was revoked: workers read what
    lies above the last one they know.
    """

    jti = models.CharField(max_length=32, unique=True)
    key_id = models.CharField(max_length=32, db_index=True, help_text="Of the key that gave it out.")
    ends = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return self.jti
