"""What is made of a robot's log: words, a page, MCAP; whatever ended it."""

import json
import sys

import numpy as np
import pytest

from hesscale_rl.envs.ur.arms import START
from hesscale_rl.envs.ur.log import Record
from hesscale_rl.envs.ur.presets import PRESETS
from hesscale_rl.envs.ur.shared import CYCLE
from hesscale_rl.errors import BAD_INPUT, DONE
from hesscale_rl.scripts import cli

TEXT = "<b>a hand & an elbow</b>"  # of a fault


@pytest.fixture
def log(tmp_path):
    """Two episodes; the guard slows 12 of 250 cycles, and stops one a second later."""
    folder = tmp_path / "log"
    folder.mkdir()
    bounds = PRESETS["v2"].bounds()._asdict()
    bounds = {k: getattr(v, "tolist", lambda v=v: v)() for k, v in bounds.items() if k != "links"}
    (folder / "config.json").write_text(json.dumps({"bounds": bounds, "arguments": {"arm": "UR5"}}))
    record, still = Record(folder / "cycles.bin", CYCLE), np.zeros(6)
    for cycle in range(250):
        did = 1 if 40 <= cycle < 52 else 2 if cycle == 200 else 0
        record.add(5 + 0.008 * cycle, 5.0, did, 1, START, still, START, still, still, still)
    record.close()
    events = [{"kind": "reset", "stamp": 5.0, "target": [0, 0.5]}, {"kind": "step", "stamp": 5.04, "reward": 2.0}]
    events += [{"kind": "reset", "stamp": 6.0, "target": [0, 0.5]}, {"kind": "step", "stamp": 6.04, "reward": -1.5}]
    events += [{"kind": "fault", "text": TEXT}]
    (folder / "steps.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return folder


def replay(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["hesscale-rl", "ur", "replay", *map(str, words)])
    return cli.main()


def test_a_log_is_told_whatever_ended_it(monkeypatch, capsys, log):
    with open(log / "cycles.bin", "ab") as file, open(log / "steps.jsonl", "a") as steps:
        file.write(b"half a record")
        steps.write('{"kind": "st')
    assert replay(monkeypatch, log) == DONE
    said = capsys.readouterr().out
    assert "episode 1  return 2.0\nepisode 2  return -1.5\n" in said and f"fault: {TEXT}" in said
    assert "250 cycles in 2.0 s of robot time; slowed 12, stopped 1, returning 0" in said


def test_a_page_has_every_joint_what_the_guard_did_and_the_faults_as_text(monkeypatch, log):
    pytest.importorskip("matplotlib")
    assert replay(monkeypatch, log, "--page") == DONE
    page = (log / "replay.html").read_text()
    assert page.count("<svg") == 1 and "<script" not in page
    assert "&lt;b&gt;a hand &amp; an elbow&lt;/b&gt;" in page and TEXT not in page
    assert "<td>slowed</td><td>5.320 to 5.416 s</td>" in page and "<td>stopped</td><td>6.600 to 6.608 s</td>" in page


def test_mcap_has_every_cycle_and_every_event_in_the_robot_s_time(monkeypatch, log):
    reader = pytest.importorskip("mcap.reader")
    assert replay(monkeypatch, log, "--mcap") == DONE
    with open(log / "replay.mcap", "rb") as file:
        found = [
            (channel.topic, message.log_time, json.loads(message.data))
            for _, channel, message in reader.make_reader(file).iter_messages()
        ]
    cycles = [(time, content) for topic, time, content in found if topic == "/cycles"]
    events = [(time, content) for topic, time, content in found if topic == "/events"]
    assert len(cycles) == 250 and cycles[1][0] == 5_008_000_000 and cycles[41][1]["did"] == 1
    np.testing.assert_array_equal(cycles[0][1]["q"], START)
    assert [content["kind"] for _, content in events] == ["reset", "step", "reset", "step", "fault"]
    assert [time for time, _ in events] == [5_000_000_000, 5_040_000_000, 6_000_000_000, 6_040_000_000, 6_040_000_000]


def test_what_cannot_be_told_is_one_line(monkeypatch, capsys, log):
    for name, text, words in (
        ("config.json", "{", "config.json: cannot be read"),
        ("config.json", "{}", "config.json: says nothing of the bounds"),
        ("steps.jsonl", '{\n{"kind": "step"}\n', "steps.jsonl, line 1: not JSON"),
    ):
        before = (log / name).read_text()
        (log / name).write_text(text)
        assert replay(monkeypatch, log, "--mcap") == BAD_INPUT
        said = capsys.readouterr().err
        assert words in said and said.count("\n") == 1 and not (log / "replay.mcap").exists()
        (log / name).write_text(before)
    monkeypatch.setitem(sys.modules, "mcap.writer", None)
    assert replay(monkeypatch, log, "--mcap") == BAD_INPUT
    assert "--mcap needs mcap, pip install 'hesscale-rl[mcap]'" in capsys.readouterr().err
