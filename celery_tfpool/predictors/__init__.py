"""Processes that predict for all children of a worker, and batch their requests.

Decides which requests share a call, which goes first, who is asked again when a predictor has died, and when one is
replaced.  Knows nothing of Celery: what a task allows to wait, and what stops the worker, is given.

A request's way, downward:

    remote_model     where a model of this process would stand
    client           asks, and asks again
    connection       one question and its answer on a socket; how a predictor ended
    messages         what both sides say: heads of messages
    framing, codec   messages as bytes; arrays as bytes
    server           the process: start, end, sockets
    conversation     its end of a connection
    requests         a request, from its arrival to its answer
    scheduler        from requests to batches to answers
    batching         who goes together, and when
    computing        a batch, in a thread that does nothing else
    served_model     which requests of a model may share a call
    calls            one request as a call, or several in one

What it stands on:

    row_check        may rows of different tasks share a call?
    tuning           which call is fastest, and how many rows at a time
    freezing         variables as constants, called in a session
    statistics       what a predictor has done
    busyness         how busy each is, for whoever chooses one
    casualties       what was being computed when one died
    folder           the folder of sockets
    supervisor       worker main's thread that keeps all of them alive
    keeper           one of them: started, awaited, started again
    awaiting         processes and threads in an asyncio program
    death_notices    tells children how one ended
    nursery          what the forkserver has, of which they are forked
"""
