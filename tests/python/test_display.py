"""What people look at: timelines, grids of images, progress bars."""

from __future__ import annotations

import io
from xml.etree import ElementTree

import coresident as co
import pytest
from conftest import spawn, until
from coresident.display import JobProgress, Span, Timeline, grid, watch

DEVICES = co.virtual_devices(2)
SVG = "{http://www.w3.org/2000/svg}"


def span(device: int, start: float, end: float, **more: object) -> Span:
    named = {"user": "ann", "job": "seven", "stage": "unet", **more}
    return Span(device=f"virtual:{device}", start=start, end=end, **named)  # type: ignore[arg-type]


def drawn(timeline: Timeline, title: str = "") -> ElementTree.Element:
    return ElementTree.fromstring(timeline.svg(title))


def test_time_in_which_two_work_on_a_device_counts_once() -> None:
    timeline = Timeline(DEVICES, [span(0, 0, 4), span(0, 2, 6), span(0, 3, 5), span(0, 9, 10)])
    assert timeline.busy(DEVICES[0]) == pytest.approx(0.7)
    assert timeline.busy(DEVICES[1]) == 0


def test_all_are_busy_at_once_where_every_lane_has_a_span() -> None:
    spans = [span(0, 0, 4), span(0, 6, 10), span(1, 3, 7), span(1, 8, 9)]
    assert Timeline(DEVICES, spans).busy_at_once() == pytest.approx((1 + 1 + 1) / 10)
    assert Timeline(DEVICES, spans[:2]).busy_at_once() == 0


def test_the_time_runs_from_the_first_start_to_the_last_end() -> None:
    timeline = Timeline(DEVICES, [span(0, 5, 6), span(1, 2, 4)])
    assert (timeline.start, timeline.seconds) == (2, 4)


def test_a_stage_is_one_span_however_many_calls_it_took() -> None:
    spans = [
        *(span(0, start, start + 0.5) for start in (0, 1, 2)),
        span(1, 0, 1, borrowed=True),
        span(0, 3, 4, stage="vae"),
        span(0, 5, 6, job="eight"),
        span(0, 7, 8, job="eight", number=2),
    ]
    merged = Timeline(DEVICES, spans).stages()
    assert [(s.device, s.job, s.stage, s.start, s.end, s.borrowed) for s in merged] == [
        ("virtual:0", "seven", "unet", 0, 2.5, False),
        ("virtual:1", "seven", "unet", 0, 1, True),
        ("virtual:0", "seven", "vae", 3, 4, False),
        ("virtual:0", "eight", "unet", 5, 6, False),
        ("virtual:0", "eight", "unet", 7, 8, False),
    ]


@pytest.mark.parametrize(
    ("start", "end"), [(2, 1), (0, float("inf")), (float("-inf"), 0), (float("nan"), 1)]
)
def test_a_span_that_does_not_end_after_its_start_is_refused(start: float, end: float) -> None:
    with pytest.raises(co.InvalidValueError, match="has to end, and not before it starts"):
        span(0, start, end)


def test_what_raises_is_not_recorded() -> None:
    timeline = Timeline(DEVICES)
    with pytest.raises(ZeroDivisionError):
        with timeline.record(DEVICES[0], user="ann", job="seven", stage="vae"):
            1 / 0  # noqa: B018
    with timeline.record(DEVICES[1], user="ann", job="seven", stage="vae", borrowed=True):
        pass
    (only,) = timeline.spans
    assert (only.device, only.user, only.borrowed) == ("virtual:1", "ann", True)
    assert 0 <= only.start <= only.end


def test_spans_of_many_threads_are_all_there() -> None:
    timeline = Timeline(DEVICES)

    def record() -> None:
        for number in range(500):
            with timeline.record(DEVICES[0], user="ann", job=str(number), stage="unet"):
                pass

    for thread in [spawn(record) for _ in range(8)]:
        thread.join()
    assert len(timeline.spans) == 4000


def test_the_picture_has_a_lane_for_each_device_and_a_bar_for_each_stage() -> None:
    spans = [span(0, 0, 5), span(0, 5, 6, stage="vae"), span(1, 0, 2, user="bob", borrowed=True)]
    picture = drawn(Timeline(DEVICES, spans), "three bars")
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert {"three bars", "virtual:0", "100% busy", "virtual:1", "33% busy"} <= set(texts)
    bars = [title.text or "" for title in picture.iter(f"{SVG}title")]
    assert [bar.partition(",")[0] for bar in bars] == ["ann: seven", "ann: seven", "bob: seven"]
    assert "on a borrowed device" in bars[2]


def test_a_bar_lies_where_its_time_is() -> None:
    picture = drawn(Timeline(DEVICES, [span(0, 10, 20), span(1, 15, 20)]))
    bars = [group.find(f"{SVG}rect") for group in picture.iter(f"{SVG}g")]
    first, second = (
        {key: bar.get(key) for key in ("x", "width")} for bar in bars if bar is not None
    )
    assert float(second["width"] or 0) == pytest.approx(float(first["width"] or 0) / 2, abs=0.1)
    assert float(second["x"] or 0) == pytest.approx(
        float(first["x"] or 0) + float(second["width"] or 0), abs=0.2
    )


@pytest.mark.parametrize("spans", [[], [span(0, 1, 1)]], ids=["no span", "no time"])
def test_a_timeline_of_nothing_can_be_drawn(spans: list[Span]) -> None:
    timeline = Timeline(DEVICES, spans)
    assert timeline.busy_at_once() == 0
    assert len(list(drawn(timeline).iter(f"{SVG}title"))) == len(spans)


def test_any_name_can_be_drawn() -> None:
    odd = span(0, 0, 1, user='<b>&"', job="</svg>", stage="' onload='")
    titles = [title.text for title in drawn(Timeline(DEVICES, [odd]), "<&>").iter(f"{SVG}title")]
    assert titles == ["<b>&\": </svg>, ' onload=', 1.000 s"]


def test_a_timeline_shows_itself_in_a_notebook() -> None:
    timeline = Timeline(DEVICES, [span(0, 0, 1)])
    assert timeline._repr_svg_() == timeline.svg()


def test_images_stand_in_rows_with_their_captions() -> None:
    images = pytest.importorskip("PIL.Image", reason="Pillow comes with the diffusers extra")
    colours = ["red", "lime", "blue"]
    sheet = grid(
        [images.new("RGB", (4, 4), colour) for colour in colours],
        [("one", "ann"), ("two", "bob"), ("three", "cyd")],
        columns=2,
        size=40,
    )
    assert sheet.size == (2 * 48 + 8, 8 + 2 * (48 + 30))
    middles = [sheet.getpixel(at) for at in ((28, 28), (76, 28), (28, 106))]
    assert middles == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    caption = sheet.crop((8, 49, 48, 78)).convert("L").getextrema()
    assert caption[0] < 128, "nothing is written below the first image"


def test_a_caption_stays_below_its_image() -> None:
    images = pytest.importorskip("PIL.Image", reason="Pillow comes with the diffusers extra")
    sheet = grid([images.new("RGB", (4, 4))] * 2, [["a long\n" * 20], [""]], size=60)
    below_the_other = sheet.crop((76, 69, 136, 90))
    assert below_the_other.convert("L").getextrema() == (255, 255)


@pytest.mark.parametrize(
    ("count", "captions", "terms", "message"),
    [
        (0, [], {}, "at least one image"),
        (1, [], {}, "1 images and 0 captions"),
        (1, [["a"]], {"columns": 0}, "columns=0"),
        (1, [["a"]], {"size": 0}, "size=0"),
        (1, [["a"]], {"size": 10**6}, "too much for one: 1000016 x"),
    ],
)
def test_a_grid_of_nothing_is_refused(
    count: int, captions: list[list[str]], terms: dict[str, int], message: str
) -> None:
    images = pytest.importorskip("PIL.Image", reason="Pillow comes with the diffusers extra")
    with pytest.raises(co.InvalidValueError, match=message):
        grid([images.new("L", (1, 1))] * count, captions, **terms)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_job_has_a_bar_while_it_runs_where_somebody_looks(terminal: bool) -> None:
    console = pytest.importorskip("rich.console", reason="rich comes with the diffusers extra")
    screen = io.StringIO()
    looked_at = console.Console(file=screen, force_terminal=terminal, width=100)
    with JobProgress(2, looked_at) as progress:
        with progress.job("virtual:0", "ann", "a [bold]seven", steps=3) as bar:
            bar.advance()
            bar.show_device("virtual:0 + virtual:1")
            progress._progress.refresh()
            during = screen.getvalue()
        screen.truncate(0)
        progress._progress.refresh()
        after = screen.getvalue()
    for seen in ("virtual:0 + virtual:1", "ann", "a [bold]seven", "1/3", "all jobs", "0/2"):
        assert (seen in during) == terminal
    assert ("1/2" in after) == terminal
    assert "ann" not in after


def test_a_job_that_fails_does_not_count_and_leaves_no_bar() -> None:
    pytest.importorskip("rich", reason="rich comes with the diffusers extra")
    progress = JobProgress(1)
    with pytest.raises(ZeroDivisionError), progress.job("virtual:0", "ann", "seven", steps=1):
        1 / 0  # noqa: B018
    (remaining,) = progress._progress.tasks
    assert (remaining.description, remaining.completed) == ("all jobs", 0)


def test_a_job_that_was_cancelled_is_marked_where_it_ended() -> None:
    spans = [span(0, 0, 1, number=1), span(0, 1, 2, number=1), span(0, 3, 4, number=2, job="eight")]
    timeline = Timeline(DEVICES, spans)
    timeline.mark_cancelled(1)
    timeline.mark_cancelled(7)
    assert [(one.job, one.cancelled) for one in timeline.stages()] == [
        ("seven", True),
        ("eight", False),
    ]
    picture = drawn(timeline)
    titles = [title.text or "" for title in picture.iter(f"{SVG}title")]
    assert [", cancelled" in title for title in titles] == [True, False]
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert "cancelled" in texts, "the legend does not say what the cross means"


# The jobs of a queue, live


@pytest.mark.parametrize("terminal", [True, False])
def test_a_queue_is_watched_in_one_call(terminal: bool) -> None:
    rich = pytest.importorskip("rich.console", reason="rich comes with the diffusers extra")
    screen = io.StringIO()
    console = rich.Console(file=screen, force_terminal=terminal, width=120)
    queue = co.JobQueue(devices=DEVICES)
    before = queue.submit({"what": "a [bold]seven"}, user="ann")
    with watch(queue, describe=lambda job: str(job.payload["what"]), console=console) as bars:
        with queue.claim("virtual:0") as claim:
            claim.stage("unet")
            claim.step(2, 5)
            until(lambda: {task.completed for task in bars._progress.tasks} == {0, 2})
            bars._progress.refresh()
            during = screen.getvalue()
            claim.finish()
        failed = queue.submit({"what": "an eight"}, user="bob")
        with queue.claim("virtual:1") as claim:
            claim.fail("no such seed")
        queue.submit({"what": "a nine"}, user="cyd").cancel("not wanted")
        until(lambda: bars._progress.tasks[0].completed == 3)
        assert len(bars._progress.tasks) == 1
        bars._progress.refresh()
    assert (before.state, failed.state) == ("done", "failed")
    label = DEVICES[0].label
    for seen in (label, "ann", "a [bold]seven", "unet", "2/5", "all jobs"):
        assert (seen in during) == terminal
    for left in ("bob: an eight on virtual:1: no such seed", "cyd: a nine: cancelled: not wanted"):
        assert (left in screen.getvalue()) == terminal
    bars.close()
    queue.close()


def test_bars_end_with_their_queue() -> None:
    pytest.importorskip("rich", reason="rich comes with the diffusers extra")
    queue = co.JobQueue(devices=DEVICES)
    bars = watch(queue, user="ann")
    queue.submit(b"", user="bob")
    queue.close()
    until(lambda: not bars._thread.is_alive())
    assert bars._progress.tasks[0].total == 0, "those of others are not shown"
    bars.close()


def test_what_cannot_be_watched_is_refused() -> None:
    for arguments, message in (
        (("jobs.sqlite",), "queue is a JobQueue, not str"),
        ((co.JobQueue(devices=DEVICES), {"describe": 1}), "describe is a function of a job"),
        ((co.JobQueue(devices=DEVICES), {"user": 1}), "user is a text"),
    ):
        terms = arguments[1] if len(arguments) > 1 else {}
        with pytest.raises(co.InvalidTypeError, match=message):
            watch(arguments[0], **terms)
