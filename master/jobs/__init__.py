"""Remote command runs: who gets them, what came back."""
