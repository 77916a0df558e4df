import asyncio
import json
import logging
import re

import pytest

from server import logs


def record(message, *arguments, exc_info=None):
    return logging.LogRecord("server.test", logging.WARNING, __file__, 1, message, arguments, exc_info)


def failure(text):
    with pytest.raises(ValueError, match=re.escape(text)) as raised:
        raise ValueError(text)
    return raised.type, raised.value, raised.tb


FORGERIES = [
    "arm\n2026-01-01T00:00:00.000Z INFO forged",
    "arm\r\x1b[2Jforged",
    "arm\u2028forged",
    "arm\x85forged",
    "a\x00b",
]


@pytest.mark.parametrize("name", FORGERIES)
@pytest.mark.parametrize("lines", [logs.TextLines(), logs.JsonLines()], ids=["text", "json"])
def test_what_a_client_sent_cannot_begin_a_line(name, lines):
    line = lines.format(record("session of %s", name))
    assert line.splitlines() == [line]
    assert line.isprintable()


@pytest.mark.parametrize("name", FORGERIES)
def test_exception_that_quotes_a_client_begins_no_line_either(name):
    first, *others = logs.TextLines().format(record("failed", exc_info=failure(name))).split("\n")
    assert first.endswith("server.test: failed")
    assert all(line.startswith("    ") and line.isprintable() for line in others)
    parsed = json.loads(logs.JsonLines().format(record("failed", exc_info=failure(name))))
    assert name in parsed["exception"]


def test_json_line_says_what_the_text_line_says():
    logged = record("session %s opened", "arm-1")
    asyncio.run(with_fields(logs.JsonLines({"worker": "1"}), logged))
    parsed, text = asyncio.run(with_fields(logs.JsonLines({"worker": "1"}), logged)), logs.TextLines().format(logged)
    assert json.loads(parsed) == {
        "time": text.split(" ")[0],
        "level": "warning",
        "logger": "server.test",
        "message": "session arm-1 opened",
        "worker": "1",
        "request": "r1",
        "session": "arm-1",
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING server\.test: session arm-1 opened", text)


async def with_fields(lines, logged):
    logs.bind(request="r1")
    logs.bind(session="arm-1")
    return lines.format(logged)


def test_bound_field_cannot_replace_what_the_line_itself_says():
    async def forged():
        logs.bind(message="all is well", level="debug")
        return json.loads(logs.JsonLines().format(record("failed")))

    parsed = asyncio.run(forged())
    assert (parsed["message"], parsed["level"]) == ("failed", "warning")


def test_fields_of_one_task_are_not_on_the_lines_of_another():
    async def session(name, both):
        logs.bind(session=name)
        await both.wait()
        own = logs.TextLines().format(record("decided"))
        begun = await asyncio.create_task(line())
        return own, begun

    async def line():
        return logs.TextLines().format(record("decided"))

    async def run():
        both = asyncio.Barrier(2)
        return await asyncio.gather(session("arm-1", both), session("arm-2", both)), await line()

    of_sessions, outside = asyncio.run(run())
    for (own, begun), name in zip(of_sessions, ("arm-1", "arm-2"), strict=True):
        assert own.endswith(f"decided [session={name}]")
        assert begun.endswith(f"decided [session={name}]")
    assert outside.endswith("decided")
