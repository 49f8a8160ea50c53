"""A TCP proxy that does to connections what networks do: cuts, delays, silence, one side closed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

_PIECE = 64 * 1024
_Ends = tuple[asyncio.StreamWriter, asyncio.StreamWriter]


See = Callable[[bytes, bool], bool]
"""Sees each piece of a connection, and whether the client sent it; True cuts the connection there."""


class Proxy:
    """Forwards to one local port. ``delay`` is added to every piece; ``open`` unset holds all pieces back.

    ``watch`` returns what sees the pieces of a new connection.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._ends: set[_Ends] = set()
        self.port = 0
        self.delay = 0.0
        self.refuses = False
        self.watch: Callable[[], See] | None = None
        self.open = asyncio.Event()
        self.open.set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuses:
            writer.transport.abort()
            return
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        ends = (writer, far_writer)
        self._ends.add(ends)
        see = self.watch() if self.watch else None
        try:
            await asyncio.gather(
                self._pump(reader, far_writer, ends, see), self._pump(far_reader, writer, ends, see)
            )
        finally:
            self._ends.discard(ends)
            for end in ends:
                end.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ends: _Ends, see: See | None
    ) -> None:
        with suppress(OSError, RuntimeError):  # RuntimeError: this side was ended before
            while piece := await reader.read(_PIECE):
                if self.delay:
                    await asyncio.sleep(self.delay)
                await self.open.wait()
                if see is not None and see(piece, writer is ends[1]):
                    for end in ends:
                        end.transport.abort()
                    return
                writer.write(piece)
                await writer.drain()
        with suppress(OSError, RuntimeError):
            writer.write_eof()

    def cut(self) -> None:
        """Reset every connection."""
        for near, far in list(self._ends):
            near.transport.abort()
            far.transport.abort()

    def half_close(self) -> None:
        """End what the server sends on every connection; what the client sends still arrives."""
        for near, _ in list(self._ends):
            with suppress(OSError, RuntimeError):
                near.write_eof()


@asynccontextmanager
async def proxy(target: int) -> AsyncIterator[Proxy]:
    new = Proxy(target)
    server = await asyncio.start_server(new.accept, "127.0.0.1", 0)
    new.port = server.sockets[0].getsockname()[1]
    try:
        yield new
    finally:
        server.close()
        new.cut()
