"""HTTP below the Hub's client: no wait without an end, and none that is not said.

huggingface_hub sets no time limits, so a connection that dies without a word is waited for forever.
Where an answer asks for a pause, of an hour perhaps, its uploads wait that long in silence.
Source: huggingface_hub 2.4, utils/_http.py.
"""

import httpx2
from huggingface_hub.utils import hf_raise_for_status
from huggingface_hub.utils._http import default_client_factory

# of one step, not of a call: the client makes six attempts at an upload, 12 minutes in all
STEP_SECONDS = 120.0
CONNECT_SECONDS = 30.0


def client() -> httpx2.Client:
    """Return an HTTP client for `huggingface_hub.set_client_factory`.

    Raises httpx2.TimeoutException where no byte moves for STEP_SECONDS, and HfHubHTTPError at once
    for an answer that asks to come back later.
    """
    made = default_client_factory()
    hooks = made.event_hooks
    made.event_hooks = {
        "request": [*hooks["request"], _limit],
        "response": [*hooks["response"], _pass_on],
    }
    return made


def _limit(request: httpx2.Request) -> None:
    """Limit the steps of a request, which the client asks to be made without limits."""
    request.extensions["timeout"] = {
        "connect": CONNECT_SECONDS,
        "read": STEP_SECONDS,
        "write": STEP_SECONDS,
        "pool": None,  # its threads wait for each other
    }


def _pass_on(response: httpx2.Response) -> None:
    is_later = response.status_code == httpx2.codes.TOO_MANY_REQUESTS
    if response.is_error and (is_later or "Retry-After" in response.headers):
        response.read()
        hf_raise_for_status(response)
