"""docs/open-inference.md: its example runs on both wires, and its table holds the codes that are sent."""

import re
from pathlib import Path

import pytest

from server.grpc_calls import STATUS_CODES as GRPC_CODES
from server.http_api import STATUS_CODES as HTTP_CODES

PAGE = (Path(__file__).parents[3] / "docs" / "open-inference.md").read_text(encoding="utf-8")


def example(wire, address):
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    return code.replace('"127.0.0.1:50051"', repr(address)).replace("tritonclient.grpc", f"tritonclient.{wire}")


def test_the_example_prints_what_every_row_expects(running, capsys):
    exec(example("grpc", running.grpc), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert all("expects" in line and "in its worst cases" in line for line in lines)


def test_inference_in_the_example_is_the_same_over_http(running, capsys):
    code = example("http", running.http.removeprefix("http://"))
    for described in re.findall(r"^(?:model|size) = .*\n", code, re.MULTILINE):
        code = code.replace(described, "")
    exec("model, size = 'reacher', 3\n" + code, {})
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize("error", [error for error in HTTP_CODES if error in GRPC_CODES])
def test_the_table_of_status_codes_holds_every_pair(error):
    assert re.search(rf"\| `{GRPC_CODES[error].name}` \| {HTTP_CODES[error]} \|", PAGE), error.__name__
