"""Reading a record back, also one that a crash or a full disk cut short."""

import logging
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import zstandard
from google.protobuf.message import DecodeError
from mcap.exceptions import EndOfFile, McapError
from mcap.opcode import Opcode
from mcap.reader import NonSeekingReader
from mcap.writer import MCAP0_MAGIC

from protos import record_pb2
from sim_bridge.errors import RecordError

logger = logging.getLogger(__name__)

RecordMessage = record_pb2.Run | record_pb2.Tick | record_pb2.Episode
_TYPES: dict[str, type[RecordMessage]] = {
    kind.DESCRIPTOR.full_name: kind for kind in (record_pb2.Run, record_pb2.Tick, record_pb2.Episode)
}
RECORD_SIZE_LIMIT = 64 * 1024 * 1024


def read_record(path: Path) -> Iterator[RecordMessage]:
    """The messages of a record in the order they were written; messages of other types are passed over.

    A file without an end is read up to its last whole chunk, with a warning.

    Raises:
        RecordError: if the file cannot be opened, is no MCAP file, or is damaged.
    """
    try:
        with path.open("rb") as file:
            # Untyped: the library asks for a whole IO object and only reads.
            stream: Any = _WholeRecords(file, path.stat().st_size)
            reader = NonSeekingReader(stream, validate_crcs=True, record_size_limit=RECORD_SIZE_LIMIT)
            for schema, _, message in reader.iter_messages(log_time_order=False):
                kind = _TYPES.get(schema.name) if schema is not None else None
                if kind is not None:
                    yield kind.FromString(message.data)
    except EndOfFile:
        if path.stat().st_size < len(MCAP0_MAGIC):
            raise RecordError(f"record must be an MCAP file, got {path} of {path.stat().st_size} bytes") from None
        logger.warning("%s has no end: read up to its last whole chunk", path)
    except OSError as error:
        raise RecordError(f"record must be readable, got {path}: {error.strerror}") from error
    except (McapError, DecodeError, ValueError, struct.error, zstandard.ZstdError) as error:
        raise RecordError(f"record must be an intact MCAP file, got {path}: {error}") from error


class _WholeRecords:
    """The file up to the end of its last complete record, so that a cut-off one looks like the end of the file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._end = len(MCAP0_MAGIC)
        opcode, header = 0, struct.Struct("<BQ")
        while opcode != Opcode.FOOTER and self._end + header.size <= size:
            file.seek(self._end)
            opcode, length = header.unpack(file.read(header.size))
            end_mark = len(MCAP0_MAGIC) if opcode == Opcode.FOOTER else 0
            if self._end + header.size + length + end_mark > size:
                break
            self._end += header.size + length + end_mark
        file.seek(0)

    def read(self, size: int = -1) -> bytes:
        remaining = self._end - self._file.tell()
        return self._file.read(min(size, remaining) if size >= 0 else remaining)
