"""Recording a run as MCAP with protobuf messages and embedded schemas, off the control thread.

The control thread only puts messages on a bounded queue. A thread of the recorder writes them in chunks, whole or not
at all, at least once a second: a crash loses no more than that. A disk that fills up ends the recording, never the
run. Between two writes the file is always a whole MCAP file, which any reader opens.
"""

import contextlib
import logging
import queue
import threading
import time
from pathlib import Path
from typing import Any

from google.protobuf.message import Message
from mcap.data_stream import RecordBuilder
from mcap.records import DataEnd, Footer
from mcap.well_known import MessageEncoding
from mcap.writer import MCAP0_MAGIC, Writer
from mcap_protobuf.schema import register_schema

from sim_bridge.errors import RecordError

logger = logging.getLogger(__name__)

CHUNK_BYTES = 256 * 1024
FLUSH_INTERVAL_S = 1.0
QUEUE_MESSAGES = 4096
CLOSE_TIMEOUT_S = 10.0


def end_mark() -> bytes:
    """What ends an MCAP file that has no index."""
    records: Any = RecordBuilder()
    DataEnd(0).write(records)
    Footer(summary_start=0, summary_offset_start=0, summary_crc=0).write(records)
    return bytes(records.end()) + MCAP0_MAGIC


class WholeChunkFile:
    """Output for the MCAP writer that is a whole MCAP file after every `flush`.

    What it is given waits until then and is written together with an end mark, which the next flush overwrites: all of
    it or nothing. A pipe or device, which cannot be overwritten, gets no end marks.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb", buffering=0)
        self._rewritable = path.is_file()
        self._end_mark = end_mark() if self._rewritable else b""
        self._pending = bytearray()
        self._complete = 0

    def write(self, data: bytes) -> int:
        """Keep the data until `flush`."""
        self._pending += data
        return len(data)

    def tell(self) -> int:
        """Offset after everything written so far, end marks aside."""
        return self._complete + len(self._pending)

    def flush(self, *, last: bool = False) -> None:
        """Write what is pending and an end mark; none where it is the last, which holds the end itself.

        Raises:
            OSError: the disk did not take it; the file is then as the last complete flush left it.
        """
        data, self._pending = bytes(self._pending), bytearray()
        try:
            self._write(data if last else data + self._end_mark)
        except OSError:
            if self._rewritable:
                self._file.truncate(self._complete)
                if self._complete:
                    self._write(self._end_mark)
            raise
        self._complete += len(data)

    def close(self) -> None:
        """Close the file without writing."""
        self._file.close()

    def _write(self, data: bytes) -> None:
        if self._rewritable:
            self._file.seek(self._complete)
        written = 0
        while written < len(data):
            written += self._file.write(data[written:]) or 0


class Recorder:
    """Writes messages to one MCAP file without ever blocking the caller.

    Raises:
        RecordError: if the file exists or cannot be created.
    """

    def __init__(self, path: Path, *, queue_messages: int = QUEUE_MESSAGES) -> None:
        if path.is_file():
            raise RecordError(f"record must be a new file, got existing {path}; choose another name or remove it")
        try:
            self._file = WholeChunkFile(path)
        except OSError as error:
            raise RecordError(f"record must be writable, got {path}: {error.strerror}; choose another place") from error
        self._path = path
        self._queue: queue.Queue[tuple[str, Message, int] | None] = queue.Queue(maxsize=queue_messages)
        self._epoch_ns = time.time_ns() - time.monotonic_ns()
        self._offered = 0
        self._recorded = 0
        self._finished = False
        self.failure = ""
        """Why recording ended early; empty while all is well."""
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """After `close`: messages that are not in the file, for want of queue or disk."""
        return self._offered - self._recorded

    def write(self, topic: str, message: Message, monotonic_ns: int) -> None:
        """Queue one message with the monotonic time it belongs to; it is dropped where that is impossible."""
        self._offered += 1
        if self.failure:
            return
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait((topic, message, monotonic_ns))

    def close(self) -> None:
        """Write what is queued, finish and close the file; gives a stuck disk a bounded time."""
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._queue.put(None, timeout=CLOSE_TIMEOUT_S)
            self._thread.join(CLOSE_TIMEOUT_S)
        if not self._finished and not self.failure:
            self.failure = f"the writer did not finish within {CLOSE_TIMEOUT_S:g} s"
            logger.warning("recording to %s is incomplete: %s", self._path, self.failure)

    def _run(self) -> None:
        try:
            self._write_all()
            self._finished = True
        except OSError as error:
            self.failure = error.strerror or str(error)
            logger.warning("recording to %s stopped, the robot goes on: %s", self._path, self.failure)
        finally:
            self._file.close()

    def _write_all(self) -> None:
        # Untyped: the library asks for a whole IO object and uses `write`, `tell` and `flush` of it.
        file: Any = self._file
        writer: Any = Writer(file, chunk_size=CHUNK_BYTES)
        writer.start()
        channels: dict[str, int] = {}
        sequence = 0
        flush_at_s = time.monotonic() + FLUSH_INTERVAL_S
        while True:
            with contextlib.suppress(queue.Empty):
                item = self._queue.get(timeout=max(flush_at_s - time.monotonic(), 0.0))
                if item is None:
                    break
                topic, message, monotonic_ns = item
                if topic not in channels:
                    schema = register_schema(writer, type(message))
                    channels[topic] = writer.register_channel(topic, MessageEncoding.Protobuf, schema)
                log_time = self._epoch_ns + monotonic_ns
                data = message.SerializeToString()
                writer.add_message(channels[topic], log_time, data, publish_time=log_time, sequence=sequence)
                sequence += 1
            if time.monotonic() >= flush_at_s:
                writer.flush()
                self._recorded = sequence
                flush_at_s = time.monotonic() + FLUSH_INTERVAL_S
        writer.flush()
        self._recorded = sequence
        writer.finish()
        file.flush(last=True)
