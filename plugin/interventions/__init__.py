"""Interventions: steer, ablate and patch activations along directions, and measure what changes.

arguments          the arguments of intervene() that need no model
edits              changes of activations at selected positions: add, set a coordinate, replace, interchange
edited_positions   which positions of a forward pass an edit changes
edit_hooks         hooks that apply edits while a context is open
steer              steer(), ablate() and patch(): the same as `with` blocks
model_fit          whether directions fit a model: weights, site, width
outcomes           what is measured: losses of answers, their difference, a function of the user's
text_outcome       generated text, judged by a function or by the answer
probe_outcome      the score of a probe further up
outcome_argument   the argument `outcome` and its checks
output_readers     logits at a few positions, and what they are judged by
block_outputs      forward passes that start at a block, from the outputs of the blocks below it
prefix_cache       keys and values of the tokens before an intervention
passes             edited forward passes over one batch, which reuse what a clean pass has computed
partial_results    finished parts of a job on disk, to resume it
job                one stage of a job: clean passes, random directions, the sweep
intervene          intervene(): a whole table, over stages, layers, directions and doses, with a null
"""
