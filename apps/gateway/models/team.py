"""The tenant: it owns keys and cache entries."""

from django.db import models


class Team(models.Model):
    """A team, known by its slug."""

    slug = models.SlugField(max_length=64, unique=True)
    name = models.CharField(max_length=128)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["slug"]

    def __str__(self) -> str:
        return self.slug
