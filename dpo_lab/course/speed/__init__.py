"""How fast a training step could be, where its time and its memory go, and what makes it cheaper.

    flops.py         the operations that a step cannot leave out
    rates.py         the machine's own rate of matrix products; clocks that wait for the device
    phases.py        DPO steps with a clock at every border: batch, forward, loss, backward, clip, step
    memory.py        what a step holds, tensor by tensor, and the device's own meter beside it
    sampling.py      tokens per second of our sampler and of transformers' generate
    process.py       the most memory that this process held; loads no torch
    simulated_gpu.py a GPU on paper, to see what a clock sees that doesn't wait
    from_scratch.py  models by size, and the stages from random weights to DPO in the pocket world
    scaling.py       what one device must hold, and how a batch is cut over processes

Nothing here changes a value: it counts, times and watches what training does.
"""
