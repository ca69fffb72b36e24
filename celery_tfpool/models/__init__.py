"""The models of one process, by name.

Decides when a model is loaded, and who predicts with it: predictors, a pack, or the model itself.  Knows nothing of
Celery, or of where the process runs.

    of_process  all of them by name, patterns too, and how many stay loaded
    handle      what `get_model` returns
    lazy_model  one model: nothing until its first use
    source      where one comes from, and how it is loaded
    words       why a load failed, and what one costs
    deferred    what the app itself loads while worker main imports it
    stand_in    what stands for each of these
"""
