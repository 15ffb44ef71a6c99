"""Owns what happens to text before the model: vocabulary, tokenizer, data sets."""
