"""FFCV 1.0.2, mended; nothing else in the project imports FFCV, and nothing imports this before it is needed: half a
second, and as long for numba.

package  its own names, imported without side effects
reader   the loader's stages over our order and our kernels
slots    the memory of its batches, and when it may be written again
writer   its writer, run in this process
"""
