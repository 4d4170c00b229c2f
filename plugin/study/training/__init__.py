"""Fine-tuning through the stages and after them.

train        one checkpoint a stage
trainer      Hugging Face's Trainer, set up for the study
checkpoints  checkpoints: identity, writing, removal
schedule     the texts of each stage in training order
lora         one LoRA adapter through all stages
throughput   training speed of this machine
self_report  fine-tuning on the question of which stage it was
"""
