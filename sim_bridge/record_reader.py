"""Reading a record back, also one that a crash or a full disk cut short."""

import logging
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.message import DecodeError
from mcap.exceptions import EndOfFile, McapError
from mcap.reader import NonSeekingReader

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
            reader = NonSeekingReader(file, validate_crcs=True, record_size_limit=RECORD_SIZE_LIMIT)
            for schema, _, message in reader.iter_messages(log_time_order=False):
                kind = _TYPES.get(schema.name) if schema is not None else None
                if kind is not None:
                    yield kind.FromString(message.data)
    except EndOfFile:
        if path.stat().st_size == 0:
            raise RecordError(f"record must be an MCAP file, got the empty file {path}") from None
        logger.warning("%s has no end: read up to its last whole chunk", path)
    except OSError as error:
        raise RecordError(f"record must be readable, got {path}: {error.strerror}") from error
    except (McapError, DecodeError) as error:
        raise RecordError(f"record must be an intact MCAP file, got {path}: {error}") from error
