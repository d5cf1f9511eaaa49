"""The steps that make SplitLearn's own small model: corpus, tokenizer, training, evaluation, export."""
