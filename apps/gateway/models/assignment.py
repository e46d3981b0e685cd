"""Which servers somebody of the console operates, where it is not all of them."""

from django.conf import settings
from django.db import models

from apps.gateway.models.key import check_names


class Assignment(models.Model):
    """The servers of a person. Who has none operates what his role lets him; with one, these and no others."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="assignment")
    servers = models.JSONField(validators=[check_names], help_text="Ids of servers, also of some that are yet to come.")

    class Meta:
        ordering = ["user__username"]

    def __str__(self) -> str:
        return f"{self.user.get_username()}: {', '.join(self.servers)}"
