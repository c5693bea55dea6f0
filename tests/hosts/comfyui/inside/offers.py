# SPDX-License-Identifier: Apache-2.0
# Copyright Contributors to the Rushes project
"""What Rushes Load Model offers where a model is on Rushes' shelf, and where another pack keeps a list of GGUF files.

Arguments: the pack's folder, a model's files as JSON, a folder with GGUF files, a folder for Rushes' settings. Prints
JSON.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

PACK, FILES, GGUF, CONFIG = Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3], sys.argv[4]
os.environ["XDG_CONFIG_HOME"] = os.environ["XDG_CACHE_HOME"] = CONFIG

from session import pack_module  # noqa: E402, I001 - first, for it readies ComfyUI

import folder_paths  # noqa: E402

from rushes import Shot  # noqa: E402
from rushes.model.added import Added, add  # noqa: E402
from rushes.shot import ShotError  # noqa: E402

choices, nodes = pack_module(PACK, "choices"), pack_module(PACK, "model_nodes")
before = choices.on_the_shelf()
add(Added("mine", tuple(map(Path, FILES.values()))))
inputs = {"model": "mine", "text_encoder": choices.INSIDE, "vae": choices.INSIDE, "precision": "auto"}
inputs |= {"solver": "euler", "shift": 3.0}
refused = []
for change in ({"vae": "x.safetensors"}, {"second_expert": "x.safetensors"}):
    try:
        choices.chosen(choices.Choice(**inputs | change))
    except ShotError as error:
        refused.append(str(error))
(model,) = nodes.RushesLoadModel.execute(**inputs).args
record = model.engine.record(model.resolve(Shot("a red ball", size=(32, 32), frames=5)))
folder_paths.folder_names_and_paths["unet_gguf"] = ([GGUF], {".gguf"})
tables = {name: (list(paths), set(kinds)) for name, (paths, kinds) in folder_paths.folder_names_and_paths.items()}
schema = nodes.RushesLoadModel.define_schema()
found = {
    "before": before,
    "shelf": choices.on_the_shelf(),
    "offered": schema.inputs[0].options,
    "record": record,
    "refused": refused,
    "gguf": choices.files_in("diffusion_models"),
    "found": str(choices.path_in("diffusion_models", "sub/a.gguf")),
    "tables_are_kept": tables
    == {name: (list(paths), set(kinds)) for name, (paths, kinds) in folder_paths.folder_names_and_paths.items()},
}
print(json.dumps(found))
