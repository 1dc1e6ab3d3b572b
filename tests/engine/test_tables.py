"""Files and tables that a user names: many writers at once, what a spreadsheet made of one, and what is no file."""

import fcntl
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time

import pytest

from engine.cli import tables
from engine.errors import DATA, OUTPUT, Refusal
from engine.folder import files, lease
from engine.folder.store import ROOT

APPEND = """
import sys
from pathlib import Path
from engine.errors import Refusal
from engine.cli.tables import append_row
try:
    for k in range(int(sys.argv[3])):
        append_row(Path(sys.argv[1]), {"model": f"{sys.argv[2]}-{k}", "top1": 1.0})
except Refusal as refusal:
    print(refusal, file=sys.stderr)
    sys.exit(refusal.code)
"""
NEW = {"model": "m", "top1": 2.0}


def appending(path, name="m", count=1, **given):
    command = [sys.executable, "-c", APPEND, str(path), name, str(count)]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, **given)


def append(path, **given):
    """Exit code and what was said; a hanging one fails."""
    process = appending(path, **given)
    try:
        return process.wait(60), process.stderr.read()
    finally:
        process.kill()


@pytest.mark.parametrize("suffix", ["csv", "json"])
def test_rows_of_several_processes_are_all_there(tmp_path, suffix):
    path = tmp_path / f"t.{suffix}"
    many = [appending(path, name, 20) for name in "abc"]
    assert [process.wait(120) for process in many] == [0, 0, 0]
    rows = tables.read(path)
    assert sorted(row["model"] for row in rows) == sorted(f"{name}-{k}" for name in "abc" for k in range(20))
    assert [path.name for path in tmp_path.iterdir()] == [path.name], "a lock or a half file was left"


@pytest.mark.parametrize("then", ["holds it", "lets go of it"])
def test_a_lock_that_another_takes_between_its_creation_and_its_hold_is_his(tmp_path, monkeypatch, then):
    """He read the name of the owner before, whose lock was gone when he opened what is now this one."""
    lock, flock = tmp_path / ".t.csv.lock", fcntl.flock

    def late(descriptor, operation):
        with lock.open("r+") as other:
            flock(other, operation)
            if then == "lets go of it":
                lock.unlink()
                flock(other, fcntl.LOCK_UN)
            flock(descriptor, operation)

    monkeypatch.setattr(files.fcntl, "flock", late)
    assert files._take(lock) is None
    monkeypatch.undo()
    lock.unlink(missing_ok=True)
    with files.locked(tmp_path / "t.csv"):
        assert files._take(lock) is None


def test_the_lock_of_a_dead_process_is_taken_over_and_that_of_another_machine_is_not(tmp_path, monkeypatch):
    path, lock = tmp_path / "t.csv", tmp_path / ".t.csv.lock"
    lock.write_text(f"process 1 on {lease.node()}")
    tables.append_row(path, NEW)
    assert tables.read(path) == [{"model": "m", "top1": "2.0"}] and not lock.exists()
    lock.write_text("process 7 on elsewhere")
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.1)
    with pytest.raises(Refusal, match=rf"being written by process 7 on elsewhere; if that is gone: rm {lock}"):
        tables.append_row(path, NEW)
    assert len(tables.read(path)) == 1


def test_a_lock_works_where_the_disk_knows_no_flock(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", refuse)
    path, held = tmp_path / "t.csv", threading.Event()

    def hold():
        with files.locked(path):
            held.set()
            time.sleep(0.3)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    began = time.monotonic()
    tables.append_row(path, NEW)
    thread.join()
    assert time.monotonic() - began > 0.2 and len(tables.read(path)) == 1


@pytest.mark.parametrize(
    "before, rows",
    [
        (b"\xef\xbb\xbfmodel,top1\r\na,1\r\n", [{"model": "a", "top1": "1"}]),
        (b"model;top1;note\na;1,5;eins, zwei\n", [{"model": "a", "top1": "1.5", "note": "eins, zwei"}]),
        (b"sep=;\nmodel;top1\na;-1,5e-3\n", [{"model": "a", "top1": "-1.5e-3"}]),
        (b"model\ttop1\na\t1\n", [{"model": "a", "top1": "1"}]),
        (b"\n  \n;;\nmodel;top1;\n;;\na;1;\n", [{"model": "a", "top1": "1", "column 3": ""}]),
        (b"\r\nmodel,top1\r\na,1\r\n\r\n", [{"model": "a", "top1": "1"}]),
        (
            b"model,top1\na,1,my note\nb\n",
            [{"model": "a", "top1": "1", "column 3": "my note"}, {"model": "b", "top1": "", "column 3": ""}],
        ),
        (b'top1, model\n1,"two\nlines, ""quoted"""\n', [{"top1": "1", "model": 'two\nlines, "quoted"'}]),
        (b"model,top1\n" + b"x" * 200_000 + b",1", [{"model": "x" * 200_000, "top1": "1"}]),
        ("model,top1\nä,1\n".encode("utf-16"), [{"model": "ä", "top1": "1"}]),
        (b"model,top1,mine\n", []),
    ],
)
def test_a_table_that_a_spreadsheet_saved_keeps_its_rows(tmp_path, before, rows):
    path = tmp_path / "t.csv"
    path.write_bytes(before)
    assert tables.read(path, ["model"]) == rows
    tables.append_row(path, NEW)
    columns = list(rows[0]) if rows else ["model", "top1", "mine"]
    assert tables.read(path) == [*rows, {**dict.fromkeys(columns, ""), "model": "m", "top1": "2.0"}]
    assert path.read_bytes().startswith(",".join(columns).encode() + b"\n")


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("t.csv", b"Dear diary,\ntoday\n", "is no table with a column model"),
        ("t.csv", b"model,top1,top1\na,1,2\n", "two columns 'top1'"),
        ("t.csv", b'model,top1\n"a"b,1\n', "is no CSV"),
        ("t.csv", b"model\n\xff\xfa\x00\n", "is no text in UTF-8"),
        ("t.json", b"{}", "is no list of objects"),
        ("t.json", b"[1]", "is no list of objects"),
        ("t.json", b'[{"a": 1}]', "is no table with a column model"),
        ("t.json", b"[" * 100_000, "is no JSON"),
    ],
)
def test_what_is_no_table_of_ours_is_refused_and_stays(tmp_path, name, content, words):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(Refusal, match=words) as caught:
        tables.append_row(path, NEW)
    assert caught.value.code == OUTPUT and "\n" not in str(caught.value)
    assert path.read_bytes() == content and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(Refusal, match=words) as caught:
        tables.read(path, ["model"])
    assert caught.value.code == DATA


def test_a_frame_has_numbers_where_all_filled_cells_are(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("model;ms;who\na;1,5;x\nb;;2\n")
    frame = tables.read_frame(path)
    assert frame["ms"].tolist()[0] == 1.5 and frame["ms"].isna().tolist() == [False, True]
    assert frame["who"].tolist() == ["x", "2"]


def test_a_link_is_followed_and_keeps_the_mode_of_its_file(tmp_path):
    (tmp_path / "there").mkdir()
    real, link, second = tmp_path / "there" / "real.csv", tmp_path / "link.csv", tmp_path / "second.csv"
    real.write_text("model,top1\na,1\n")
    real.chmod(0o640)
    link.symlink_to("there/real.csv")
    second.symlink_to(link)
    tables.append_row(second, NEW)
    assert second.is_symlink() and link.is_symlink() and real.read_text() == "model,top1\na,1\nm,2.0\n"
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    dangling = tmp_path / "dangling.csv"
    dangling.symlink_to("there/new.csv")
    tables.write(dangling, [NEW])
    assert (tmp_path / "there" / "new.csv").read_text() == "model,top1\nm,2.0\n"
    loop = tmp_path / "loop.csv"
    loop.symlink_to(loop)
    with pytest.raises(Refusal, match="cannot write"):
        tables.write(loop, [NEW])


def test_a_pipe_without_a_reader_is_refused_and_with_one_is_written_to(tmp_path):
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    code, words = append(pipe)
    assert code == OUTPUT and "nobody reads from it" in words
    with subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True) as reader:
        deadline = time.monotonic() + 30
        while append(pipe)[0]:  # until cat has opened it
            assert time.monotonic() < deadline
        assert reader.stdout.read() == "model,top1\nm-0,1.0\n"
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_is_written_to_and_stays_one(tmp_path):
    link = tmp_path / "null.csv"
    link.symlink_to("/dev/null")
    assert append(link) == (0, "") and link.is_symlink()
    assert stat.S_ISCHR(files.Path("/dev/null").stat().st_mode)
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.open("w").close()
    except OSError:
        pytest.skip("no device nodes may be made here")
    assert append(device) == (0, "") and stat.S_ISCHR(device.stat().st_mode)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_the_own_output_is_added_to_wherever_it_goes(tmp_path, name):
    (tmp_path / "link").symlink_to("/dev/stdout")
    target = tmp_path / "out.txt"
    with target.open("w") as file:
        file.write("before\n")
        file.flush()
        assert append(tmp_path / name, stdout=file) == (0, "")
        file.write("after\n")
    assert target.read_text() == "before\nmodel,top1\nm-0,1.0\nafter\n"
    process = appending(tmp_path / name, stdout=subprocess.PIPE)
    assert process.communicate(timeout=60)[0] == "model,top1\nm-0,1.0\n"


def test_what_cannot_be_written_is_refused_before_anything_is_measured(tmp_path):
    path = tmp_path / "t.csv"
    for name, words in (
        (tmp_path, "it is a folder"),
        (tmp_path / "no" / "t.csv", "No such file or directory"),
        (path / "t.csv", "is no folder"),
    ):
        path.write_text("")
        for refuse in (files.check_target, lambda path: files.write_bytes(path, b"")):
            with pytest.raises(Refusal, match=words) as caught:
                refuse(name)
            assert caught.value.code == OUTPUT
    for name, words in (("-", "for the screen: /dev/stdout"), ("t.xlsx", "known: .csv, .json, .md")):
        with pytest.raises(Refusal, match=words):
            tables.check_target(files.Path(name))
    tables.check_target(files.Path("/dev/stdout"))
    assert path.read_text() == "" and len(list(tmp_path.iterdir())) == 1


def test_as_another_user_a_read_only_file_or_folder_is_refused_and_stays():
    if os.geteuid():
        pytest.skip("only root can become somebody else")
    folder = files.Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own folder is closed to others
    code = (
        "import os, sys; from engine.folder import files; from engine.errors import Refusal\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); path = files.Path(sys.argv[1])\n"
        "for act in (files.check_target, lambda path: files.write_bytes(path, b'new')):\n"
        "    try: act(path); print('written')\n"
        "    except Refusal as refusal: print(refusal)\n"
    )

    def tried():
        command = [sys.executable, "-c", code, folder / "file.csv"]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60).stdout

    try:
        (folder / "file.csv").write_text("old")
        (folder / "file.csv").chmod(0o644)
        folder.chmod(0o755)
        assert tried().count("it is read-only") == 2
        (folder / "file.csv").chmod(0o666)
        assert tried().count("cannot be written in") == 2 and (folder / "file.csv").read_text() == "old"
        folder.chmod(0o777)
        assert tried() == "written\nwritten\n" and (folder / "file.csv").read_text() == "new"
        assert len(list(folder.iterdir())) == 1
    finally:
        shutil.rmtree(folder)
