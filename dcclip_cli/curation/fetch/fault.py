"""Why did a download fail, and is it worth another try?"""

from __future__ import annotations

from http.client import IncompleteRead, RemoteDisconnected
from ssl import SSLCertVerificationError, SSLError
from typing import TYPE_CHECKING

from dcclip_cli.curation.candidate import Drop

if TYPE_CHECKING:
    from urllib3.exceptions import HTTPError

_LONGEST = 300  # characters of a detail


class Fault(Exception):
    """Ends one try. `again`: another one may go better, after `wait_s` at least. `status`: what the server answered.

    The detail says nothing that differs from run to run: no times, no counts of what had come by then.
    """

    def __init__(
        self, reason: str, detail: str, again: bool = False, wait_s: float = 0, status: int | None = None
    ) -> None:
        detail = detail[:_LONGEST].encode(errors="replace").decode()  # what a server or a list says may be no text
        super().__init__(reason, detail)
        self.drop = Drop(reason, detail)
        self.again = again
        self.wait_s = wait_s
        self.status = status


def timeout(host: str) -> Fault:
    """The fault of a server that took too long. Not worth another try: it had its time."""
    return Fault("url-timeout", f"{host} did not send it all in time")


def fault_of(error: HTTPError, host: str) -> Fault:
    """What an exception of urllib3 comes down to. (Its own text names objects by their place in memory.)"""
    from urllib3 import exceptions

    cause = next((one for one in (*error.args, error.__cause__) if isinstance(one, Exception)), error)
    if isinstance(cause, SSLCertVerificationError):
        return Fault("url-tls", f"{host}: {cause.verify_message}")
    if isinstance(cause, SSLError):
        return Fault("url-tls", f"{host}: {cause.reason or type(cause).__name__}")
    if isinstance(error, exceptions.TimeoutError) or isinstance(cause, TimeoutError):
        return timeout(host)
    lost = isinstance(cause, OSError | RemoteDisconnected | IncompleteRead | exceptions.IncompleteRead)
    kind = "broke the connection" if lost else "did not answer in HTTP"
    return Fault("url-broken", f"{host} {kind} ({type(cause).__name__})", again=lost)
