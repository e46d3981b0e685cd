"""Another Citadel: what it serves, its servers hold."""

import dataclasses

from apps.orchestration.dialects import openai

DIALECT = dataclasses.replace(openai.DIALECT, health_path="/health/")
