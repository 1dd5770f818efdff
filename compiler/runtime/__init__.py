"""Answer questions about pictures with a bundle: preprocess, encode, prompt, decode. Without torch."""
