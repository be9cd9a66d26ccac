"""Offers of another protocol in a request are passed over, and the request is answered.

Every JDK HttpClient offers `Upgrade: h2c`, older Apache clients TLS. A server may ignore that and
must then answer (RFC 9110, 7.8). uvicorn's parser stops reading where the body begins, so that the
body arrives empty.
"""

import httptools
from uvicorn.protocols.http import auto
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve_app.api import sockets

OFFERS = (b"upgrade", b"http2-settings")


def install() -> list[object]:
    """Make uvicorn pass over offers; called by Ray Serve in each process that takes HTTP.

    Named in RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH. Returns the middlewares to add: none.
    """
    auto.AutoHTTPProtocol = PlainHttp
    sockets.install()
    return []


class PlainHttp(HttpToolsProtocol):
    """Reads a request with an offer other than WebSocket once more, without the offer."""

    def data_received(self, data: bytes) -> None:
        """Parse what has arrived."""
        self._unset_keepalive_if_required()
        rest: memoryview | None = memoryview(data)
        try:
            while rest is not None:
                rest = self._fed(rest)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def _fed(self, data: memoryview) -> memoryview | None:
        """Parse up to the end of an offer that is passed over; return what follows it, if any."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._passes_over():
                head = self._head()
                # A task may be under way for an earlier request: only the parser is new.
                self.parser = httptools.HttpRequestParser(self)
                self.parser.feed_data(head)
                return data[upgrade.args[0] :]
            if self._should_upgrade():
                self.handle_websocket_upgrade()
        return None

    def on_headers_complete(self) -> None:
        """Begin to answer, unless the request will be read once more."""
        if not self._passes_over():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """End the body, unless the request will be read once more."""
        if not self._passes_over():
            super().on_message_complete()

    def _passes_over(self) -> bool:
        """Whether the parser stopped at an offer that is not taken; CONNECT is none."""
        is_offer = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        return is_offer and not self._should_upgrade()

    def _head(self) -> bytes:
        """Return the request's line and headers without the offer."""
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, version)]
        lines += [b"%s: %s" % pair for pair in self.headers if pair[0] not in OFFERS]
        return b"\r\n".join(lines) + b"\r\n\r\n"
