"""Pure functions of logits and labels that tell what a network has learnt."""
