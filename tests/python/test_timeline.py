"""Timelines: what is recorded of models on devices, what a replay makes of it, hints, explanations."""

from __future__ import annotations

import json
import logging
import random
import subprocess
import sys
import threading
import xml.etree.ElementTree as Xml
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import coresident as co
import numpy as np
import pytest
from coresident import __main__ as command_line
from coresident import trace

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")

MIB = 2**20
PAGE = 2 * MIB
#: Models of a pipeline, and how many MiB of weights they have.
SIZES = {"clip": 4, "unet": 14, "vae": 2, "other unet": 12}


@pytest.fixture(scope="module", autouse=True)
def _install() -> None:
    __import__("coresident.torch").torch.install()


def linear(mib: int) -> Any:
    return partial(torch.nn.Linear, 512, mib * MIB // 4 // 512, bias=False)


class House:
    """A runtime with models on one virtual device."""

    def __init__(self, memory: str, **options: Any) -> None:
        self.runtime = co.Runtime(co.virtual_devices(1, memory=memory), **options)
        [self.device] = self.runtime.devices
        self.models = {key: self.runtime.load(key, linear(size)) for key, size in SIZES.items()}

    def use(self, *keys: str, working: int | None = PAGE, call: bool = False) -> None:
        """One job: each of these after the other."""
        with self.runtime.pool.lease(self.device):
            for key in keys:
                with self.models[key].on(self.device, working) as module:
                    if call:
                        with torch.inference_mode():
                            module(torch.zeros(1, 512))

    def job(self, *keys: str, stages: list[str] | None) -> None:
        """The same, where its stages are declared."""
        with self.runtime.job(stages, device=self.device):
            self.use(*keys)

    def recording(self) -> co.trace.Recording:
        return self.runtime.timeline.recording()

    def events(self, kind: str) -> Any:
        recording = self.recording()
        return recording.events[recording.events["kind"] == recording.kinds.index(kind)]


@pytest.fixture
def house() -> Iterator[House]:
    made = House("24MiB", hints=False)
    with made.runtime:
        yield made


def test_what_is_asked_for_copied_and_evicted_is_recorded(house: House) -> None:
    house.use("clip", "unet", "vae")
    house.use("other unet")
    recording = house.recording()
    names = recording.names
    wanted = house.events("request")
    assert [names[at] for at in wanted["component"]] == ["clip", "unet", "vae", "other unet"]
    assert wanted["bytes"].tolist() == [size * MIB for size in (4, 14, 2, 12)]
    assert (wanted["beside"] == PAGE).all()
    assert (wanted["of"] == 24 * MIB).all()
    assert len(set(wanted["job"][:3].tolist())) == 1, "one lease is one job"
    assert wanted["job"][3] not in (0, wanted["job"][0])
    copies = house.events("copy")
    assert copies["bytes"].sum() == 32 * MIB
    assert {recording.causes[cause] for cause in copies["cause"]} == {"first use"}
    assert (copies["took"] > 0).all()
    left = house.events("evict")
    assert left["bytes"].sum() == 10 * MIB
    assert {names[whom] for whom in left["whom"]} == {"other unet"}
    assert len(house.events("request ends")) == 4
    assert recording.devices == recording.requested() == ["virtual:0"]
    assert (recording.lost, recording.settings[0]["limit"]) == (0, 24 * MIB)


def test_why_something_was_copied_is_told(house: House) -> None:
    house.use("unet")
    house.use("other unet")
    house.use("unet")
    house.models["unet"].area(house.device).renew()
    house.use("unet")
    recording, copies = house.recording(), house.events("copy")
    told = [(recording.causes[copy["cause"]], copy["bytes"] // MIB) for copy in copies]
    assert told == [("first use", 14), ("first use", 12), ("came back", 4), ("renewed", 14)]


def test_sums_are_those_of_the_arena_whatever_is_kept() -> None:
    made = House("24MiB", hints=False, timeline=co.Timeline(events=5))
    with made.runtime:
        for _ in range(3):
            made.use("clip", "unet", "vae", "other unet")
        recording, status = made.recording(), made.runtime.analyze(made.device)
    counters = recording.counters
    of = {
        kind: counters[counters["kind"] == recording.kinds.index(kind)] for kind in recording.kinds
    }
    assert of["copy"]["bytes"].sum() == status.filled
    assert of["evict"]["bytes"].sum() == status.evicted
    assert of["request"]["times"].sum() == 12
    assert len(recording.events) == 5
    assert recording.lost > 10


@pytest.mark.parametrize("policy", trace.POLICIES)
@pytest.mark.parametrize("working", [0, 1, 3 * MIB + 5])
def test_a_replay_moves_what_was_really_moved(policy: str, working: int) -> None:
    made = House("25MiB", hints=False, policy=policy)
    with made.runtime:
        for number in range(7):
            made.use("clip", "unet", "vae", working=working)
            if number % 3 == 2:
                made.use("clip", "other unet", "vae", working=working or None)
        made.runtime.vram[made.device].limit = "21MiB"
        for _ in range(4):
            made.use("clip", "unet", "vae", working=working)
        recording = made.recording()
    done = trace.replay(recording)
    assert done.policy == policy
    assert recording.copied() == made.runtime.analyze(made.device).filled
    assert done.bytes_moved == recording.copied() >= done.bound > 0


def without(recording: co.trace.Recording, *kinds: str) -> co.trace.Recording:
    """A recording that has not recorded these events."""
    file = json.loads(recording.to_json())
    gone = {file["kinds"].index(kind) for kind in kinds}
    stay = [at for at, kind in enumerate(file["events"]["kind"]) if kind not in gone]
    file["events"] = {of: [all_[at] for at in stay] for of, all_ in file["events"].items()}
    return co.trace.Recording.parse(json.dumps(file))


def some_jobs(count: int) -> list[list[str]]:
    """Jobs that nobody could foretell."""
    some = random.Random(5)
    return [some.sample(sorted(SIZES), some.randint(1, 4)) for _ in range(count)]


@pytest.mark.parametrize("policy", trace.POLICIES)
def test_a_replay_knows_the_stages_that_were_declared(policy: str, tmp_path: Path) -> None:
    made = House("25MiB", hints=False, policy=policy)
    with made.runtime:
        for number, keys in enumerate(some_jobs(40)):
            # One in five does not say, and one in seven does something else.
            stages = None if number % 5 == 4 else keys
            made.job(*(keys[::-1] if number % 7 == 6 else keys), stages=stages)
            if number % 10 == 9:
                made.use("clip", "vae")
            if number % 8 == 7:
                with made.runtime.job(["other unet", "clip", "other unet"], device=made.device):
                    made.use("other unet")
                    made.job("unet", "vae", stages=["unet", "vae"])
                    made.use("clip", "other unet")
        recording = made.recording()
    done = trace.replay(recording)
    assert done.bytes_moved == recording.copied() >= done.bound > 0
    begun = made.events("job declared")
    assert len(begun) == len(made.events("job released")) == 50
    stages = [recording.names[label] for label in begun["component"]]
    assert json.loads(stages[0]) == some_jobs(1)[0]
    assert stages[4] == "", "it did not say"
    nested = begun[begun["of"] != 0]
    assert len(nested) == 5
    assert set(nested["of"]) <= set(begun["job"])
    path = tmp_path / "timeline.json"
    recording.save(path)
    assert trace.replay(path).bytes_moved == recording.copied()
    if policy == trace.POLICIES[0]:
        guessed = trace.replay(without(recording, "job declared", "job released"))
        assert guessed.bytes_moved != recording.copied(), "it makes a difference"


@pytest.mark.parametrize("policy", trace.POLICIES)
@pytest.mark.parametrize("declares", [True, False])
def test_a_replay_knows_what_was_known_to_come(policy: str, declares: bool) -> None:
    made, jobs, some = House("25MiB", hints=False, policy=policy), some_jobs(40), random.Random(6)
    runtime = made.runtime
    with runtime:
        for number, keys in enumerate(jobs):
            # Now none, now more than anybody looks at, now wrong, now unknown.
            coming = jobs[number + 1 : number + 1 + some.randint(0, 12)]
            runtime.forecast = coming[::-1] if number % 9 == 8 else coming
            if number % 11 == 10:
                runtime.forecast = None
            if number % 13 == 12:
                runtime.forecast = lambda _device, most, known=coming: known[:most]
            if declares:
                made.job(*keys, stages=keys)
            else:
                made.use(*keys)
        recording, known = made.recording(), made.events("forecast")
    assert trace.replay(recording).bytes_moved == recording.copied()
    assert 20 < len(known) <= 43, "once for each change"
    first = recording.names[known["component"][0]]
    assert first == "" or json.loads(first) in jobs
    if policy == trace.POLICIES[0]:
        blind = trace.replay(without(recording, "forecast"), lookahead=0)
        assert blind.bytes_moved != recording.copied(), "it makes a difference"
        assert trace.replay(recording, lookahead=0).bytes_moved == blind.bytes_moved
        assert trace.replay(recording, lookahead=8).lookahead == 8


def test_jobs_of_a_queue_are_told_what_would_have_spared_copies() -> None:
    made = House("64MiB", hints=False)
    runtime = made.runtime
    runtime.vram[made.device].limit = "20MiB"

    def work(job: co.ServedJob) -> None:
        for key in job.needs:
            with made.models[key].on(job.device, PAGE):
                pass

    with runtime:
        with runtime.serve(work) as server:
            jobs = [
                server.queue.submit({}, user=f"user {at % 2}", needs=keys)
                for at, keys in enumerate(some_jobs(40))
            ]
            for job in jobs:
                job.result(120)
        recording, found = made.recording(), runtime.hints()
    assert trace.replay(recording).bytes_moved == recording.copied()
    assert len(made.events("forecast")) > 1
    assert len(made.events("job declared")) == 40
    assert [hint.kind for hint in found] == ["budget"]


def test_declared_jobs_are_told_what_would_have_spared_copies() -> None:
    made = House("64MiB", hints=False)
    made.runtime.vram[made.device].limit = "20MiB"
    with made.runtime:
        for keys in some_jobs(60):
            made.job(*keys, stages=keys)
        recording, found = made.recording(), made.runtime.hints()
    assert [hint.kind for hint in found] == ["budget"]
    told = without(recording, "job declared", "job released")
    assert told.hints_on("virtual:0") == [], "of what it cannot explain it says nothing"


def test_there_is_an_end_to_lists_of_stages() -> None:
    made = House("64MiB", hints=False)
    with made.runtime:
        many = [f"model {number}" for number in range(1100)]
        for key in many:
            made.runtime.job([key], device=made.device).release()
        made.runtime.job(many * 2, device=made.device).release()
        made.job("clip", stages=["clip"])
        recording, begun = made.recording(), made.events("job declared")["component"]
    names = [recording.names[label] for label in begun]
    assert names[:1024] == [json.dumps([key]) for key in many[:1024]]
    assert set(names[1024:]) == {"(others)"}
    assert trace.replay(recording).bytes_moved == recording.copied()


def test_models_that_are_used_at_once_stay_in_a_replay_too(house: House) -> None:
    device, models = house.device, house.models
    for _ in range(4):
        with house.runtime.pool.lease(device):
            with models["clip"].on(device), models["unet"].on(device), models["vae"].on(device):
                pass
            with models["vae"].on(device), models["other unet"].on(device):
                pass
    recording = house.recording()
    assert trace.replay(recording).bytes_moved == recording.copied()


def test_a_file_is_as_good_as_the_timeline(house: House, tmp_path: Path) -> None:
    for _ in range(3):
        house.use("clip", "unet", "vae", "other unet")
    path = tmp_path / "timeline.json"
    house.runtime.timeline.save(path)
    recording = trace.load(path)
    assert recording.to_json() == path.read_text()
    assert json.loads(path.read_text())["format"] == "coresident-timeline"
    assert (recording.events == house.recording().events[: len(recording.events)]).all()
    assert trace.replay(path).bytes_moved == house.recording().copied()
    assert trace.replay(house.runtime.timeline).bytes_moved == house.recording().copied()
    as_trace = json.loads(recording.trace())
    assert trace.replay(as_trace, policy="lru").bound == trace.replay(recording).bound


def test_nothing_is_recorded_while_it_is_off() -> None:
    made = House("24MiB", timeline=False)
    with made.runtime:
        made.use("clip")
        assert len(made.recording().events) == 0
        made.runtime.timeline.enabled = True
        made.use("clip")
        assert len(made.events("request")) == 1
        made.runtime.timeline.clear()
        assert len(made.recording().events) == 0


def test_any_thread_records_what_it_likes() -> None:
    timeline = co.Timeline()
    at_once = threading.Barrier(4)

    def work(number: int) -> None:
        at_once.wait()
        for step in range(200):
            timeline.record(
                "step", "cuda:0", f"job {number}", whom="ann", nbytes=step, seconds=0.5, job=number
            )

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recording = timeline.recording()
    for number in range(4):
        own = recording.events[recording.events["job"] == number]
        assert own["bytes"].tolist() == list(range(200)), "each thread's are in order"
    assert np.unique(recording.events["took"]).tolist() == [0.5]
    assert {recording.names[whom] for whom in recording.events["whom"]} == {"ann"}


def reloading(limit: str, **options: Any) -> House:
    made = House("64MiB", **options)
    made.runtime.vram[made.device].limit = limit
    for _ in range(6):
        made.use("clip", "unet", "vae")
    return made


def test_a_limit_that_is_too_low_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    # 20 MiB of weights, and 2 MiB beside.
    made = reloading("20MiB")
    with caplog.at_level(logging.WARNING, "coresident.hints"), made.runtime:
        [hint] = made.runtime.hints()
        made.runtime.close()
    assert (hint.kind, hint.device, hint.advice) == ("budget", "virtual:0", {"limit": 22 * MIB})
    assert hint.spared == hint.bytes == made.recording().copied() - 20 * MIB > 0
    assert hint.copies == len(made.events("copy")) - 3
    assert hint.component in hint.components
    assert hint.share is not None
    assert 0 < hint.share <= 1
    assert hint.seconds > 0
    assert str(hint).endswith("would have fitted: raise the budget's limit to 22 MiB")
    assert [record.getMessage() for record in caplog.records] == [str(hint)]
    with made.runtime.__class__(co.virtual_devices(1)) as other:
        assert other.hints() == []


class Heard(logging.Handler):
    """Keeps which threads have logged something, and when the first has."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[threading.Thread] = []
        self.first = threading.Event()

    def emit(self, _record: logging.LogRecord) -> None:
        self.threads.append(threading.current_thread())
        self.first.set()


def called(what: Any) -> list[str]:
    """The names of what is not written in Python and was called meanwhile by this thread."""
    names: list[str] = []

    def note(_frame: Any, event: str, function: Any) -> None:
        if event == "c_call":
            names.append(function.__name__)

    sys.setprofile(note)
    try:
        what()
    finally:
        sys.setprofile(None)
    return names


def test_whoever_uses_models_never_replays() -> None:
    made, heard = House("64MiB"), Heard()
    made.runtime.vram[made.device].limit = "20MiB"
    log = logging.getLogger("coresident.hints")
    log.addHandler(heard)
    try:
        names = called(lambda: [made.use("clip", "unet", "vae") for _ in range(34)])
        assert heard.first.wait(60), "the 100th use has begun a look"
        [looked] = heard.threads
        looked.join()
        assert "hints_on" in called(made.runtime.hints), "a replay here would be seen"
    finally:
        log.removeHandler(heard)
        made.runtime.close()
    assert {"lease", "used"} <= set(names)
    assert not {"hints_on", "recording"} & set(names)
    assert looked is not threading.current_thread()
    assert looked.daemon
    assert heard.threads == [looked], "it is told once, also by whoever closes"


def test_closing_looks_at_the_last_requests_only(caplog: pytest.LogCaptureFixture) -> None:
    made = House("64MiB")
    made.runtime.vram[made.device].limit = "20MiB"
    with caplog.at_level(logging.ERROR, "coresident.hints"):
        for _ in range(110):
            made.use("clip", "unet", "vae")
    with caplog.at_level(logging.WARNING, "coresident.hints"):
        made.runtime.close()
    recording = made.recording()
    [all_of_it], [last] = (recording.hints_on("virtual:0", most) for most in (None, 300))
    assert last.copies < all_of_it.copies
    assert [record.getMessage() for record in caplog.records] == [str(last)]


def test_the_interpreter_exits_whatever_is_looked_for() -> None:
    script = """
import threading
import coresident as co
from coresident import _hints

def looks():
    return [one for one in threading.enumerate() if one.name == "coresident hints"]

[device] = co.virtual_devices(1)
early, late = co.Runtime(device), co.Runtime(device)
for runtime in early, late:
    timeline = runtime.timeline
    timeline.set_device(device, 40, 12, 0, 0, "lru")
    for number in range(4000):
        timeline.record("request", device, f"unet {number % 3}", nbytes=10, of=12)
        cause = "first use" if number < 3 else "came back"
        timeline.record("copy", device, f"unet {number % 3}", cause=cause, nbytes=10)
for _ in range(100):
    early._hints.used(device)
begun = len(looks())
_hints.finish_all()
for _ in range(100):
    late._hints.used(device)
print(begun, len(looks()) <= begun, late._hints._look)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=100
    )
    assert (done.returncode, done.stdout.strip()) == (0, "1 True None")
    # What was found in time is told, and nothing else.
    assert done.stderr.count("\n") <= 1, done.stderr
    assert "Fatal" not in done.stderr


def test_what_a_hint_says_helps_on_the_device() -> None:
    made = reloading("20MiB", hints=False)
    with made.runtime:
        [hint] = made.runtime.hints()
        made.runtime.vram[made.device].limit = hint.advice["limit"]
        before = made.runtime.analyze(made.device).filled
        made.use("clip", "unet", "vae")
        made.use("clip", "unet", "vae")
        again = made.runtime.analyze(made.device).filled - before
        assert again <= 20 * MIB, "what had left comes once, and stays"
        made.use("clip", "unet", "vae")
        assert made.runtime.analyze(made.device).filled == before + again


def test_weights_that_always_leave_are_told(house: House) -> None:
    made = House("64MiB", hints=False, policy="always-evict")
    with made.runtime:
        for _ in range(4):
            made.use("clip", "unet", "vae")
        [hint] = made.runtime.hints()
        assert (hint.kind, hint.advice) == ("always-evict", {"watermarks": None})
        assert hint.spared == hint.bytes == 60 * MIB
    # Where there is room, nobody is told anything.
    house.use("clip", "vae")
    house.use("clip", "vae")
    assert house.runtime.hints() == []


def test_working_memory_that_calls_do_not_use_is_told() -> None:
    made = House("22MiB", hints=False)
    with made.runtime:
        for _ in range(5):
            made.use("clip", "unet", "vae", working=7 * MIB, call=True)
        kinds = {hint.kind: hint for hint in made.runtime.hints()}
    hint = kinds["working-memory"]
    assert set(hint.advice["working_memory"]) <= {"clip", "unet", "vae"}
    assert all(enough < MIB for enough in hint.advice["working_memory"].values())


def test_hints_are_silenced(caplog: pytest.LogCaptureFixture) -> None:
    made = reloading("20MiB")
    with caplog.at_level(logging.WARNING, "coresident.hints"), made.runtime:
        [hint] = made.runtime.hints()
        made.runtime.silence_hints("policy")
        made.runtime.silence_hints("budget", "another")
        assert len(made.runtime.hints()) == 1
        made.runtime.silence_hints("budget", hint.component)
        assert made.runtime.hints() == []
        made.runtime.close()
        quiet = reloading("20MiB", hints=False)
        quiet.runtime.close()
        assert len(quiet.runtime.hints()) == 1, "who asks is told"
    assert caplog.records == []


def test_what_nobody_can_explain_is_no_ground_for_a_hint(house: House) -> None:
    made = House("64MiB", hints=False)
    with made.runtime:
        for _ in range(6):
            made.use("clip", "unet")
            made.runtime.arenas[made.device].evict()
        assert made.events("copy")["bytes"].sum() > 90 * MIB
        assert made.runtime.hints() == []


def test_explain_says_where_bytes_and_time_went(house: House) -> None:
    for _ in range(3):
        house.use("clip", "unet", "vae", "other unet")
    explained = house.runtime.explain()
    rows = {row.component: row for row in explained.rows}
    assert set(rows) == set(SIZES)
    assert sum(row.first + row.again for row in explained.rows) == house.recording().copied()
    assert rows["unet"].first == 14 * MIB
    assert rows["unet"].requests == 3
    assert rows["unet"].share is not None
    assert 0 < rows["unet"].share < 1
    assert sum(row.evicted for row in explained.rows) == house.runtime.analyze(house.device).evicted
    table = str(explained).splitlines()
    [summary, heads, *lines] = [line for line in table if not line.startswith("hint:")]
    assert summary.startswith("virtual:0: ")
    assert "of it again" in summary
    assert "of jobs" in summary
    assert heads.split()[:3] == ["device", "model", "wanted"]
    assert len(lines) == len(SIZES)
    assert all(line.rstrip() == line for line in lines)
    assert len({len(line) for line in lines}) == 1, "columns are aligned"
    html = explained._repr_html_()
    assert "<svg" in html
    assert html.count("<tr>") == 1 + len(SIZES)


def test_the_picture_shows_who_was_where(house: House, tmp_path: Path) -> None:
    for _ in range(2):
        house.use("clip", "unet", "vae", "other unet")
    house.runtime.explain().save_svg(tmp_path / "out.svg", title="a <title> & more")
    picture = Xml.fromstring((tmp_path / "out.svg").read_text())
    words = ["".join(each.itertext()) for each in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "a <title> & more" in words
    assert "virtual:0" in words
    assert "limit 24 MiB" in words
    titles = [each.text or "" for each in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert sum("came back" in title for title in titles) == len(
        [copy for copy in house.events("copy") if copy["cause"] == 2]
    )
    assert any(title.startswith("unet, used for") for title in titles)
    assert any(title == "unet: 14 MiB at most" for title in titles)


def test_an_empty_timeline_is_explained_too() -> None:
    explained = trace.explain(co.Timeline())
    assert str(explained).splitlines()[0] == "nothing was copied to any device"
    Xml.fromstring(explained.svg())
    assert "<table" in explained._repr_html_()


def test_devices_without_events_of_their_own_are_left_out(house: House) -> None:
    house.runtime.timeline.record("stage", None, "queueing", seconds=0.1)
    house.use("clip")
    assert house.recording().requested() == ["virtual:0"]
    Xml.fromstring(house.runtime.explain().svg())


def test_the_commands_take_recorded_timelines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = reloading("20MiB", hints=False)
    with made.runtime:
        made.runtime.timeline.save(tmp_path / "slow.json")
    file = str(tmp_path / "slow.json")
    assert command_line.main(["trace", "replay", file, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["bytes_moved"] == made.recording().copied()
    assert told["policy"] == "look-ahead"
    assert command_line.main(["trace", "replay", file, "--policy", "all"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(trace.POLICIES)
    assert command_line.main(["trace", "hints", file]) == 0
    assert "slow.json: " in (said := capsys.readouterr().out)
    assert "to 22 MiB" in said
    assert command_line.main(["trace", "hints", file, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["advice"] == {"limit": 22 * MIB}
    assert command_line.main(["trace", "explain", file, "--svg", str(tmp_path / "out.svg")]) == 0
    assert "hint: " in capsys.readouterr().out
    Xml.fromstring((tmp_path / "out.svg").read_text())
    assert command_line.main(["trace", "replay", file, "--device", "cuda:7"]) == 2
    assert "requests of virtual:0, and none of cuda:7" in capsys.readouterr().err
    flux = str(Path(__file__).parents[2] / "benches" / "traces" / "flux-fp8-16g.json")
    assert command_line.main(["trace", "hints", flux]) == 0
    assert "no hint" in capsys.readouterr().out
    assert command_line.main(["trace", "hints", flux, "--memory", "24GiB"]) == 0
    assert "raise the budget's limit to" in capsys.readouterr().out


def test_a_forked_child_is_told_and_its_parent_goes_on() -> None:
    script = """
import os, coresident as co
timeline = co.Timeline()
timeline.record("step")
child = os.fork()
if child == 0:
    assert not timeline.enabled
    try:
        timeline.recording()
    except co.ForkedError as error:
        assert "timeline" in str(error)
        os._exit(3)
    os._exit(4)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
assert len(timeline.recording().events) == 1
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda: co.Timeline("many"), co.InvalidTypeError, "events is a whole number, not str"),
        (lambda: co.Timeline(0), co.InvalidValueError, "events is 1 to"),
        (lambda: co.Timeline(2**40), co.InvalidValueError, "events is 1 to"),
        (lambda: co.Timeline().record("party"), co.InvalidValueError, "kind is one of job begins"),
        (lambda: co.Timeline().record(3), co.InvalidTypeError, "kind is a text, not int"),
        (lambda: co.Timeline().record("copy", "gpu"), co.InvalidDeviceError, "gpu"),
        (lambda: co.Timeline().record("copy", cause="boredom"), co.InvalidValueError, "first use"),
        (lambda: co.Timeline().record("copy", nbytes=-1), co.InvalidValueError, "nbytes"),
        (lambda: co.Timeline().record("copy", nbytes=1.5), co.InvalidTypeError, "nbytes"),
        (lambda: co.Timeline().record("copy", seconds=-1), co.InvalidValueError, "seconds"),
        (lambda: co.Timeline().record("copy", seconds="1"), co.InvalidTypeError, "seconds"),
        (
            lambda: co.Timeline().record("copy", seconds=float("nan")),
            co.InvalidValueError,
            "seconds",
        ),
        (lambda: co.Timeline().record("copy", job=-1), co.InvalidValueError, "job"),
        (lambda: setattr(co.Timeline(), "enabled", "yes"), co.InvalidTypeError, "True or False"),
        (lambda: co.Timeline().save(3), co.InvalidTypeError, "path of a file, not int"),
        (lambda: co.Timeline().save("/nowhere/at/all.json"), FileNotFoundError, "nowhere"),
        (lambda: trace.load(3), co.InvalidTypeError, "path of a file, not int"),
        (lambda: trace.load("nowhere.json"), FileNotFoundError, "nowhere"),
        (lambda: trace.replay(co.Timeline()), co.InvalidValueError, "no requests of any device"),
        (lambda: trace.replay(co.Timeline(), device=3), co.InvalidTypeError, "device is the name"),
        (lambda: trace.replay({"name": "a"}, device="cuda:0"), co.InvalidValueError, "one device"),
        (lambda: trace.hints(co.Timeline(), memory=3), co.InvalidValueError, "leave it out"),
        (lambda: trace.explain({"name": "a"}), co.InvalidValueError, "traces have no times"),
        (lambda: trace.explain(co.Timeline()).svg(3), co.InvalidTypeError, "title is a text"),
        (lambda: trace.explain(co.Timeline()).save_svg(3), co.InvalidTypeError, "path"),
        (lambda: co.Runtime("cpu", timeline=3), co.InvalidTypeError, "timeline is True, False or"),
        (
            lambda: co.Timeline().recording().hints_on("cpu", "all"),
            co.InvalidTypeError,
            "requests is a whole number",
        ),
        (lambda: co.Runtime("cpu", hints="no"), co.InvalidTypeError, "hints is True or False"),
        (lambda: co.Runtime("cpu").silence_hints("all"), co.InvalidValueError, "kind is one of"),
        (lambda: co.Runtime("cpu").silence_hints(3), co.InvalidTypeError, "kind is a text"),
        (lambda: co.Runtime("cpu").silence_hints(None, 3), co.InvalidTypeError, "component is"),
    ],
)
def test_bad_input_is_refused(call: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        call()


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    for text, told in [
        ("", "EOF"),
        ("{}", "its format is not"),
        ('{"format": "coresident-timeline", "version": 9}', "version 9"),
        ('{"format": "coresident-timeline", "version": 1}', "missing field"),
    ]:
        path.write_text(text)
        with pytest.raises(co.InvalidValueError, match=told):
            trace.load(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(co.InvalidValueError, match="no recorded timeline"):
        trace.load(path)
