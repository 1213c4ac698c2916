"""The benchmark: models by batch and precision, in TensorRT and in everything else that could run them.

    torchtrt-bridge bench --models resnet50,bert-base --output results.json     measures; again: goes on
    torchtrt-bridge bench --kinds start --batches 1 --output results.json       seconds to the first result
    torchtrt-bridge bench --kinds build --models resnet50 --output build.json   what an export costs; needs no GPU
    torchtrt-bridge bench --show results.json --markdown                        tables of what was measured
    torchtrt-bridge bench --plot results.json speed.png                         a picture of it; anywhere

How it is put together: `suite` has the models and `contenders` what runs them; each is a table to which one adds
a row. `command` reads the command line, `schedule` orders the jobs and keeps to the deadline, `supervise` gives
each job a process that may hang or die, `worker` is that process. `speed`, `start` and `building` are the three
kinds of measurement. `results` is the file, `summary`, `sheets` and `plot` are what is made of it.
"""
