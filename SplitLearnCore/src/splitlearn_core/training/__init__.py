"""Fine-tuning a split model as exactly as if it were one machine's."""
