"""The layers, one file each under its textbook name, over the kernels of `rustgpt.backend`."""
