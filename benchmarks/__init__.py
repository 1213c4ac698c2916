"""The benchmark suite: models by batch and precision, in TensorRT and in every other compiler that can run them.

    python -m benchmarks --models resnet50,bert-base --output results.json     measures; the same again goes on
    python -m benchmarks --kinds start --batches 1 --output results.json       seconds to the first result
    python -m benchmarks --kinds build --models resnet50 --output build.json   the cost of an export; needs no GPU
    python -m benchmarks --show results.json --markdown                        tables of the results
    python -m benchmarks --plot results.json speed.png                         a picture of them; needs no GPU

`torchtrt-bridge bench` runs the same command in a checkout of the repository.

suite/models.py and suite/contenders.py are tables: a model or a compiler is one row. command.py reads the command line,
schedule.py orders the jobs and keeps to the deadline, processes.py gives each job a process with a time limit, and
worker.py is that process. speed.py and once.py measure. results.py is the file, and summary.py, tables.py and plot.py
show it. The other files here are scripts that measure one thing each: python -m benchmarks.kernels.
"""
