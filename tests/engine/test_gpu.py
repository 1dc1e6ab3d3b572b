"""What is made for a GPU, as far as a CPU can tell: nothing here, or anywhere else in the tests, runs on one.

A stand-in shows who waits for what. That CUDA's events and copies do as their documentation says is not shown.
"""

import collections
import subprocess
import sys
import threading

import pytest
import torch

from engine import models
from engine.data import loaders
from engine.data.ffcv import slots
from engine.run import make_how


class Device:
    """A stand-in for a GPU and its stream: it does nothing of what it was given until somebody waits for it.

    No real one is as late, so that whoever writes over what it still has to read is found out.
    """

    def __init__(self):
        self.todo, self.given, self.done = collections.deque(), 0, 0
        self.waited = collections.Counter()
        self.lock = threading.Lock()

    def submit(self, work):
        with self.lock:
            self.todo.append(work)
            self.given += 1

    def make_event(self):
        return Event(self)


class Event:
    def __init__(self, device):
        self.device = device

    def record(self):
        self.at = self.device.given

    def synchronize(self):
        with self.device.lock:
            self.device.waited[type(threading.current_thread()).__name__] += 1
            while self.device.done < self.at:
                self.device.todo.popleft()()
                self.device.done += 1


def read_late(loader, device, leave_after=None):
    """The batches of an epoch as a device has them that copies images and labels when it likes."""
    copied, epoch = [], loader.epoch(0)
    for count, (images, labels) in enumerate(epoch, 1):
        device.submit(lambda images=images, labels=labels: copied.append((images.clone(), labels.clone())))
        if count == leave_after:
            epoch.close()
            break
    return copied


@pytest.fixture
def loader(tiny, how):
    return loaders.make_loaders(tiny.but(batch_size=8), how)[0]


@pytest.mark.parametrize("leave_after", [None, 1, 7])
def test_no_slot_is_written_before_the_device_has_read_it(loader, monkeypatch, leave_after):
    expected = [(images.clone(), labels.clone()) for images, labels in loader.epoch(0)][:leave_after]
    assert len(expected) > 10 or leave_after, "each slot is used more than once"
    device = Device()
    monkeypatch.setattr(slots, "make_event", device.make_event)
    copied = read_late(loader, device, leave_after)
    assert not device.todo, "the memory was given up before all of it had been read"
    for ours, theirs in zip(copied, expected, strict=True):
        assert all(map(torch.equal, ours, theirs))
    if leave_after is None:
        ahead = loader._loader.batches_ahead
        assert device.waited["Batches"] == len(expected) - ahead - 2, "each slot but for the first time"


def test_a_slot_is_overwritten_where_nobody_waits(loader, monkeypatch):
    """What the test above would find: both images and labels of other batches."""
    expected = [(images.clone(), labels.clone()) for images, labels in loader.epoch(0)]
    device = Device()
    copied = read_late(loader, device)
    event = device.make_event()
    event.record()
    event.synchronize()
    wrong = [
        [not torch.equal(*pair) for pair in zip(ours, theirs, strict=True)]
        for ours, theirs in zip(copied, expected, strict=True)
    ]
    assert all(images and labels for images, labels in wrong[:10])


def test_an_epoch_that_is_left_decodes_no_more(loader, monkeypatch):
    """But the batch that it is at: the rest of an epoch may be a million images."""
    decoded = []
    decode = type(loader._decoder)._decode
    monkeypatch.setattr(type(loader._decoder), "_decode", lambda self, *args: decoded.append(1) or decode(self, *args))
    epoch = loader.epoch(0)
    next(epoch)
    epoch.close()
    assert len(decoded) <= 1 + loader._loader.batches_ahead + 2 < len(loader)


def test_an_event_is_recorded_when_the_consumer_asks_on():
    """And once: a slot that was waited for, or was never taken, is not waited for again."""
    device = Device()
    reads = slots.Reads(device.make_event)
    reads.wait(0), reads.wait_all()
    reads.take(0)
    device.submit(lambda: None)
    reads.give_back(), reads.give_back()
    device.submit(lambda: None)
    reads.wait(1)
    assert device.done == 0
    reads.wait(0)
    assert device.done == 1, "of what came after it nothing has to be done"
    reads.wait(0), reads.wait_all()
    assert device.waited.total() == 1


def test_a_run_on_the_cpu_leaves_a_gpu_alone(digits, tmp_path):
    """On a machine whose torch says that there is one. What torch's C++ does by itself with a real one is not seen."""
    code = (
        "import runpy, sys, torch\n"
        "def started(*args, **kwargs): raise AssertionError('CUDA was started')\n"
        "torch.cuda.is_available, torch.cuda.device_count = lambda: True, lambda: 1\n"
        "torch.cuda.is_current_stream_capturing = lambda: False\n"  # as torch says where CUDA was not started
        "torch.cuda._lazy_init = torch.Tensor.pin_memory = started\n"
        "sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "assert not torch.cuda.is_initialized()\n"
        "try: torch.zeros(1, device='cuda')\n"
        "except AssertionError as error: print(error)"
    )
    words = ["--model", "mixer_nano", "--epochs", "1", "--train-samples", "128", "--batch-size", "32", "--amp"]
    words += ["--mixup", "0.2", "--model-ema", "--data-dir", str(digits), "--output", str(tmp_path), "--device", "cpu"]
    train = [sys.executable, "-c", code, "scripts/train.py", *words]
    done = subprocess.run(train, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("CUDA was started\n"), "what would have been found"


def test_float32_is_computed_in_float32():
    """By the flags alone: there is no TF32 on a CPU."""
    torch.backends.cudnn.allow_tf32 = True  # torch's default
    torch.set_float32_matmul_precision("high")
    models.pick_device(make_how({"device": "cpu"}))
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
    assert torch.get_float32_matmul_precision() == "highest"
