"""A model as files that any number of processes map: one copy of the weights.

Decides what a pack is, where it is kept, for how long, and which one belongs to a model.  Knows nothing of workers.

    manifest     what a pack holds, verified without TensorFlow
    write        a loaded model as a pack
    layers       what inner layers give, from the same weights
    compared     written, and compared with the model
    trial        what other engines would make of a model
    attach       a pack, called in this process
    build        in a process of its own, which then ends
    cache        where packs are kept, whom they must belong to, for how long
    locks        who makes and who uses one
    fingerprint  under which name: of the bytes that were loaded, of versions, of code
"""
