"""Many runs: planning and executing them, and what follows from what they measured."""
