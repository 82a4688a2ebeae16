"""Why the other side of a connection gave nothing, in plain words: no names of classes, no numbers of errors."""

from __future__ import annotations

import errno
import http.client
import socket
import ssl

_BROKEN = "the connection was broken off"
_NO_WAY = "no network leads there"
_BY_NUMBER = {
    errno.ECONNREFUSED: "the connection is refused, nothing listens there",
    errno.ECONNRESET: _BROKEN,
    errno.ECONNABORTED: _BROKEN,
    errno.EPIPE: _BROKEN,
    errno.EHOSTUNREACH: _NO_WAY,
    errno.ENETUNREACH: _NO_WAY,
    errno.EINVAL: _NO_WAY,  # a link-local address that names no link
}
_NO_TLS = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "HTTP_REQUEST"})


def reason_of(error: BaseException) -> str:
    """What an error of the system, of TLS or of HTTP means, also where a library has wrapped it in its own.

    Errors without a number that this program made itself keep their words.
    """
    chain = _chain(error)
    known = [text for one in chain if (text := _text(one)) is not None]
    said = known[-1] if known else "there is no answer"
    return f"its proxy does not help, {said}" if any(hasattr(one, "original_error") for one in chain) else said


def _chain(error: BaseException) -> list[BaseException]:
    """The error and those that it was made of, the first cause last."""
    found = [error]
    for one in found:
        parts = (*one.args, getattr(one, "reason", None), one.__cause__)
        found += [part for part in parts if isinstance(part, BaseException) and part not in found]
    return found


def _text(error: BaseException) -> str | None:
    match error:
        case socket.gaierror():
            return "no server of names answers" if error.errno == socket.EAI_AGAIN else "its name is not known"
        case ssl.SSLCertVerificationError():
            return f"its certificate is not trusted, {error.verify_message}"
        case ssl.SSLEOFError():
            return _BROKEN
        case ssl.SSLError():
            words = (error.reason or "for no reason").replace("_", " ").lower()
            return "what answers there does not speak TLS" if error.reason in _NO_TLS else f"TLS fails, {words}"
        case TimeoutError():
            return "there is no answer in time"
        case http.client.RemoteDisconnected():
            return "the connection was closed without an answer"
        case http.client.IncompleteRead():
            return "the answer was broken off"
        case http.client.BadStatusLine() | http.client.UnknownProtocol():
            return "what answers there does not speak HTTP"
        case http.client.InvalidURL() | ValueError():  # of a name that idna does not know, too
            return "its address cannot be used"
        case http.client.HTTPException():
            return "the head of the answer is too long"
        case OSError():
            return _BY_NUMBER.get(error.errno or 0) or error.strerror or str(error)
    return None
