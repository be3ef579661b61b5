"""Traces replayed, from Python and from the command line."""

from __future__ import annotations

import json
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import coresident as co
import pytest
from coresident import __main__ as command_line
from coresident import trace

TRACES = Path(__file__).parents[2] / "benches" / "traces"


def request(job: int, component: str, nbytes: int, working: int = 0) -> dict[str, Any]:
    return {"job": job, "component": component, "bytes": nbytes, "working_bytes": working}


TWO = {
    "name": "two",
    "capacity_bytes": 10,
    "requests": [
        request(0, "a", 6),
        request(0, "b", 4),
        request(1, "c", 3, working=1),
        request(2, "a", 6),
    ],
}


def test_a_trace_is_replayed() -> None:
    done = trace.replay(TWO, policy="lru", lookahead=0)
    assert (done.name, done.policy, done.lookahead) == ("two", "lru", 0)
    assert (done.bytes_moved, done.bound) == (17, 13)
    assert done.multiple == pytest.approx(17 / 13)
    assert trace.replay(TWO).bytes_moved == 13, "a is known to come back"
    assert "by look-ahead, 2 jobs ahead: 1.000 x the bound" in repr(trace.replay(TWO))


def test_every_policy_has_a_name() -> None:
    assert trace.POLICIES[0] == "look-ahead"
    for name in trace.POLICIES:
        assert trace.replay(TWO, policy=name).bytes_moved >= 13


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "two.json"
    path.write_text(json.dumps(TWO))
    assert trace.replay(path).bytes_moved == trace.replay(str(path)).bytes_moved == 13


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        (
            {"trace": 3},
            co.InvalidTypeError,
            "path of a file, what is in one, or a timeline, not int",
        ),
        ({"trace": {}}, co.InvalidValueError, "this is no trace: missing field"),
        ({"trace": TWO | {"capacity_bytes": 5}}, co.InvalidValueError, "can never be served"),
        ({"trace": TWO, "policy": "best"}, co.InvalidValueError, "there is no policy"),
        ({"trace": TWO, "policy": 3}, co.InvalidTypeError, "policy is one of look-ahead"),
        ({"trace": TWO, "lookahead": -1}, co.InvalidValueError, "lookahead"),
        ({"trace": TWO, "lookahead": "2"}, co.InvalidTypeError, "lookahead"),
        ({"trace": "nowhere.json"}, FileNotFoundError, "nowhere"),
    ],
)
def test_bad_input_is_refused(arguments: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        trace.replay(**arguments)


def test_the_command_prints_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    file = str(TRACES / "flux-fp8-16g.json")
    assert command_line.main(["trace", "replay", file, "--policy", "all"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert len(table) == 1 + len(trace.POLICIES)
    assert table[1].split() == [
        "flux-fp8-16g",
        "look-ahead",
        "244.4",
        "GiB",
        "244.4",
        "GiB",
        "1.000",
    ]
    assert command_line.main(["trace", "replay", file, "--lookahead", "0", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["policy"] == "look-ahead"
    assert told["bytes_moved"] / told["bound"] == told["multiple"] == 1.0


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "broken.json"
    path.write_text("{")
    assert command_line.main(["trace", "replay", str(path)]) == 2
    assert capsys.readouterr().err.startswith("coresident: this is no trace: EOF")


def test_the_command_is_installed() -> None:
    installed = shutil.which("coresident", path=sysconfig.get_path("scripts"))
    assert installed
    done = subprocess.run([installed, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == co.__version__
