"""Killed workers, full disks and interruptions: an ingest survives them or names them, and ends in the same bytes."""

import csv
import errno
import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from joblib.externals.loky import get_reusable_executor

from ctgrounding.data.shards import Shard, find_shards
from ctgrounding.errors import CardError, ConfigError, ShardError
from ctgrounding.ingest import crew, ingest
from ctgrounding.ingest.audit.command import audit
from ctgrounding.ingest.mining import mine
from ctgrounding.ingest.notes import NOTES, locked
from ctgrounding.ingest.whole_files import hold, whole_file
from ctgrounding.ingest.worker import fill_shard

SPACING = (5.0, 4.0, 4.0)
SHAPE = (24, 20, 12)
AFFINE = np.diag([4.0, 4.0, 5.0, 1.0])
CARD = """
name: demo
root: {root}
scans: {{table: scans.csv}}
ids: keep
"""


@pytest.fixture
def card(hospital, tmp_path):
    """Ten scans of five patients, one of them cut short."""
    root = tmp_path / "hospital"
    rows = []
    for number in range(10):
        name = f"s{number}"
        path = hospital["nifti"](root / f"{name}.nii.gz", hospital["body"](SHAPE, seed=number), AFFINE)
        patient = f"p{number // 2}"
        rows.append({"scan_id": name, "study_id": name, "patient_id": patient, "path": path.name})
    cut = root / "s4.nii.gz"
    cut.write_bytes(cut.read_bytes()[:500])
    hospital["table"](root / "scans.csv", rows)
    path = tmp_path / "card.yaml"
    path.write_text(CARD.format(root=root))
    return path


def run(card, output, **options):
    settings = {"spacing_mm": SPACING, "workers": 1, "scans_per_shard": 2} | options
    return ingest(card=str(card), output=output, **settings)


def digests(output):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(output.glob("*.h5"))}


def state(output):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in output.rglob("*.h5")}


def reasons(output):
    return {row["scan_id"]: row for row in csv.DictReader((output / "quarantine.csv").open())}


@pytest.fixture
def clean(card, tmp_path):
    run(card, tmp_path / "clean")
    return digests(tmp_path / "clean")


def test_workers__more_shards_than_are_begun_at_once(card, tmp_path):
    run(card, tmp_path / "alone", scans_per_shard=1)
    run(card, tmp_path / "together", scans_per_shard=1, workers=2)
    assert digests(tmp_path / "together") == digests(tmp_path / "alone")


def test_a_dataset_that_was_moved_is_not_ingested_again(card, tmp_path):
    output = tmp_path / "out"
    run(card, output)
    stamps = state(output)
    (tmp_path / "hospital").rename(tmp_path / "elsewhere")
    summary = run(card, output, root=tmp_path / "elsewhere")
    assert (summary.shards_written, summary.shards_kept) == (0, 5)
    assert state(output) == stamps


def test_the_plan_is_written_before_any_scan_is_read(card, tmp_path, monkeypatch):
    seen = {}

    def look(plans, job, workers, cluster):
        seen["plan"] = list(csv.DictReader((tmp_path / "out" / "plan.csv").open()))
        raise ShardError("stopped.")
        yield

    monkeypatch.setattr("ctgrounding.ingest.pipeline.fill_shards", look)
    with pytest.raises(ShardError, match=r"stopped. 0 of 5 shards were finished and stay"):
        run(card, tmp_path / "out")
    assert [(row["shard"], row["place"], row["scan_id"]) for row in seen["plan"][:3]] == [
        ("shard-00000.h5", "0", "s0"),
        ("shard-00000.h5", "1", "s1"),
        ("shard-00001.h5", "0", "s2"),
    ]
    assert len(seen["plan"]) == 10
    assert list((tmp_path / "out").glob("*.h5")) == []


def test_the_plan_holds_where_every_scan_went(card, tmp_path):
    output = tmp_path / "out"
    summary = run(card, output)
    assert (summary.planned, summary.ingested, summary.quarantined, summary.pending) == (10, 9, 1, 0)
    planned = {
        row["scan_id"]: (row["shard"], int(row["place"])) for row in csv.DictReader((output / "plan.csv").open())
    }
    for path in find_shards([output]):
        shard = Shard(path)
        for place, record in zip(shard.attributes["places"], shard.records, strict=True):
            assert planned.pop(record.scan_id) == (path.name, place)
        for place in shard.empty_places:
            assert planned.pop("s4") == (path.name, place)
    assert planned == {}


def test_a_dry_run_makes_no_salt(card, tmp_path):
    card.write_text(card.read_text().replace("keep", "hash"))
    run(card, tmp_path / "new" / "out", dry_run=True)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("option", "match"),
    [({"spacing_mm": (0.0, 1.0, 1.0)}, r"spacing_mm is \[0.0, 1.0, 1.0\]"), ({"workers": 0}, "workers is 0")],
)
def test_options_that_cannot_be_are_refused_before_anything_is_written(card, tmp_path, option, match):
    with pytest.raises(CardError, match=match):
        ingest(card=str(card), output=tmp_path / "out", **option)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(card, tmp_path, capsys):
    summary = run(card, tmp_path / "out", dry_run=True)
    assert (summary.planned, summary.ingested, summary.pending, summary.shards_written) == (10, 0, 10, 0)
    assert not (tmp_path / "out").exists()
    assert "10 scans in 5 shards, 0 of them finished" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text + "hu: stored\n", "the card's rules"),
        (lambda text: text.replace("keep", "hash"), "the salt of ids, or the card's rule"),
    ],
)
def test_a_changed_card_says_what_it_would_redo_and_waits_for_a_word(card, tmp_path, change, said):
    output = tmp_path / "out"
    run(card, output)
    before = state(output)
    card.write_text(change(card.read_text()))
    with pytest.raises(CardError, match=rf"5 finished shards would be written again.*{said}.*--redo"):
        run(card, output)
    run(card, output, dry_run=True)
    assert state(output) == before
    assert run(card, output, redo=True).shards_written == 5


def test_a_changed_version_or_setting_says_so_too(card, tmp_path, monkeypatch):
    output = tmp_path / "out"
    run(card, output)
    before = state(output)
    with pytest.raises(CardError, match=r"codec \(zstd, now lz4\)"):
        run(card, output, codec="lz4")
    monkeypatch.setattr("ctgrounding.ingest.pipeline.version", lambda _: "9.9.9")
    with pytest.raises(CardError, match=r"version \(0\.1\.0, now 9\.9\.9\)"):
        run(card, output)
    assert state(output) == before


def test_a_scan_that_the_card_now_leaves_out_redoes_its_shard_alone(card, tmp_path):
    output = tmp_path / "out"
    run(card, output)
    card.write_text(card.read_text() + "known_bad: {s0: wrong patient}\n")
    summary = run(card, output)
    assert (summary.shards_written, summary.shards_kept, summary.quarantined) == (1, 4, 2)


def test_a_full_disk_is_said_and_the_rerun_goes_on(card, tmp_path, clean):
    """A limit on the size of files makes the system refuse to write, as a full disk does."""
    output = tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, before[1]))
    try:
        with pytest.raises(ShardError, match=r"Cannot write .*shard-00000.h5.*free space.*0 of 5 shards were finished"):
            run(card, output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(output.glob("*.h5*")) == []
    assert run(card, output).ingested == 9
    assert digests(output) == clean


def test_a_full_disk_anywhere_else_is_one_sentence(card, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ctgrounding.ingest.pipeline.write_quarantine", refuse)
    with pytest.raises(ShardError, match=r"the disk is full\. Check the folder"):
        run(card, tmp_path / "out")


def test_an_orphan_of_an_interrupted_ingest_is_waited_for(card, tmp_path, clean):
    output = tmp_path / "out"
    (output / NOTES).mkdir(parents=True)
    holder = "\n".join(
        [
            "import sys, time",
            "from pathlib import Path",
            "from ctgrounding.ingest.notes import locked",
            "with locked(Path(sys.argv[1]), 'shard-00000.h5'):",
            "    print('held', flush=True)",
            "    time.sleep(1.5)",
        ]
    )
    with subprocess.Popen([sys.executable, "-c", holder, str(output)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        started = time.monotonic()
        run(card, output)
        assert time.monotonic() - started > 1.0
    assert digests(output) == clean


def test_a_worker_of_another_version_or_without_the_output_is_refused(card, tmp_path, monkeypatch):
    jobs = []

    def catch(plans, job, workers, cluster):
        jobs.append((plans[0], job))
        raise ShardError("stopped.")
        yield

    monkeypatch.setattr("ctgrounding.ingest.pipeline.fill_shards", catch)
    with pytest.raises(ShardError):
        run(card, tmp_path / "out")
    ((plan, job),) = jobs
    with pytest.raises(ShardError, match=r"0\.1\.0, but 0\.0\.1 is ingesting"):
        fill_shard(plan, replace(job, version="0.0.1"))
    with pytest.raises(ShardError, match="all machines share"):
        fill_shard(plan, replace(job, output=tmp_path / "elsewhere"))


def test_links_out_of_the_root_are_refused_also_inside_folders(card, tmp_path):
    root = tmp_path / "hospital"
    secret = tmp_path / "secret.dcm"
    secret.write_bytes(b"x")
    (root / "series").mkdir()
    (root / "series" / "1.dcm").symlink_to(secret)
    table = root / "scans.csv"
    text = table.read_text()
    table.write_text(text.replace("s1.nii.gz", "series"))
    with pytest.raises(CardError, match=r"1\.dcm is a link that leads out of the card's root"):
        run(card, tmp_path / "out")
    with pytest.raises(CardError, match=r"1\.dcm is a link that leads out of the card's root"):
        audit(card=str(card), output=tmp_path / "audit", workers=1)
    card.write_text(card.read_text() + "\nreports: {table: scans.csv, text: path, key: study_id}\n")
    with pytest.raises(CardError, match=r"1\.dcm is a link that leads out of the card's root"):
        mine(str(card), output=tmp_path / "out")
    (root / "series" / "1.dcm").unlink()
    (root / "series" / "1.dcm").symlink_to("1.dcm")
    with pytest.raises(CardError, match=r"1\.dcm is a link that leads to itself"):
        run(card, tmp_path / "out")
    (root / "loop.nii.gz").symlink_to("loop.nii.gz")
    table.write_text(text.replace("s1.nii.gz", "loop.nii.gz"))
    with pytest.raises(CardError, match=r"'loop.nii.gz' cannot be followed"):
        run(card, tmp_path / "out")
    (root / "out.nii.gz").symlink_to(secret)
    for path in ("out.nii.gz", "../secret.dcm", str(secret)):
        table.write_text(text.replace("s1.nii.gz", path))
        with pytest.raises(CardError, match="leads out of the card's root"):
            run(card, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_cluster_that_does_not_answer_is_named(card, tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    monkeypatch.setattr(crew, "PATIENCE_S", 0.2)
    with pytest.raises(ConfigError, match=r"no Dask scheduler at tcp://127\.0\.0\.1:9"):
        run(card, tmp_path / "out", cluster="tcp://127.0.0.1:9")


DEADLY = """
import os, signal, sys
import ctgrounding.ingest.readers.nifti as nifti

load = nifti.NiftiSource.load
def deadly(source):
    marker = {marker!r}
    if source.path.name == "s2.nii.gz" and ({always} or not os.path.exists(marker)):
        open(marker, "w").close()
        os.kill(os.getpid(), signal.SIGKILL) if {by_signal} else os._exit(9)
    return load(source)
nifti.NiftiSource.load = deadly
"""


def with_deadly_scan(tmp_path, monkeypatch, **how):
    """Make every new Python process die when it reads one scan, as for want of memory."""
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(DEADLY.format(marker=str(tmp_path / "died"), **how))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    get_reusable_executor().shutdown(wait=True)  # processes kept from an earlier ingest would not die


@pytest.mark.slow
def test_a_worker_that_dies_once_leaves_no_trace(card, tmp_path, clean, monkeypatch):
    with_deadly_scan(tmp_path, monkeypatch, always=False, by_signal=True)
    summary = run(card, tmp_path / "out", workers=2)
    assert (tmp_path / "died").exists()
    assert (summary.ingested, summary.quarantined) == (9, 1)
    assert digests(tmp_path / "out") == clean


@pytest.mark.slow
def test_a_scan_that_kills_its_worker_again_and_again_is_put_aside_by_name(card, tmp_path, clean, monkeypatch):
    output = tmp_path / "out"
    with_deadly_scan(tmp_path, monkeypatch, always=True, by_signal=False)
    summary = run(card, output, workers=2)
    assert (summary.planned, summary.ingested, summary.quarantined) == (10, 8, 2)
    assert reasons(output)["s2"]["kind"] == "worker_killed"
    assert "killed twice while reading it" in reasons(output)["s2"]["reason"]
    found = digests(output)
    assert {name for name in clean if found[name] != clean[name]} == {"shard-00001.h5"}
    get_reusable_executor().shutdown(wait=True)
    (output / "shard-00001.h5").unlink()
    assert run(card, output).ingested == 9
    assert digests(output) == clean


@pytest.mark.slow
def test_killed_at_any_moment_a_rerun_ends_in_the_same_bytes(card, tmp_path, clean):
    words = ["-m", "ctgrounding", "ingest", "--card", str(card), "--spacing_mm", str(list(SPACING))]
    moments = random.Random(5)
    killed = 0
    for workers in (1, 2):
        output = tmp_path / f"out{workers}"
        command = [sys.executable, *words, "--output", str(output), "--workers", str(workers), "--scans_per_shard", "2"]
        for _ in range(4):
            with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                deadline = time.monotonic() + 60
                while not (output / NOTES).is_dir() and process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.01)
                time.sleep(moments.uniform(0, 0.6))
                killed += process.poll() is None
                process.send_signal(signal.SIGKILL)
        finished = {path: path.stat().st_mtime_ns for path in output.glob("*.h5")}
        assert run(card, output).ingested == 9
        assert digests(output) == clean
        assert list(output.glob("*.partial")) == []
        assert run(card, output).shards_written == 0
        assert all(path.stat().st_mtime_ns >= stamp for path, stamp in finished.items())
    assert killed >= 4


def test_what_a_killed_process_left_of_a_table_is_removed_and_what_another_writes_stays(tmp_path):
    table = tmp_path / "scans [1].csv"
    left, other = (tmp_path / f".{table.name}.{number}.partial" for number in (77, 78))
    left.write_text("ha")
    with other.open("w") as stream:
        assert hold(stream)
        with whole_file(table) as whole:
            whole.write("whole")
        assert [path.name for path in sorted(tmp_path.iterdir())] == [other.name, table.name]
    with whole_file(table) as whole:
        whole.write("again")
    assert [path.name for path in tmp_path.iterdir()] == [table.name]


def test_without_locks_nobody_knows_whether_a_table_is_still_being_written(tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", Mock(side_effect=OSError("no locks here")))
    other = tmp_path / ".scans.csv.78.partial"
    other.write_text("ha")
    (tmp_path / f".scans.csv.{os.getpid()}.partial").write_text("of a process that had this number")
    with whole_file(tmp_path / "scans.csv") as whole:
        whole.write("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [other.name, "scans.csv"]


@pytest.mark.slow
def test_a_disk_that_fills_up_is_survived(card, tmp_path, clean):
    """A file system in memory: some shards fit, then it is full; with room the rerun ends as ever."""
    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=72k", "tmpfs", str(mount)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        with pytest.raises(ShardError, match=r"the disk is full.*of 5 shards were finished and stay"):
            run(card, mount / "out")
        assert list((mount / "out").glob("*.partial")) == []
        kept = digests(mount / "out")
        subprocess.run(["mount", "-o", "remount,size=20m", str(mount)], check=True)
        summary = run(card, mount / "out")
        assert (summary.shards_kept, summary.ingested) == (len(kept), 9)
        assert digests(mount / "out") == clean
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.mark.slow
def test_a_dask_cluster_of_processes_writes_what_one_process_writes(card, tmp_path, clean, monkeypatch):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        summary = run(card, tmp_path / "out", cluster=cluster.scheduler_address)
        assert (summary.ingested, summary.quarantined) == (9, 1)
        assert digests(tmp_path / "out") == clean
        assert run(card, tmp_path / "out", cluster=cluster.scheduler_address).shards_written == 0


@pytest.mark.slow
def test_a_scan_that_kills_the_workers_of_a_cluster_is_put_aside(card, tmp_path, clean, monkeypatch):
    distributed, dask = pytest.importorskip("distributed"), pytest.importorskip("dask")
    with_deadly_scan(tmp_path, monkeypatch, always=True, by_signal=True)
    settings = {"distributed.scheduler.allowed-failures": 1}
    with (
        dask.config.set(settings),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
    ):
        summary = run(card, tmp_path / "out", cluster=cluster.scheduler_address)
    assert (summary.ingested, summary.quarantined) == (8, 2)
    assert reasons(tmp_path / "out")["s2"]["kind"] == "worker_killed"


def test_locks_exclude_each_other(tmp_path):
    (tmp_path / NOTES).mkdir()
    with locked(tmp_path, "shard-00000.h5"):
        pid = os.fork()
        if pid == 0:
            import fcntl

            with Path(tmp_path / NOTES / "shard-00000.lock").open("wb") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    os._exit(7)
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
