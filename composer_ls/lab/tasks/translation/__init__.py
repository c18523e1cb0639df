"""Translation: parallel text, subwords, a Transformer, beam search, and what to measure. Recipes put them together."""
