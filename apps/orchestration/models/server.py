"""A machine that answers inference."""

from collections.abc import Collection
from ipaddress import ip_address
from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models, transaction

from apps.orchestration.moving import without_version
from citadel import config
from citadel.addresses import AddressRefused, NoAddress, of_fleet

SERVER_ID = RegexValidator(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z", "letters, digits, '.', '_' and '-', at most 64")
TOKEN = RegexValidator(r"\A[!-~]*\Z", "visible ASCII characters without spaces")
RESERVED_IDS = frozenset({"list", "register"})
"""Ids that would stand where another address of the API is."""
PATH = RegexValidator(r"\A(/[!-~]*)?\Z", "a path that begins with /")
HOSTNAME = RegexValidator(
    r"\A([A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*)\Z", "a host's name or address"
)
BASE_PATH = RegexValidator(r"\A(/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)*\Z", "a path like /services/llm")
MOST_LABELS = 256
LONGEST_LABEL = 255


def check_labels(value: Any) -> None:
    """ValidationError unless it is a list of words, or an object whose keys are: as servers tell their capabilities."""
    names: Collection[Any] = value if isinstance(value, (list, dict)) else ()
    if not isinstance(value, (list, dict)) or len(names) > MOST_LABELS:
        raise ValidationError(f"a list of at most {MOST_LABELS} words, or an object with such keys")
    if not all(isinstance(name, str) and 0 < len(name) <= LONGEST_LABEL and "\0" not in name for name in names):
        raise ValidationError(f"words of 1 to {LONGEST_LABEL} characters")


class Servers(models.QuerySet["Server"]):
    """Servers, deleted in an order that no other transaction crosses."""

    def delete(self) -> tuple[int, dict[str, int]]:
        """Locks the rows first: what is found of a server's models is kept under that lock too, and each of the two
        would else hold what the other one waits for.
        """
        with transaction.atomic():
            list(self.order_by("pk").select_for_update().values_list("pk", flat=True))
            return super().delete()

    delete.alters_data = True  # type: ignore[attr-defined]  # Django's marks: not for templates, nor on managers
    delete.queryset_only = True  # type: ignore[attr-defined]


class Server(models.Model):
    """One server of the registry. `state` is what the operator says; how it is, probes and traffic tell.

    A `kind` that nobody has said is found out by asking; until then it is spoken to as OpenAI's API has it.
    """

    class Kind(models.TextChoices):
        """What speaks on the other side."""

        OPENAI = "openai", "OpenAI-compatible"
        OLLAMA = "ollama", "Ollama"
        LLAMACPP = "llamacpp", "llama.cpp"
        VLLM = "vllm", "vLLM"
        CITADEL = "citadel", "Citadel"
        HTTP = "http", "plain HTTP"

    class State(models.TextChoices):
        """Whether it gets traffic."""

        ACTIVE = "active"
        DRAINING = "draining"
        DISABLED = "disabled"
        PENDING = "pending", "Pending approval"

    server_id = models.CharField(max_length=64, unique=True, validators=[SERVER_ID])
    scheme = models.CharField(max_length=5, choices=[("http", "http"), ("https", "https")], default="http")
    hostname = models.CharField(max_length=253, validators=[HOSTNAME])
    port = models.PositiveIntegerField(validators=[MinValueValidator(1), MaxValueValidator(65535)])
    base_path = models.CharField(
        max_length=200, blank=True, validators=[BASE_PATH], help_text="What comes before /v1, where there is more."
    )
    kind = models.CharField(
        max_length=16, choices=Kind.choices, blank=True, help_text="Empty: to be found out by asking the server."
    )
    role = models.CharField(max_length=100, blank=True, help_text="What it is for, in the organisation's own words.")
    capabilities = models.JSONField(default=list, blank=True, validators=[check_labels])
    services = models.JSONField(default=list, blank=True, validators=[check_labels])
    state = models.CharField(max_length=16, choices=State.choices, default=State.ACTIVE)
    weight = models.PositiveIntegerField(default=1, validators=[MinValueValidator(1), MaxValueValidator(1000)])
    max_concurrent = models.PositiveIntegerField(
        default=0, validators=[MaxValueValidator(100_000)], help_text="Requests at once; 0 is no limit."
    )
    api_key = models.CharField(
        max_length=512, blank=True, validators=[TOKEN], help_text="Sent to this server as a bearer token."
    )
    health_endpoint = models.CharField(
        max_length=200, blank=True, validators=[PATH], help_text="Asked by probes instead of what its kind has."
    )
    models_endpoint = models.CharField(
        max_length=200, blank=True, validators=[PATH], help_text="Asked for models instead of what its kind has."
    )
    metrics_endpoint = models.CharField(
        max_length=200, blank=True, validators=[PATH], help_text="Asked for load instead of what its kind has."
    )
    registered_by = models.CharField(
        max_length=64, blank=True, editable=False, help_text="Id of the key that registered it; empty: an operator."
    )
    registered = models.DateTimeField(auto_now_add=True)
    listed = models.BooleanField(
        default=False, db_default=False, editable=False, help_text="Its list of models has been read where it is now."
    )

    objects = Servers.as_manager()

    looked_up = False
    """Whether its address has been looked at just now, and `clean` need not wait for that once more."""

    class Meta:
        ordering = ["server_id"]
        permissions = [("operate_server", "Can drain, enable, disable and ask servers")]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(port__gte=1, port__lte=65535), name="orchestration_server_port_is_a_tcp_port"
            ),
            models.CheckConstraint(condition=models.Q(weight__gte=1), name="orchestration_server_weight_is_positive"),
        ]

    def __str__(self) -> str:
        return self.server_id

    def clean(self) -> None:
        """ValidationError where Citadel may not call the server's address. A name that leads nowhere may yet do so:
        it is looked at again before each connection. A /v1 at the end of the base path is none of it.
        """
        super().clean()
        for name, value in without_version(vars(self)).items():
            setattr(self, name, value)
        if self.server_id in RESERVED_IDS:
            raise ValidationError({"server_id": f"'{self.server_id}' is taken"})
        if not self.hostname or not self.port:  # which their own fields' errors tell
            return
        _check_ipv6(self.hostname)
        if self.looked_up:
            return
        try:
            of_fleet(config.load()).check(self.hostname, self.port)
        except NoAddress:
            return
        except AddressRefused as refused:
            raise ValidationError({"hostname": f"{refused}; see security.fleet_networks"}) from None

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        """As for many: its row is locked first."""
        with transaction.atomic():
            list(Server.objects.select_for_update().filter(pk=self.pk).values_list("pk", flat=True))
            return super().delete(*args, **kwargs)

    @property
    def url(self) -> str:
        """Its address, without a slash at the end."""
        host = f"[{self.hostname}]" if ":" in self.hostname else self.hostname
        return f"{self.scheme}://{host}:{self.port}{self.base_path}"


def _check_ipv6(hostname: str) -> None:
    """ValidationError for what only looks like an address: cafe:8000 is a name with a port."""
    if ":" in hostname:
        try:
            ip_address(hostname)
        except ValueError:
            raise ValidationError({"hostname": "a host's name or address; its port is a field of its own"}) from None
