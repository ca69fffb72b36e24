"""The graph of a model: what it does with rows, and how it is computed in less time.

Decides whether each operation of a graph is known to keep rows apart, and rewrites graphs into others of the same
numbers, or into the files of another library that computes them: an engine.  Knows TensorFlow's graphs and operations;
nothing of models, packs, requests or Celery.

    protocol        what an engine is: converts, opens, is called
    onnxruntime     the engine ONNX Runtime
    to_onnx         a graph as an ONNX model
    large_weights   keeps weights out of that conversion
    compared        how far apart an engine's numbers and TensorFlow's are
    processor       which processor this is

    row_mixing      does a graph look at several rows together?
    row_axis        where the rows are in a tensor
    row_rules       how operations that compute numbers treat rows
    row_moves       how operations that move, cut and join tensors do
    row_containers  how lists of tensors, and images cut into blocks, do
    shape_numbers   the numbers that shapes are made of
    state           does an operation change something?
    graph_nodes     what the nodes of a GraphDef say
    folding         batch normalisation folded into depthwise convolutions
"""
