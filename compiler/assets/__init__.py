"""What a checkpoint says beside its weights, as the bundle states it: tokenizer, prompt, pictures, how answers end."""
