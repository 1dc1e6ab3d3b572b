"""FFCV 1.0.2, mended; nothing else in the project imports FFCV.

reader  the loader's stages over our order and our kernels
writer  its writer, run in this process
"""
