"""llama.cpp through llama-cpp-python: the only importer of `llama_cpp`.

`engine` is the way in for answers, `embedding` for vectors.

* `engine`: one model, one context, many slots.
* `embedding`: texts to pooled vectors.
* `tokens`: text to tokens and back, control tokens.
* `library`: log, buffers, devices.
* `parameters`: a Load to llama.cpp's sizes.
* `claims`: claimed against used: no silent CPU.
* `dry_run`: sizes without allocating.
* `cache`: sequences: cut, share, save, restore.
* `adapters`: LoRA.
* `projector`: the projector of a deployment.
* `vision`: images beside text.
* `layout`: images as mtmd lays them out.
* `images`: images in messages, checked.
* `png`: PNG files, held against their heads.
* `mrope_positions`: positions of images.
* `cores`: the processor's cores.
* `generated_model`: a random model for trials.

More than fifteen files: each stands for one part of llama.cpp's interface.
"""
