"""A machine that answers inference."""

from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models

SERVER_ID = RegexValidator(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z", "letters, digits, '.', '_' and '-', at most 64")
TOKEN = RegexValidator(r"\A[!-~]*\Z", "visible ASCII characters without spaces")


class Server(models.Model):
    """One server of the registry. `state` is what the operator says; how it is, the workers see for themselves."""

    class Kind(models.TextChoices):
        """What speaks on the other side."""

        OPENAI = "openai", "OpenAI-compatible"
        OLLAMA = "ollama", "Ollama"
        LLAMACPP = "llamacpp", "llama.cpp"
        VLLM = "vllm", "vLLM"

    class State(models.TextChoices):
        """Whether it gets traffic."""

        ACTIVE = "active"
        DRAINING = "draining"
        DISABLED = "disabled"

    server_id = models.CharField(max_length=64, unique=True, validators=[SERVER_ID])
    scheme = models.CharField(max_length=5, choices=[("http", "http"), ("https", "https")], default="http")
    hostname = models.CharField(max_length=253)
    port = models.PositiveIntegerField(validators=[MinValueValidator(1), MaxValueValidator(65535)])
    base_path = models.CharField(max_length=200, blank=True, help_text="What comes before /v1, where there is more.")
    kind = models.CharField(max_length=16, choices=Kind.choices, default=Kind.OPENAI)
    state = models.CharField(max_length=16, choices=State.choices, default=State.ACTIVE)
    weight = models.PositiveIntegerField(default=1, validators=[MinValueValidator(1), MaxValueValidator(1000)])
    api_key = models.CharField(
        max_length=512, blank=True, validators=[TOKEN], help_text="Sent to this server as a bearer token."
    )
    registered = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["server_id"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(port__gte=1, port__lte=65535), name="orchestration_server_port_is_a_tcp_port"
            ),
            models.CheckConstraint(condition=models.Q(weight__gte=1), name="orchestration_server_weight_is_positive"),
        ]

    def __str__(self) -> str:
        return self.server_id

    @property
    def url(self) -> str:
        """Its address, without a slash at the end."""
        host = f"[{self.hostname}]" if ":" in self.hostname else self.hostname
        return f"{self.scheme}://{host}:{self.port}{self.base_path}"
