"""LightningModules: they call encoders, objectives and evaluators and own everything about a step."""
