"""Fine-tuning through the stages and after them.

train        one checkpoint a stage
trainer      the Trainer of Hugging Face, set up for a study
checkpoints  identity, writing and retention of checkpoints
packing      batches of padded or packed texts
schedule     the texts of each stage, in training order
lora         one LoRA adapter through all stages
throughput   training speed of this machine
"""
