"""Names that clients ask for."""

from django.db import models

from apps.orchestration.models.server import Server, check_labels


class ServedModel(models.Model):
    """A model that a server holds."""

    class NamedBy(models.TextChoices):
        """Whose word it is that the server has it; a later one of these counts more. Empty: it was found there."""

        REGISTRATION = "registration"
        OPERATOR = "operator"

    server = models.ForeignKey(Server, on_delete=models.CASCADE, related_name="models")
    name = models.CharField(max_length=255)
    context_length = models.PositiveIntegerField(null=True, blank=True, help_text="In tokens, where known.")
    owned_by = models.CharField(max_length=64, blank=True)
    capabilities = models.JSONField(
        null=True,
        blank=True,
        validators=[check_labels],
        help_text='What it can do, such as ["chat", "tools", "vision"]; empty where its server does not say.',
    )
    named_by = models.CharField(
        max_length=12,
        choices=NamedBy.choices,
        blank=True,
        default="",
        db_default="",
        help_text="Who named it: it stays though its server does not list it, and what a registration has named until "
        "one no longer does. Empty: it was found there.",
    )

    said = models.JSONField(
        default=list,
        db_default=[],
        blank=True,
        help_text="What of it operators have said, by the fields' names: in that its server changes nothing.",
    )
    ways = models.JSONField(
        default=list,
        db_default=[],
        blank=True,
        editable=False,
        help_text="Through which other Citadels its server has it, by their marks, where it has told that.",
    )

    class Meta:
        ordering = ["name"]
        verbose_name = "model"
        constraints = [models.UniqueConstraint(fields=["server", "name"], name="orchestration_model_once_per_server")]

    def __str__(self) -> str:
        return self.name


class Alias(models.Model):
    """A name that stands for another model."""

    name = models.CharField(max_length=255, unique=True)
    model = models.CharField(max_length=255)

    class Meta:
        ordering = ["name"]
        verbose_name_plural = "aliases"
        constraints = [
            models.CheckConstraint(condition=~models.Q(name=models.F("model")), name="orchestration_alias_is_another")
        ]

    def __str__(self) -> str:
        return f"{self.name} → {self.model}"
