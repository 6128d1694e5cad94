"""The parts of benchmarks/gpu.py: each module has `run(context)`, and runs in a process of its own."""
