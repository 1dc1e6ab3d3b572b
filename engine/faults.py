"""Whose fault an error is: the machine's, where another one would train the same run, or the run's own.

Only what is certain is the machine's. Out of memory is the run's: it asks for too much. So is an assertion inside a
kernel, although it looks like any other CUDA error: mostly a label or an index is out of range.
"""

import errno

OF_DISK = {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE, errno.ENXIO, errno.ENODEV, errno.EREMOTEIO}
OF_DISK |= {errno.ENOTCONN, errno.ESHUTDOWN, errno.EHOSTDOWN, errno.ETIMEDOUT}
WORDS = ("CUDA error", "CUDA driver", "CUDA unknown error", "CUDA initialization", "NVIDIA driver", "CUDNN_STATUS")
WORDS += ("cuDNN error", "CUBLAS_STATUS", "NVML", "HIP error", "No space left on device", "Input/output error")
OF_THE_RUN = ("device-side assert", "out of memory", "allocate memory", "ALLOC_FAILED")


def of_machine(error: BaseException) -> bool:
    """Whether an exception tells of a GPU, driver, disk or installation that does not work."""
    text = str(error)
    if any(word in text for word in OF_THE_RUN):
        return False
    if isinstance(error, OSError):
        return error.errno in OF_DISK or any(word in text for word in WORDS)
    return isinstance(error, ImportError) or (isinstance(error, RuntimeError) and any(word in text for word in WORDS))


def breaks_process(error: BaseException) -> bool:
    """Whether a process can train nothing more after this: CUDA answers every later call with the same error."""
    return of_machine(error) or "device-side assert" in str(error)
