"""Checkpoints: folders of safetensors and JSON that are complete or absent, and verified before they are used.

    run/recipe.json  metrics.jsonl  events.jsonl  samples/
    run/checkpoints/000012000/  model-00001-of-00004.safetensors  optimizer-...  ema-0.9999-...  state.json  MANIFEST.json
    run/checkpoints/.tmp-...    being written, never read       .bad-...    found damaged, set aside for inspection

The folder's name is the number of images seen. MANIFEST.json lists every file with its size and SHA-256, every tensor with its
dtype, its shape and the file of each of its rows, and a hash of itself. Every file of weights also carries the recipe, so that
one which holds whole tensors can be used alone. Weights without a training, as `justimage convert` writes them, have the same
form without the optimizer's state.

shards.py writes and reads such folders, history.py manages those of a run, saver.py writes them during training and restores
it, model.py loads a network to sample with, and initial.py makes a trained network's weights fit another one.
"""

from justimage.checkpoint.history import (
    NoUsableCheckpoint as NoUsableCheckpoint,
    list_checkpoints as list_checkpoints,
    newest as newest,
    prune as prune,
    set_aside as set_aside,
)
from justimage.checkpoint.initial import Initial as Initial, read_initial as read_initial
from justimage.checkpoint.model import (
    ema_of as ema_of,
    fingerprint as fingerprint,
    group_of as group_of,
    load as load,
    read_recipe as read_recipe,
    resolve as resolve,
    resolve_average as resolve_average,
)
from justimage.checkpoint.saver import (
    SaveFailed as SaveFailed,
    Saver as Saver,
    SaveResult as SaveResult,
    optimizer_numbers as optimizer_numbers,
    restore as restore,
    sharded_state_dict as sharded_state_dict,
)
from justimage.checkpoint.shards import (
    MANIFEST as MANIFEST,
    CorruptCheckpoint as CorruptCheckpoint,
    load_group as load_group,
    read_state as read_state,
    verify as verify,
    write_checkpoint as write_checkpoint,
)
