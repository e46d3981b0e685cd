"""What one test server is: its kind, its models, how much it says."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["llamacpp", "ollama", "vllm", "openai"]
Ability = Literal["chat", "embeddings"]


@dataclass(slots=True)
class Backend:
    """The settings of one backend and the little it remembers: which models are in memory, how busy it is."""

    kind: Kind = "openai"
    models: list[str] = field(default_factory=lambda: ["test-model"])
    tokens: int = 16  # content chunks of an answer unless the request asks for fewer
    dimensions: int = 384
    context_length: int = 8192  # tokens; a longer prompt is refused, but by Ollama, which cuts it
    abilities: tuple[Ability, ...] = ("chat", "embeddings")
    api_key: str = ""
    load_seconds: float = 0.0  # what the first request to a model that is not in memory waits
    parallel: int = 0  # requests at once, the rest wait; 0 is no limit
    started: float = field(default_factory=time.time)
    loaded: dict[str, float] = field(default_factory=dict)  # model: when it came into memory, seconds since 1970
    busy: int = 0
    answered: int = 0
    tokens_out: int = 0

    def __post_init__(self) -> None:
        """Only Ollama loads a model when it is first asked for."""
        if self.kind != "ollama":
            self.loaded = dict.fromkeys(self.models, self.started)

    def knows(self, model: str) -> bool:
        """Whether a request for ``model`` is served. llama.cpp has one model and never looks at the name."""
        known = {*self.models, *map(self.own_name, self.models)}
        return self.kind == "llamacpp" or model in known or f"{model}:latest" in known

    def own_name(self, model: str) -> str:
        """A model as the server itself names it: Ollama with its tag, which may be left out when asking."""
        tagged = self.kind != "ollama" or ":" in model.rpartition("/")[2]
        return model if tagged else f"{model}:latest"

    def load(self, model: str) -> float:
        """Bring ``model`` into memory; gives the seconds that this takes, 0 when it is there."""
        model = self.own_name(model)
        if model in self.loaded:
            return 0.0
        self.loaded[model] = time.time()
        return self.load_seconds
