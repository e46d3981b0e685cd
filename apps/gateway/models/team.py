"""The tenant: it owns keys and cache entries."""

from django.db import models


class Team(models.Model):
    """A team, known by its slug. Limits are of all its keys together; 0 and null are none."""

    slug = models.SlugField(max_length=64, unique=True)
    name = models.CharField(max_length=128)
    requests_per_minute = models.PositiveIntegerField(null=True, blank=True)
    tokens_per_minute = models.PositiveIntegerField(null=True, blank=True)
    concurrent = models.PositiveIntegerField(null=True, blank=True)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["slug"]

    def __str__(self) -> str:
        return self.slug
