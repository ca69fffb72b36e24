"""A model in this process, called as ``keras.Model.predict`` would.

Decides what a path is, whether data fits a model's inputs, and which compiled call serves them.  Knows nothing of
packs, of other processes, or of when a model is loaded.

    protocol     `Predicts`; a loaded model with a compiled call
    location     what a path is, and what is wrong with it, without TensorFlow
    configuration  what a model's file says of itself, without TensorFlow
    options      what is said of one model alone, of how it is loaded
    stored       loads what Keras or TensorFlow stored, or a function makes
    keras_model  calls a model that says what inputs it takes
    rows         how many rows there are, and some of them
    layers       what layers inside it give
    subclassed   calls one that does not
    saved_model  calls a SavedModel by its signature, or, without one, as an object
    other_backend  calls a model of Keras on JAX or PyTorch
    legacy       knows Keras 2, which is tf_keras now
    any_object   calls what is no Keras model, and has a predict() of its own
    inputs       which part of the data is which input
    spec         one input or output: does a value fit?
    convert      data as arrays of the dtype that a model takes
    dtypes       names of dtypes
    structure    nested inputs and outputs, as JSON and leaf by leaf
    compare      are outputs the same but for rounding?
    installed    what is installed, and which back end Keras runs on
    runtimes     which runtime does not let this process fork, who started it, with how many threads
    tf_state     TensorFlow as a whole: initialised? eager? threads
    openmp       lets threads of OpenMP end before a fork
    first_calls  remembers which line called a function first
    culprit      which line of the user's code it was
"""
