import os
import subprocess
import sys
import textwrap
import threading

import pytest
from mcap.exceptions import McapError
from mcap.reader import make_reader
from mcap_protobuf.decoder import DecoderFactory

from protos import policy_pb2 as pb
from protos import record_pb2
from sim_bridge.errors import RecordError
from sim_bridge.record import Recorder
from sim_bridge.record_reader import read_record
from tests.sim_bridge.scripted_policy import wait_until


def tick(number, size=8):
    return record_pb2.Tick(
        tick=number,
        observation=[0.5 * number] * size,
        decision=pb.ControlDecision(tick=number, status=pb.DECISION_STATUS_OK, decision=pb.Decision(action=[0.1])),
        guard=pb.GUARD_STATE_NOMINAL,
    )


def write(path, count, size=8):
    recorder = Recorder(path)
    recorder.write("/run", record_pb2.Run(environment="Pendulum-v1", seed=3), 0)
    for number in range(count):
        recorder.write("/tick", tick(number, size), number)
    recorder.close()
    return recorder


def test_record_reads_back_whole_and_in_order(tmp_path):
    recorder = write(tmp_path / "run.mcap", 300)
    run, *ticks = read_record(tmp_path / "run.mcap")
    assert run == record_pb2.Run(environment="Pendulum-v1", seed=3)
    assert ticks == [tick(number) for number in range(300)]
    assert (recorder.dropped, recorder.failure) == (0, "")


def test_any_mcap_reader_understands_the_file_from_its_own_schemas(tmp_path):
    write(tmp_path / "run.mcap", 3)
    with (tmp_path / "run.mcap").open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()])
        assert reader.get_summary().statistics.message_count == 4
        decoded = [(channel.topic, message) for _, channel, _, message in reader.iter_decoded_messages()]
    assert [topic for topic, _ in decoded] == ["/run", "/tick", "/tick", "/tick"]
    assert decoded[3][1].decision.decision.action[0] == pytest.approx(0.1)


def test_killed_process_leaves_a_readable_record(tmp_path):
    path = tmp_path / "run.mcap"
    program = f"""
        import sys, time
        from pathlib import Path
        from protos import record_pb2
        from sim_bridge.record import Recorder
        recorder = Recorder(Path({str(path)!r}))
        number = 0
        while True:
            recorder.write("/tick", record_pb2.Tick(tick=number), number)
            number += 1
            if number == 100:
                print("written", flush=True)
            time.sleep(0.01)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"written\n"
            wait_until(lambda: path.stat().st_size > 200)
        finally:
            process.kill()
    ticks = [message.tick for message in read_record(path)]
    assert len(ticks) >= 50
    assert ticks == list(range(len(ticks)))


def test_record_cut_off_anywhere_reads_up_to_its_last_whole_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr("sim_bridge.record.CHUNK_BYTES", 2000)
    write(tmp_path / "run.mcap", 300)
    data = (tmp_path / "run.mcap").read_bytes()
    cut = tmp_path / "cut.mcap"
    counts = []
    for length in (*range(100, len(data) - 80, 197), *range(len(data) - 80, len(data))):
        cut.write_bytes(data[:length])
        ticks = [message.tick for message in read_record(cut) if isinstance(message, record_pb2.Tick)]
        assert ticks == list(range(len(ticks)))
        counts.append(len(ticks))
    assert counts == sorted(counts)
    assert counts[0] == 0
    assert counts[-1] == 300
    assert len(set(counts)) > 5


def test_damage_is_told_and_not_read_as_data(tmp_path):
    write(tmp_path / "run.mcap", 300)
    data = bytearray((tmp_path / "run.mcap").read_bytes())
    intact = [tick(number) for number in range(300)]
    damaged = tmp_path / "damaged.mcap"
    told = 0
    for position in range(0, len(data), 41):
        copy = bytearray(data)
        copy[position] ^= 0xFF
        damaged.write_bytes(copy)
        try:
            messages = list(read_record(damaged))
        except RecordError:
            told += 1
            continue
        ticks = [message for message in messages if isinstance(message, record_pb2.Tick)]
        assert ticks == intact[: len(ticks)]
    assert told > 0


@pytest.mark.parametrize("content", [b"", b"not an MCAP file at all", b"\x89MCAP0\r\n"])
def test_file_that_is_no_record_is_refused_or_empty(tmp_path, content):
    (tmp_path / "x.mcap").write_bytes(content)
    if content.startswith(b"\x89MCAP"):
        assert list(read_record(tmp_path / "x.mcap")) == []
    else:
        with pytest.raises(RecordError, match=r"x\.mcap"):
            list(read_record(tmp_path / "x.mcap"))


def test_missing_record_and_unwritable_place_are_named(tmp_path):
    with pytest.raises(RecordError, match=r"none\.mcap: No such file"):
        list(read_record(tmp_path / "none.mcap"))
    with pytest.raises(RecordError, match="No such file or directory; choose another place"):
        Recorder(tmp_path / "nowhere" / "run.mcap")


def test_existing_record_is_never_overwritten(tmp_path):
    write(tmp_path / "run.mcap", 3)
    before = (tmp_path / "run.mcap").read_bytes()
    with pytest.raises(RecordError, match="must be a new file"):
        Recorder(tmp_path / "run.mcap")
    assert (tmp_path / "run.mcap").read_bytes() == before


def test_full_disk_stops_recording_with_one_warning_and_leaves_a_whole_mcap_file(tmp_path):
    """The operating system refuses every byte past a limit, as a full disk does; the limits fall anywhere in a chunk."""
    program = f"""
        import logging, resource, time
        from pathlib import Path
        from protos import record_pb2
        from sim_bridge import record
        logging.basicConfig(format="%(message)s")
        record.FLUSH_INTERVAL_S = 0.001
        for limit in range(6_000, 8_000, 51):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, 20_000))
            recorder = record.Recorder(Path({str(tmp_path)!r}) / f"{{limit}}.mcap")
            number = 0
            deadline = time.monotonic() + 20
            while not recorder.failure and time.monotonic() < deadline:
                recorder.write("/tick", record_pb2.Tick(tick=number, problem=str(number**20)), number)
                number += 1
                time.sleep(0.0005)
            for _ in range(10):
                recorder.write("/tick", record_pb2.Tick(tick=number), number)
                number += 1
            recorder.close()
            print(limit, number, recorder.dropped, recorder.failure)
    """
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=120, check=True
    )
    reports = process.stdout.splitlines()
    assert len(reports) == 40
    assert process.stderr.count("stopped, the robot goes on") == len(process.stderr.splitlines()) == len(reports)
    for report in reports:
        limit, offered, dropped, failure = report.split(maxsplit=3)
        path = tmp_path / f"{limit}.mcap"
        assert failure == os.strerror(27)
        ticks = [message.tick for message in read_record(path)]
        assert len(ticks) > 10
        assert ticks == list(range(len(ticks)))
        assert int(dropped) == int(offered) - len(ticks) >= 10
        with path.open("rb") as file:
            assert sum(1 for _ in make_reader(file).iter_messages()) == len(ticks)


def test_record_under_way_is_a_whole_mcap_file(tmp_path, monkeypatch):
    monkeypatch.setattr("sim_bridge.record.FLUSH_INTERVAL_S", 0.001)
    recorder = Recorder(tmp_path / "run.mcap")
    for number in range(5):
        recorder.write("/tick", tick(number), number)
        wait_until(lambda count=number + 1: _count(tmp_path / "run.mcap") == count)
    recorder.close()
    assert _count(tmp_path / "run.mcap") == 5


def _count(path):
    """Messages that a reader which starts from the end of the file finds; -1 while a write is under way."""
    try:
        with path.open("rb") as file:
            return sum(1 for _ in make_reader(file).iter_messages())
    except McapError:
        return -1


def test_device_without_space_stops_recording(caplog):
    from pathlib import Path

    recorder = Recorder(Path("/dev/full"))
    for number in range(5):
        recorder.write("/tick", tick(number), number)
    recorder.close()
    assert recorder.failure == "No space left on device"
    assert recorder.dropped == 5
    assert sum("stopped, the robot goes on" in message for message in caplog.messages) == 1


def test_slow_disk_costs_messages_and_never_the_callers_time(tmp_path, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr("sim_bridge.record.register_schema", lambda *_: release.wait(10) and 0)
    recorder = Recorder(tmp_path / "run.mcap", queue_messages=4)
    for number in range(100):
        recorder.write("/tick", tick(number), number)
    release.set()
    recorder.close()
    assert recorder.failure == ""
    assert 95 <= recorder.dropped <= 96
