"""An emulated GPU: tensors that say `cuda:0`, with real numbers, on a CPU.

As on a GPU, work is queued and done later, here as late as a stream may: when the host waits for
it. Freed memory is handed out again at once, on its stream. Graphs replay what was recorded on the
memory that was recorded. Mixing devices, and waiting for the device inside of a capture, raise.

Not emulated: times, compiled code (it runs as written), and the kernels' own roundings.
"""
