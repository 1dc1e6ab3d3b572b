"""What we take of FFCV 1.0.2, imported without what its import does to the threads of torch and numba, and to CUDA."""

import numba
import numba.typed
import torch

__all__ = [
    "ALLOC_TABLE_TYPE",
    "AllocationQuery",
    "Compiler",
    "DatasetWriter",
    "EpochIterator",
    "IntDecoder",
    "IntField",
    "Loader",
    "MemoryAllocator",
    "RGBImageField",
    "SimpleRGBImageDecoder",
    "ToTensor",
    "graph",
    "imdecode",
]

_threads = torch.get_num_threads()
# FFCV starts numba's thread pool at import. We have no use for it, and a process on one core that had forked while the
# pool (TBB's) was there has been seen to wait for it for ever at its exit.
_set_num_threads, numba.set_num_threads = numba.set_num_threads, lambda count: None
# FFCV keeps two names of modes in a dictionary of numba's, which every process compiles anew: half of its start. Only
# Python reads them.
_typed_dict, numba.typed.Dict = numba.typed.Dict, dict
from ffcv.fields import IntField, RGBImageField  # noqa: E402 - the number of threads is read before FFCV changes it
from ffcv.fields.basics import IntDecoder  # noqa: E402
from ffcv.fields.rgb_image import SimpleRGBImageDecoder  # noqa: E402
from ffcv.libffcv import imdecode  # noqa: E402 - by ctypes, which lets other threads run meanwhile
from ffcv.loader import Loader, epoch_iterator  # noqa: E402
from ffcv.loader.epoch_iterator import EpochIterator  # noqa: E402
from ffcv.memory_allocator import MemoryAllocator  # noqa: E402
from ffcv.pipeline import graph  # noqa: E402
from ffcv.pipeline.allocation_query import AllocationQuery  # noqa: E402
from ffcv.pipeline.compiler import Compiler  # noqa: E402
from ffcv.transforms import ToTensor  # noqa: E402
from ffcv.types import ALLOC_TABLE_TYPE  # noqa: E402
from ffcv.writer import DatasetWriter  # noqa: E402

torch.set_num_threads(_threads)
numba.set_num_threads, numba.typed.Dict = _set_num_threads, _typed_dict
Compiler.num_threads = 1
Compiler.set_num_threads = classmethod(lambda cls, count: None)
# It would start CUDA wherever there is a GPU, --device cpu or not. The batches' memory and events are ours: slots.py.
epoch_iterator.IS_CUDA = False
