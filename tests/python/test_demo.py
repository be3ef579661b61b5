"""The demo: real images of several users, from one copy of the weights, on several devices."""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import coresident as co
import pytest
from conftest import run_script, spawn, until
from coresident import demo
from coresident.__main__ import main

torch = pytest.importorskip("torch", reason="torch is an extra, and not installed here")
pytest.importorskip("diffusers", reason="diffusers is an extra, not installed here")
images = pytest.importorskip("PIL.Image", reason="Pillow comes with the diffusers extra")
pytest.importorskip("rich", reason="rich comes with the diffusers extra")

from coresident.demo.pipeline import MODULES, SharedPipeline  # noqa: E402
from coresident.demo.show import changed, wanted  # noqa: E402
from coresident.demo.studio import TEXT_ENCODER, UNET, VAE, Job, Studio  # noqa: E402

STEPS = 3


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def studio() -> Iterator[Callable[..., Studio]]:
    """Makes studios with so many devices."""
    runtimes: list[co.Runtime] = []

    def make(devices: int = 2, *, split: bool = False, steps: int = STEPS) -> Studio:
        runtimes.append(runtime := co.Runtime(co.virtual_devices(devices)))
        return Studio(runtime, SharedPipeline(runtime, demo.DIGITS), steps, split=split)

    yield make
    for runtime in runtimes:
        runtime.close(timeout=20)


def bits(studio: Studio, jobs: list[Job]) -> list[bytes]:
    return [drawing.image.tobytes() for drawing in studio.draw_all(jobs)]


# The images


def test_the_bits_do_not_depend_on_the_number_of_devices_or_on_splitting(
    studio: Callable[..., Studio],
) -> None:
    jobs = wanted(4, users=2)
    alone = bits(studio(1), jobs)
    assert len(set(alone)) == len(alone)
    for devices, split in ((2, False), (3, False), (2, True), (3, True)):
        assert bits(studio(devices, split=split), jobs) == alone, f"{devices} devices, {split=}"


def test_the_seed_alone_makes_another_image(studio: Callable[..., Studio]) -> None:
    drawn = bits(studio(), [Job("ann", "a handwritten two", seed) for seed in (1, 2, 1)])
    assert drawn[0] == drawn[2] != drawn[1]


@pytest.mark.parametrize("split", [False, True])
def test_every_step_is_two_calls_of_one_image(studio: Callable[..., Studio], split: bool) -> None:
    one = studio(split=split)
    batches: list[int] = []
    for device in one.timeline.devices:
        unet = one._pipeline.module("unet", device)
        unet.register_forward_pre_hook(lambda _module, inputs: batches.append(len(inputs[0])))
    one.draw_all(wanted(2, users=1))
    assert batches == [1] * (2 * STEPS * 2)
    assert sum(span.stage == UNET for span in one.timeline.spans) == len(batches)


# Who runs where


def test_split_guidance_runs_on_two_devices(studio: Callable[..., Studio]) -> None:
    one = studio(split=True)
    drawings = one.draw_all(wanted(2, users=2))
    halves = [span for span in one.timeline.spans if span.stage == UNET]
    assert sum(span.borrowed for span in halves) == len(halves) / 2
    homes = {drawing.job.subject: str(drawing.device) for drawing in drawings}
    assert all((span.device != homes[span.job]) == span.borrowed for span in halves)


def test_without_an_idle_device_both_halves_run_at_home(studio: Callable[..., Studio]) -> None:
    one = studio(1, split=True)
    one.draw_all(wanted(1, users=1))
    assert not any(span.borrowed for span in one.timeline.spans)


def test_text_is_encoded_on_an_idle_device_and_else_at_home(
    studio: Callable[..., Studio],
) -> None:
    for devices, lent in ((2, True), (1, False)):
        one = studio(devices)
        (drawing,) = one.draw_all(wanted(1, users=1))
        (encoding,) = (span for span in one.timeline.spans if span.stage == TEXT_ENCODER)
        assert encoding.borrowed == lent == (encoding.device != str(drawing.device))


@pytest.mark.parametrize("users", [1, 3])
def test_every_job_is_in_the_timeline_once_in_each_stage(
    studio: Callable[..., Studio], users: int
) -> None:
    one = studio(steps=1)
    jobs = wanted(12, users=users)
    one.draw_all(jobs)
    done = sorted((span.user, span.job, span.stage) for span in one.timeline.stages())
    stages = (TEXT_ENCODER, UNET, VAE)
    assert done == sorted((job.user, job.subject, stage) for job in jobs for stage in stages)


# Weights and what jobs must not share


def test_every_replica_is_a_private_map_of_the_file(studio: Callable[..., Studio]) -> None:
    pipeline = studio(3)._pipeline
    once, copies = pipeline.host_bytes()
    assert copies == 3 * once
    for part in MODULES:
        weights = pipeline._models[part].weights
        assert list(weights.kinds) == ["mapped"]
        places: set[int] = set()
        for device in co.virtual_devices(3):
            for name, parameter in pipeline.module(part, device).named_parameters():
                assert torch.equal(parameter, torch.from_dlpack(weights[name]))
                assert not parameter.requires_grad
                places.add(parameter.data_ptr())
            assert pipeline._replicas[device][part].written() == []
        assert len(places) == 3 * len(weights)


def test_two_runtimes_build_the_same_pipeline_at_once() -> None:
    def build(runtime: co.Runtime, together: threading.Barrier) -> set[str]:
        together.wait()
        pipeline = SharedPipeline(runtime, demo.DIGITS)
        modules = [pipeline.module(part, runtime.devices[1]) for part in MODULES]
        return {p.device.type for module in modules for p in module.parameters()}

    for _ in range(5):
        with co.Runtime(co.virtual_devices(2)) as one, co.Runtime(co.virtual_devices(2)) as other:
            together = threading.Barrier(2)
            builds = [spawn(partial(build, runtime, together)) for runtime in (one, other)]
            assert [build.join() for build in builds] == [{"cpu"}, {"cpu"}]


def test_no_two_jobs_share_a_scheduler_or_a_tokenizer(studio: Callable[..., Studio]) -> None:
    pipeline = studio()._pipeline
    one, other = (pipeline.on(co.virtual_devices(1)[0]) for _ in range(2))
    assert one.unet is other.unet
    assert one.scheduler is not other.scheduler
    assert one.tokenizer is not other.tokenizer


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    for name in ("model_index.json", "tokenizer", "scheduler"):
        (tmp_path / name).symlink_to(demo.DIGITS / name)
    with co.Runtime(co.virtual_devices(1)) as runtime:
        with pytest.raises(co.InvalidValueError, match="text_encoder is no folder of a model"):
            SharedPipeline(runtime, tmp_path)


# Ends


def all_idle(studio: Studio) -> bool:
    return not any(status.holder for status in studio._runtime.pool.status())


def test_a_job_that_fails_ends_the_others(studio: Callable[..., Studio]) -> None:
    one = studio(steps=1000)
    jobs = wanted(6, users=3)
    jobs[1] = Job("bob", "a handwritten one", seed="no seed")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="manual_seed"):
        one.draw_all(jobs)
    assert all_idle(one)
    assert not any(span.stage == VAE for span in one.timeline.spans)


def test_a_studio_goes_on_after_a_failure(studio: Callable[..., Studio]) -> None:
    one = studio()
    with pytest.raises(RuntimeError):
        one.draw_all([Job("ann", "a handwritten one", seed="no seed")])  # type: ignore[arg-type]
    assert len(one.draw_all(wanted(2, users=1))) == 2


def test_a_studio_needs_steps(studio: Callable[..., Studio]) -> None:
    with pytest.raises(co.InvalidValueError, match="steps is 0"):
        studio(steps=0)


def test_two_demos_in_one_process_go_one_after_the_other(tmp_path: Path) -> None:
    settings = (torch.get_num_threads(), torch.backends.cudnn.deterministic)
    folders = [tmp_path / name for name in ("one", "other")]
    options = [demo.Options(jobs=2, steps=1, out=folder) for folder in folders]
    runs = [spawn(partial(demo.run, wish)) for wish in options]
    assert [run.join(60) for run in runs] == [0, 0]
    for folder in folders:
        assert sorted(path.name for path in folder.iterdir()) == ["images.png", "timeline.svg"]
    assert settings == (torch.get_num_threads(), torch.backends.cudnn.deterministic)


def test_a_cancel_ends_all_jobs_and_leaves_the_devices_idle(
    studio: Callable[..., Studio],
) -> None:
    one, cancel = studio(steps=1000), co.CancelToken()
    drawing = spawn(lambda: one.draw_all(wanted(6, users=3), cancel))
    until(lambda: any(span.stage == UNET for span in one.timeline.spans))
    cancel.cancel("enough")
    with pytest.raises(co.CancelledError, match="enough"):
        drawing.join()
    assert all_idle(one)


def test_the_first_user_has_a_big_batch_and_comes_first() -> None:
    users = [job.user for job in wanted(20, users=3)]
    assert users == ["ann"] * 12 + ["bob"] * 4 + ["cyd"] * 4
    for count, names in ((1, {"ann"}), (2, {"ann", "bob"}), (1000, None)):
        jobs = wanted(count, users=5)
        assert len(jobs) == count
        assert names is None or {job.user for job in jobs} == names


def test_a_user_changes_his_mind_and_everybody_else_gets_his_images(
    studio: Callable[..., Studio],
) -> None:
    one = studio(steps=8)
    jobs = changed(wanted(10, users=3), steps=8)
    assert [job.cancelled_after for job in jobs] == [None] * 9 + [4]
    drawings = one.draw_all(jobs)
    assert [drawing.cancelled for drawing in drawings] == [False] * 9 + [True]
    assert [drawing.job for drawing in drawings] == jobs
    marked = [span for span in one.timeline.spans if span.cancelled]
    assert [(span.user, span.stage) for span in marked] == [("cyd", UNET)]
    assert all_idle(one)
    assert changed(jobs[:9], steps=8) == jobs[:9]


# The command


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "coresident", "demo", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the command prints, and where its pictures are."""
    folder = tmp_path_factory.mktemp("demo") / "new" / "folder"
    ended = command("--jobs", "5", "--users", "2", "--steps", "4", "--out", str(folder))
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout, folder


def test_the_command_shows_where_the_time_went(shown: tuple[str, Path]) -> None:
    text, folder = shown
    assert "5 images of 2 users on 2 devices" in text
    rows = re.findall(r"│ virtual:(\d) +│ +(\d+) │ +([\d.]+) │ +(\d+)% │ +(\d+) │ +(\d+) │", text)
    assert [row[0] for row in rows] == ["0", "1"]
    assert sum(int(row[1]) for row in rows) == 5
    assert all(0 < int(row[3]) <= 100 for row in rows)
    assert "all devices busy at once for" in text
    assert "weights in host memory: 5.3 MiB" in text
    assert "copy for each device would be 10.6 MiB" in text
    assert "the first 2 images again, alone on one device: identical to the bit" in text
    assert f"wrote {folder / 'images.png'}" in text


def test_with_too_little_device_memory_the_images_are_the_same(tmp_path: Path) -> None:
    arguments = ("--jobs", "4", "--users", "2", "--steps", "3", "--device-memory", "8MiB")
    ended = command(*arguments, "--out", str(tmp_path))
    assert (ended.returncode, ended.stderr) == (0, "")
    moved = r"virtual:\d has 8\.0 MiB, for 10\.0 MiB of weights and all activations: ([\d.]+) MiB"
    assert all(float(came) > 10 for came in re.findall(moved, ended.stdout))
    assert len(re.findall(moved, ended.stdout)) == 2
    assert "alone on one device with room for everything: identical to the bit" in ended.stdout


def test_the_pictures_show_every_image_and_every_lane(shown: tuple[str, Path]) -> None:
    _, folder = shown
    assert sorted(path.name for path in folder.iterdir()) == ["images.png", "timeline.svg"]
    with images.open(folder / "images.png") as sheet:
        cells = [sheet.convert("L").crop((8 + 104 * n, 41, 104 + 104 * n, 137)) for n in range(5)]
    extremes = [cell.getextrema() for cell in cells]
    assert all(high - low > 128 for low, high in extremes), "there is an empty image"
    assert len({cell.tobytes() for cell in cells}) == 5
    picture = ElementTree.fromstring((folder / "timeline.svg").read_text())
    namespace = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in picture.iter(f"{namespace}text")]
    assert {"virtual:0", "virtual:1", "ann", "bob", "unet", "vae"} <= set(texts)
    assert len(list(picture.iter(f"{namespace}title"))) == 5 * 3


@pytest.mark.timeout(180)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what memory a process takes")
def test_a_large_model_is_in_host_memory_once(tmp_path: Path) -> None:
    ended = command("--preset", "large", "--jobs", "2", "--steps", "1", "--out", str(tmp_path))
    assert (ended.returncode, ended.stderr) == (0, "")
    found = re.findall(r"│ ([a-z_ ]+)\b.*?│ +([\d,]+) MiB │ +([\d,]+) MiB │", ended.stdout)
    taken = {name: (int(total), int(anonymous)) for name, total, anonymous in found}
    weights = float(re.findall(r"weights in host memory: ([\d.]+) MiB", ended.stdout)[0])
    assert weights == pytest.approx(381, rel=0.1), "about 400 MB"
    assert taken["one map for all"][0] < 1.1 * weights
    assert taken["one map for all"][1] < 0.1 * weights
    assert taken["a copy for each"][1] == pytest.approx(2 * weights, rel=0.1)
    assert "times as many" in ended.stdout
    assert "the first 2 images again, alone on one device: identical to the bit" in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--devices", "cuda:9"], "there is no cuda:9 here"),
        (["--devices", "gpu"], "unknown device type"),
        (["--devices", ""], "unknown device type"),
        (["--jobs", "0"], "jobs is 0: it can be 1 to 1000"),
        (["--users", "-3"], "users is -3: it can be 1 to 1000"),
        (["--steps", "1001"], "steps is 1001: it can be 1 to 1000"),
        (["--split", "--devices", "virtual:0"], "virtual:0 is the only one: name two"),
        (["--device-memory", "lots"], "is not a number of bytes"),
        (["--device-memory", "0"], "must be more than 0 bytes"),
        (["--device-memory", "1GiB", "--devices", "cpu"], "name virtual devices"),
        (["--out", __file__], "cannot be written to"),
        (["--out", f"{__file__}/pictures"], "Not a directory; name another folder"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_loaded(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = [] if "--out" in arguments else ["--out", str(tmp_path)]
    assert main(["demo", *arguments, *out]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 2.5}, "jobs is a whole number, not 2.5"),
        ({"users": None}, "users is a whole number, not None"),
        ({"steps": True}, "steps is a whole number, not True"),
        ({"preset": "huge"}, "preset is 'digits' or 'large', not 'huge'"),
        ({"devices": ["virtual:0"]}, "devices are names, by commas"),
        ({"out": "pictures"}, "out is a Path, not 'pictures'"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((co.InvalidTypeError, co.InvalidValueError), match=re.escape(message)):
        demo.run(demo.Options(**options))


@pytest.mark.parametrize("arguments", [["--jobs", "many"], ["--preset", "huge"], ["--what"]])
def test_what_is_no_argument_is_told(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["demo", *arguments])
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_a_missing_library_is_named_with_the_extra_that_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.setitem(sys.modules, "rich", None)
    assert main(["demo", "--out", str(tmp_path)]) == 2
    assert "needs diffusers, rich" in (said := capsys.readouterr().err)
    assert "pip install 'coresident[diffusers]'" in said


@pytest.mark.skipif(sys.platform == "win32", reason="only POSIX limits the size of files")
def test_a_full_disk_leaves_no_half_picture(tmp_path: Path) -> None:
    (tmp_path / "images.png").write_text("an older picture")
    ended = run_script(
        f"""
        import resource, sys
        from pathlib import Path
        from coresident import demo

        demo.load()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            demo.run(demo.Options(jobs=2, steps=1, out=Path({str(tmp_path)!r})))
        except OSError as error:
            sys.exit(f"{{error.errno}} {{error.strerror}}")
        """,
        timeout=60,
    )
    assert f"{errno.EFBIG} cannot write {tmp_path / 'images.png'}: " in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["images.png"]
    assert (tmp_path / "images.png").read_text() == "an older picture"


@pytest.mark.skipif(sys.platform == "win32", reason="only POSIX has pseudo-terminals and signals")
@pytest.mark.parametrize("moment", ["importing torch", "all jobs"])
def test_ctrl_c_ends_it_at_once(moment: str, tmp_path: Path) -> None:
    import pty

    ours, theirs = pty.openpty()
    arguments = [sys.executable, "-m", "coresident", "demo", "--steps", "1000", "--out", tmp_path]
    started = subprocess.Popen(arguments, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""

    def look() -> bool:
        nonlocal seen
        if select.select([ours], [], [], 0.05)[0]:
            seen += os.read(ours, 65536)
        return moment.encode() in seen

    try:
        until(look)
        started.send_signal(signal.SIGINT)
        assert started.wait(20) == -signal.SIGINT
        until(lambda: (look(), b"interrupted" in seen)[1])
    finally:
        started.kill()
        os.close(ours)
    assert b"Traceback" not in seen
    hidden, shown = (seen.rfind(b"\x1b[?25" + letter) for letter in (b"l", b"h"))
    assert hidden <= shown, "the cursor stays hidden"
    assert list(tmp_path.iterdir()) == []


# The notebook


@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("default")  # those of the notebook's own client and kernel
@pytest.mark.parametrize(
    ("name", "lines", "pictures"),
    [
        (
            "first_steps",
            (
                "the same memory: True",
                "the same values on both devices: True",
                "equal to the bit: True",
                "this wait would never end",
            ),
            {"image/png": 3, "image/svg+xml": 1},
        ),
        (
            "threads",
            (
                " ours: 0 of 40 models are broken, and the process is whole",
                "two replicas take the memory of one: True",
                "the other replica has it: False",
                "written to: conv_in.bias",
                "as before afterwards: True",
                "equal to the bit: True",
            ),
            {"image/png": 1},
        ),
    ],
    ids=["first steps", "threads"],
)
def test_a_notebook_runs_and_shows_what_it_says(
    name: str, lines: tuple[str, ...], pictures: dict[str, int]
) -> None:
    nbclient = pytest.importorskip("nbclient", reason="comes with the test extra")
    nbformat = pytest.importorskip("nbformat", reason="comes with the test extra")
    path = Path(__file__).parents[2] / "examples" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=180, resources=where).execute()
    outputs: list[Any] = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output.get("text", "") for output in outputs)
    for line in lines:
        assert line in printed
    kinds = [kind for output in outputs for kind in output.get("data", {})]
    assert {kind: kinds.count(kind) for kind in pictures} == pictures
    assert not [output for output in outputs if output.get("name") == "stderr"]
