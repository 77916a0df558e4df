"""Log lines for people or for machines, each with the ids of the request and session it belongs to.

The standard library does it: every module and library here logs through it already, so a formatter is all there is to add.
"""

import json
import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Literal

LogFormat = Literal["text", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

_NOTHING: Mapping[str, str] = MappingProxyType({})
_bound: ContextVar[Mapping[str, str]] = ContextVar("bound", default=_NOTHING)


def bind(**fields: str) -> None:
    """Adds fields to every line that this task, and tasks begun by it, log from now on."""
    _bound.set({**_bound.get(), **fields})


def bound() -> Mapping[str, str]:
    """The fields of this task."""
    return _bound.get()


def configure(style: LogFormat, level: LogLevel, **fields: str) -> None:
    """Sends the whole process's log to standard error; `fields` are on every line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(fields) if style == "json" else TextLines(fields))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


class TextLines(logging.Formatter):
    """`TIME LEVEL LOGGER: MESSAGE [field=value ...]`; what a client sent cannot begin a line of its own."""

    def __init__(self, fields: Mapping[str, str] = _NOTHING) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """One line; a traceback follows it, indented."""
        pairs = " ".join(f"{name}={value}" for name, value in {**self._fields, **bound()}.items())
        line = f"{_time(record)} {record.levelname} {record.name}: {record.getMessage()}" + (
            f" [{pairs}]" if pairs else ""
        )
        causes = "".join(f"\n    {_printable(part)}" for part in _exception(self, record).splitlines())
        return _printable(line) + causes


class JsonLines(logging.Formatter):
    """One JSON object a line, ASCII alone, so that nothing in it ends the line."""

    def __init__(self, fields: Mapping[str, str] = _NOTHING) -> None:
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """Keys `time`, `level`, `logger`, `message`, `exception` where there is one, and the bound fields."""
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if exception := _exception(self, record):
            line["exception"] = exception
        return json.dumps({**line, **{k: v for k, v in {**self._fields, **bound()}.items() if k not in line}})


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _exception(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else ""


def _printable(text: str) -> str:
    """The text with line breaks, terminal controls and the like written as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
