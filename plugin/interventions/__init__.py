"""Interventions: steer, ablate and patch activations along directions, and measure what changes.

edits              changes of activations at selected positions: add, set a coordinate, replace, interchange
edited_positions   which positions of a forward pass an edit changes
edit_hooks         hooks that apply edits while a context is open
steer              steer(), ablate() and patch(): the same as `with` blocks
model_fit          whether directions fit a model: weights, site, width
outcomes           what is measured: losses of answers, their difference, a function of the user's
block_outputs      forward passes that start at a block, from the outputs of the blocks below it
partial_results    finished parts of a job on disk, to resume it
job                one stage of a job: clean passes, random directions, the sweep
intervene          intervene(): a whole table, over stages, layers, directions and doses, with a null
"""
