"""What every port has in common: a client without its socket, bytes in and bytes out."""

LONGEST_LINE = 4096  # bytes


class ProtocolError(Exception):
    """A client breaks the protocol; it is cut off and nobody else notices."""


class Client:
    """One client. `over` is True when it has asked to be let go.

    While more than `backlog` bytes wait to be sent, `cycle` is not asked: a robot drops packages for a slow client.
    """

    backlog = 1 << 20
    over = False

    def greeting(self) -> bytes:
        """Return what a new client is told first."""
        return b""

    def feed(self, data: bytes) -> bytes:
        """Take what the client has sent, in pieces of any size, and return the answers; may raise ProtocolError."""
        raise NotImplementedError

    def cycle(self) -> bytes:
        """Return what the client gets at the end of this control cycle."""
        return b""

    def close(self) -> None:
        """Let go of what the client held."""


class LineClient(Client):
    """A client that sends lines of text."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """Answer every line that is complete."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if max(map(len, [*lines, self._rest])) > LONGEST_LINE:
            raise ProtocolError("a line without end")
        return b"".join(self.answer(line.decode("latin-1").rstrip("\r")) for line in lines if not self.over)

    def answer(self, line: str) -> bytes:
        """Return the answer to one line."""
        raise NotImplementedError
