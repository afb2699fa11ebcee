"""Checkpoints: folders of safetensors and JSON that are complete or absent, and verified before they are used.

    run/recipe.json  metrics.jsonl  events.jsonl  samples/
    run/checkpoints/000012000/  model-00001-of-00004.safetensors  adam-...  ema-0.9999-...  state.json  MANIFEST.json
    run/checkpoints/.tmp-...    being written, never read       .bad-...    found damaged, kept for a person

The folder's name is the number of images seen. MANIFEST.json lists every file with its size and SHA-256, and every tensor
with dtype, shape and which rows of it are in which file, and carries a hash of itself. Every file of weights also carries the
recipe, so that one which is whole can be used alone. A set of weights without a training (`adam-...`), as `justimage convert`
makes it, has the same form.

shards.py writes and reads such folders, history.py keeps a run's several, saver.py writes them while training goes on, and
model.py loads a network to sample with.
"""

from justimage.checkpoint.history import (
    Unusable as Unusable,
    newest as newest,
    published as published,
    retain as retain,
    set_aside as set_aside,
)
from justimage.checkpoint.model import (
    average_in as average_in,
    find as find,
    identity as identity,
    load as load,
    stored_recipe as stored_recipe,
)
from justimage.checkpoint.saver import (
    NotSaved as NotSaved,
    Outcome as Outcome,
    Saver as Saver,
    contents as contents,
    restore as restore,
)
from justimage.checkpoint.shards import (
    MANIFEST as MANIFEST,
    Damaged as Damaged,
    publish as publish,
    read as read,
    read_state as read_state,
    verify as verify,
)
