"""Who belongs to a team in the console, and as what."""

from django.conf import settings
from django.db import models

from apps.gateway.models.team import Team


class Membership(models.Model):
    """A person of the console in a team: owners manage its keys, members and viewers see them; what is of other teams,
    none of them does.
    """

    class Role(models.TextChoices):
        """What somebody is in the team."""

        OWNER = "owner"
        MEMBER = "member"
        VIEWER = "viewer"

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="memberships")
    team = models.ForeignKey(Team, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=8, choices=Role, default=Role.MEMBER)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["user__username"]
        constraints = [models.UniqueConstraint(fields=["user", "team"], name="gateway_member_of_a_team_once")]

    def __str__(self) -> str:
        return f"{self.user.get_username()}, {self.role} of {self.team}"
