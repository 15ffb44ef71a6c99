"""How the threads of one training step work together.

A step is *data parallel*: its texts are divided among the threads of a pool, and each thread takes
its own through the whole model, forward and backward, without Python's lock and with BLAS on one
thread. So the threads wait for each other once or a few times a step, not at every operation.
`rustgpt.parallel.batches` divides a batch, `rustgpt.parallel.pool` owns the threads, and
`rustgpt.parallel.data_parallel` computes a step's gradients with them. There are two ways.

1. **A buffer of gradients a thread**, for a small model. Each thread has whole texts and gradients
   of its own, which fit its core's cache. At the end each thread sums one part of all buffers,
   always in the order of the threads.
2. **One buffer of gradients**, for a model of `SHARED_FROM` parameters or more, whose gradients
   fit no cache, and for a step of fewer texts than threads. All threads take one batch through the
   layers together; each has a *shard* of its rows. Attention sees rows of a text before its own,
   so where an edge between two shards lies inside a text, the threads divide the heads there
   instead. Each computes its part of every weight's gradient over the rows of all: so nothing need
   be summed. They wait at a barrier once a layer on the way back, and around attention where its
   heads are divided. What the kernels are told of this is a `Shard`; see
   `rustgpt/reference/arrays.py`.

A layer says with `divides_rows` whether its rows may be divided; the second way is taken if all
layers do, and with the compiled kernels only. Either way the sums have a fixed order: the same
seed, data and number of threads give the same bits. A step of fewer than `TOKENS_AT_LEAST` tokens
a thread runs on fewer threads. No thread is bound to a processor.

Where few rows of a large model are decoded, there is no batch to divide. There each thread makes
some columns of every product: see `rustgpt.parallel.decoding`.
"""
