"""The page of a sweep: what it says of every run, that names stay text, and that it follows what goes on."""

import json
import re
import sys
import threading
import urllib.error
import urllib.request

import browser
import numpy as np
import pytest
from test_plot import LADDER, run

from hesscale_rl.errors import BAD_INPUT, DONE
from hesscale_rl.scripts import report
from hesscale_rl.scripts.analysis import curves
from hesscale_rl.scripts.reporting import figures, server
from hesscale_rl.scripts.reporting.content import Asked, content
from hesscale_rl.scripts.reporting.page import as_json, page

pytest.importorskip("plotly")
HOSTILE = "</script><script>window.broken = 1</script><img src=x onerror='window.broken = 2'>&lt;b&gt;"


def command(monkeypatch, capsys, *arguments):  # exit code, output, errors
    monkeypatch.setattr(sys, "argv", ["report", *map(str, arguments)])
    return report.main(), *capsys.readouterr()


def append(path, text):
    """Write at the end of a run's metrics."""
    with open(path / "metrics.jsonl", "a") as file:
        file.write(text)


def make(folder, hostile=""):
    """Two tasks, two optimizers, two step sizes, five seeds; with diverged, failed, stopped, missing ones."""
    for env in ("Hopper-v5", f"Ant{hostile}"):
        for optimizer in ("adam", "scaled-adam"):
            for rate in (0.001, 1.0):
                for seed in range(5):
                    bad = optimizer == "adam" and rate == 1.0
                    how = {"status": "diverged", "end": 600, "episodes": LADDER[:3]} if bad else {}
                    how |= {"env_id": env, "optimizer": optimizer, "learning_rate": rate, "add": 3.0 * seed}
                    path = run(folder, f"{env[:3]}-{optimizer}-{rate}-{seed}", seed, **how)
                    if bad:
                        text = (path / "status.json").read_text()
                        told = json.loads(text) | {"reason": f"an action is not finite {hostile}"}
                        (path / "status.json").write_text(json.dumps(told))
    for name, status in (("crashed", "failed"), ("killed", "running"), ("paused", "interrupted")):
        path = run(folder, name, 7, LADDER[:2], status=status, end=400)
        told = json.loads((path / "status.json").read_text()) | {
            "reason": f"why {name} {hostile}" * (name == "crashed")
        }
        (path / "status.json").write_text(json.dumps(told))
    append(folder / "killed", '{"global_step": 500, "charts/epis')  # it was writing
    (folder / "logs").mkdir()
    (folder / "logs" / "crashed.log").write_text("".join(f"line {k} {hostile}\n" for k in range(20)))
    (folder / "logs" / "lost.log").write_text("no such device\n")
    names = [path.parent.name for path in folder.glob("*/config.json")]
    asked = {"runs": [*names, "lost"], "steps": dict.fromkeys(names, 1000) | {"lost": 5000}}
    (folder / "sweep.json").write_text(json.dumps(asked))
    return folder


def test_every_run_is_there_with_its_state_and_why(tmp_path):
    said = content(Asked((str(make(tmp_path / "grid")),), bins=5))
    assert said["counts"] == {"done": 30, "diverged": 10, "failed": 1, "interrupted": 1, "stopped": 1, "missing": 1}
    runs = {entry["name"]: entry for entry in said["runs"]}
    assert runs["crashed"]["reason"] == "why crashed " and runs["crashed"]["log"] == [
        f"line {k} " for k in range(12, 20)
    ]
    assert runs["lost"]["log"] == ["no such device"] and runs["killed"]["at"] == 400
    assert runs["Hop-adam-1.0-0"]["reason"] == "an action is not finite "
    assert (runs["Hop-adam-0.001-1"]["x"][-1], runs["Hop-adam-0.001-1"]["y"][-1]) == (1000, 8)
    # 30 of 1,000 steps are done, ten ended at 600; three are at 400 of 1,000, and one of 5,000 has not begun.
    assert said["progress"] == {"at": 30_000 + 6000 + 1200, "of": 30_000 + 6000 + 3000 + 5000}
    assert not [note for note in said["notes"] if "broken" in note]  # half a line of a run that goes on is none
    (agent,) = said["agents"]
    titles = ["Sensitivity", "Learning curves", "Score profile", "Not finished yet"]
    assert [figure["title"] for figure in agent["figures"]] == titles
    assert agent["comparison"]["rows"][-1][0] == "2 tasks: Ant, Hopper-v5"
    assert said["runs"][0]["settings"] == {} and said["common"] == {"exp_name": "ppo"}


def test_a_point_knows_the_runs_behind_it_and_lost_ones_have_no_line(tmp_path):
    said = content(Asked((str(make(tmp_path / "grid")),), bins=5))
    panel = next(p for p in said["agents"][0]["figures"][0]["panels"] if "Hopper" in p["title"])
    adam, *others = [trace for trace in panel["traces"] if trace["name"] == "adam"]
    assert adam["x"] == pytest.approx([0.001, 1.0], rel=0.1) and adam["y"] == [pytest.approx(9.0), None]
    behind = [[said["runs"][k]["name"] for k in ids] for ids in adam["customdata"]]
    assert behind == [[f"Hop-adam-{rate}-{seed}" for seed in range(5)] for rate in (0.001, 1.0)]
    (crosses,) = [trace for trace in others if trace["marker"]["symbol"] == "x-thin"]
    assert [said["runs"][k]["name"] for (k,) in crosses["customdata"]] == behind[1]
    assert "diverged at 600: an action is not finite" in crosses["text"][0]
    _, low, high = curves.interval([np.arange(3.0, 16.0, 3.0)], "mean", "bootstrap")
    assert adam["text"][0].split("<br>")[:3] == ["<b>adam</b>", "learning rate 0.001", f"9 [{low:.4g}, {high:.4g}]"]


def test_a_curve_has_few_points_however_long_it_is(tmp_path):
    episodes = [(10 * k, float(k)) for k in range(1, 5001)]
    run(tmp_path, "long", 0, episodes, end=50_000, total=50_000)
    (entry,) = content(Asked((str(tmp_path),)))["runs"]
    assert len(entry["x"]) == figures.BINS and entry["x"][-1] == 50_000
    assert entry["y"][0] == pytest.approx(sum(range(1, 51)) / 50)


def test_what_plotly_is_given_is_what_it_takes(tmp_path):
    import plotly.graph_objects as go

    said = content(Asked((str(make(tmp_path / "grid")),), bins=5))
    for figure in said["agents"][0]["figures"]:
        for panel in figure["panels"]:
            go.Figure(panel["traces"], panel["layout"])  # which refuses what it does not know


def test_names_stay_text(tmp_path, monkeypatch, capsys):
    folder = make(tmp_path / "grid", HOSTILE)
    assert command(monkeypatch, capsys, folder, "-o", tmp_path / "new" / "fig", "--bins", 5)[0] == DONE
    text = (tmp_path / "new" / "fig.html").read_text()
    assert "window.broken" in text and "<img" not in text.partition("<script>")[0]
    block = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1]
    assert "<" not in block and json.loads(block)["counts"]["done"] == 30
    titles = [p["title"] for f in json.loads(block)["agents"][0]["figures"] for p in f["panels"]]
    assert f"PPO, Ant{HOSTILE}" in titles  # a heading, which page.js makes text of
    hover = json.dumps([p["traces"] for f in json.loads(block)["agents"][0]["figures"] for p in f["panels"]])
    assert "<script" not in hover and "<img" not in hover and "&lt;script" in hover
    assert "</title><" not in page(content(Asked((str(folder),), bins=5)) | {"title": f"</title>{HOSTILE}"})


def test_one_directory_alone_and_supervised_runs_have_pages_too(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "single", "a")
    code, out, err = command(monkeypatch, capsys, tmp_path / "single" / "a")
    assert (code, out, err) == (DONE, "report.html\n", "") and (tmp_path / "report.html").exists()
    said = content(Asked((str(tmp_path / "single" / "a"),)))
    assert [figure["kind"] for figure in said["agents"][0]["figures"]] == ["curves"]
    going = run(tmp_path / "going", "a", status="running")
    said = content(Asked((str(going),)))
    assert [figure["kind"] for figure in said["agents"][0]["figures"]] == ["unfinished"]
    config = {"task": "mnist-mlp", "epochs": 2, "optimizer": "adam", "learning_rate": 0.1, "seed": 1}
    path = run(tmp_path / "supervised", "a", total=200, end=200)
    (path / "config.json").write_text(json.dumps(config))
    rows = [{"global_step": 100 * k, "charts/epoch": k, "loss/validation": 2.0 / (k + 1)} for k in range(3)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (agent,) = content(Asked((str(path),)))["agents"]
    assert agent["comparison"] is None and agent["figures"][0]["panels"][0]["layout"]["yaxis"]["type"] == "log"


BAD = {
    "nowhere": "nowhere: no runs there; name run directories or the folder of a sweep",
    "nowhere --serve": "nowhere: no such directory",
    "single --port 9": "--port 9: is for --serve",
    "single --serve -o fig.html": "-o fig.html: is not for --serve",
    "single --serve --port 99999": "--port 99999: must be between 0 and 65535",
    "single -o file/fig": "-o file/fig.html: cannot be written",
    "single --bins 0": "--bins 0: must be at least 1",
    "single --sreve": "--sreve: no such flag; did you mean --serve?",
}


@pytest.mark.parametrize("line", BAD)
def test_what_cannot_be_is_told_in_one_line_and_nothing_is_written(tmp_path, monkeypatch, capsys, line):
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "single", "a")
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    code, out, err = command(monkeypatch, capsys, *line.split())
    assert code == BAD_INPUT and BAD[line] in err and err.count("\n") == 1 and not out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def served(tmp_path):
    """A sweep that is served: its folder, its server."""
    with server.ReportServer(0, server.Watch(Asked((str(make(tmp_path / "grid")),), bins=5))) as own:
        thread = threading.Thread(target=own.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield tmp_path / "grid", own
        own.shutdown()
        thread.join()


def get(own, path, host=None):
    address = f"http://127.0.0.1:{own.server_port}"
    request = urllib.request.Request(address + path, headers={"Host": host or address[7:]})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_server_follows_a_sweep(served, monkeypatch):
    folder, own = served
    monkeypatch.setattr(server, "FRESH", 0.0)
    status, text = get(own, "/")
    assert status == 200 and 'data-live="1"' in text
    before = json.loads(get(own, "/data")[1])
    append(folder / "paused", json.dumps({"global_step": 900, "charts/episodic_return": 77.0}) + "\n")
    status, text = get(own, "/data")
    after = json.loads(text)
    paused = next(entry for entry in after["runs"] if entry["name"] == "paused")
    assert (paused["at"], paused["last"]) == (900, 77) and after["progress"]["at"] == before["progress"]["at"] + 500
    assert after["progress"]["speed"] > 0 and after["progress"]["left"] > 0 and "speed" not in before["progress"]
    for path in folder.glob("*/config.json"):
        path.unlink()
    (folder / "sweep.json").unlink()
    assert "no runs there" in json.loads(get(own, "/data")[1])["notes"][0]


def test_the_server_answers_this_machine_alone_and_nothing_but_the_page(served, monkeypatch, capsys):
    folder, own = served
    assert own.server_address[0] == "127.0.0.1"
    assert get(own, "/../config.json")[0] == get(own, "/data/")[0] == 404
    assert get(own, "/data", "evil.example")[0] == 403  # a name that another site has given this address
    before = sorted(folder.rglob("*"))
    code, out, err = command(monkeypatch, capsys, folder, "--serve", "--port", own.server_port)
    assert (code, out) == (BAD_INPUT, "") and f"--port {own.server_port}: is taken, name another" in err
    assert sorted(folder.rglob("*")) == before


def test_half_a_line_of_a_finished_run_is_told(tmp_path):
    path = run(tmp_path, "a")
    append(path, '{"global_step": 10')
    assert "1 of 7 lines are broken and skipped" in content(Asked((str(tmp_path),)))["notes"][0]


@pytest.mark.skipif(browser.PATH is None, reason="no Chromium on this machine")
@pytest.mark.parametrize("width", [1400, 400])
def test_in_a_browser(tmp_path, width):
    said = content(Asked((str(make(tmp_path / "grid", HOSTILE)),), bins=5))
    (tmp_path / "page.html").write_text(page(said))
    plots = sum(len(figure["panels"]) for figure in said["agents"][0]["figures"])
    with browser.Browser(tmp_path / "profile", width) as tab:
        tab.open(f"file://{tmp_path}/page.html", f"document.querySelectorAll('.main-svg').length >= {2 * plots}")
        assert tab.value("window.broken") is None and not tab.errors
        assert tab.value("document.documentElement.scrollWidth") <= width  # nothing sticks out
        assert tab.value("document.querySelectorAll('img').length") == 0
        assert HOSTILE in tab.value("document.body.textContent")
        tab.value("document.querySelector('.plot').emit('plotly_click', {points: [{customdata: [0, 1], data: {}}]})")
        tab.wait("document.querySelectorAll('.detail .main-svg').length")
        assert tab.value("document.querySelectorAll('.detail tbody tr').length") == 2
        tab.value("document.querySelector('.legend button').click()")
        assert tab.value("document.querySelector('.plot').data[0].visible") is False
        assert tab.value("window.broken") is None and not tab.errors


@pytest.mark.skipif(browser.PATH is None, reason="no Chromium on this machine")
def test_in_a_browser_the_page_follows(served, tmp_path, monkeypatch):
    folder, own = served
    monkeypatch.setattr(server, "FRESH", 0.0)
    with browser.Browser(tmp_path / "profile") as tab:
        tab.open(f"http://127.0.0.1:{own.server_port}/", "document.querySelector('.main-svg')")
        run(folder, "lost", 9, status="failed")
        tab.wait("document.querySelector('.card.failed b').textContent === '2'")
        assert tab.value("document.querySelector('.card.missing')") is None and not tab.errors


def test_json_on_a_page_has_no_tag_and_reads_the_same():
    data = {"a": f"{HOSTILE}<!-- \u2028", "b": [1.5, None]}
    assert not set("<>&\u2028") & set(as_json(data)) and json.loads(as_json(data)) == data
