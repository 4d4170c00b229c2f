"""Recording of a model's activations into a store.

run             capture(): all stages of a table into one store
recorder        Recorder: hooks inside a `with`, for your own loop
stage_recording the running state of a Recorder: announced batch, open blocks
forward_calls   where each forward pass of your own loop begins and ends
prompt_match    finds the prompts of the table in the token ids of your own loop
callback        RecordingCallback for transformers.Trainer
training_copy   a hooked copy of a model in training
store           create_store() and relabel(); the open store of a capture
store_defaults  defaults that mean what an existing store records
tokens          the rule of the token ids, in new and in existing stores
session         HookedModel: one model with its hooks; writes a batch into a block
checks          the check of the sites before a recording
options         CaptureOptions: the choices of a capture
spec            CaptureSpec: sites, positions, dtypes, statistics, provenance
site_hooks      SiteHooks: gathers activations at the recorded positions
output_hooks    OutputHooks: losses and statistics of the next-token distribution
statistics      statistics and losses as torch functions
batching        length buckets, batch size, out-of-memory handling
summarize       summarize(): statistics while the model runs, without a store; its forecast
summary_plan    groups and sampled rows of a summary
summary_sums    sums of activations on the model's device
summary_state   the folder of a summary, its saved sums and finished stages
summary_size    bytes of a summary next to those of a store
surprisal       surprisal(): how unexpected each token of a table is to a model
forecast        bytes, files, tokens and seconds of a capture before it runs
"""
